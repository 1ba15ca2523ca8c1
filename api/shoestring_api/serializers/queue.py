# SPDX-License-Identifier: Apache-2.0
"""The queue as a team sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from shoestring_core import rest, wording
from shoestring_core.decide.outlook import outlook
from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.projection import ProjectedStart, Projection, find_alternative
from shoestring_core.decide.what_ifs import Changes, compare
from shoestring_core.store import ledger
from shoestring_core.store.projection_inputs import ProjectionInputs
from shoestring_core.store.queries import load_teams_of, load_user_names
from shoestring_core.store.tables import AccountRow, JobRow
from shoestring_core.store.transactions import Read

from shoestring_api.serializers.offers import serialize_offer
from shoestring_api.serializers.times import to_datetime

MAX_ALTERNATIVES = 20
"""Waiting jobs for which it is worked out where they would start now; each takes a schedule of its own."""


def serialize_queue(db: Read, inputs: ProjectionInputs, projection: Projection, team: UUID) -> rest.Queue:
    own = [job for job in projection.order if job in inputs.jobs and inputs.jobs[job].team_id == team]
    users = load_user_names(db, {inputs.jobs[job].user_id for job in own})
    queued = {one.job: one for one in inputs.snapshot.queue}
    places = {job: place for place, job in enumerate(projection.order, start=1)}
    entries: list[rest.QueueEntry] = []
    for job in own:
        alternative = None
        if job in projection.waits and len(entries) < MAX_ALTERNATIVES:
            alternative = find_alternative(inputs.snapshot, queued[job], inputs.offers, inputs.now, inputs.timeouts)
        best = rank_offers(inputs.offers, queued[job].requirements, inputs.now, inputs.snapshot.refusals).best
        worded = outlook(queued[job], projection, best, alternative, inputs.now, inputs.expect)
        entries.append(_entry(inputs.jobs[job], users, places[job], projection, rest.Reason.of(worded)))
    return rest.Queue(
        at=to_datetime(inputs.now),
        waiting=inputs.waiting,
        jobs=entries,
        further_back=max(0, inputs.waiting - len(projection.order)),
    )


def _entry(
    row: JobRow, users: dict[UUID, str], position: int, projection: Projection, worded: rest.Reason
) -> rest.QueueEntry:
    wait, start = projection.waits.get(row.id), projection.starts.get(row.id)
    recipe = row.spec.get("recipe")
    return rest.QueueEntry(
        job=row.id,
        name=row.name,
        user=users.get(row.user_id, ""),
        recipe=recipe if isinstance(recipe, str) else None,
        position=position,
        queued_at=to_datetime(row.queued_at),
        wait_reason=wait.reason if wait else None,
        reason=rest.Reason.of(wait.detail) if wait else None,
        start=_start(start) if start else None,
        outlook=worded,
    )


def _start(start: ProjectedStart) -> rest.ExpectedStart:
    return rest.ExpectedStart(
        at=to_datetime(start.at),
        nodes=start.nodes,
        offer=serialize_offer(start.offer, available=True),
        ends_at=to_datetime(start.ends_at),
        cost=None if start.cost is None else rest.Money.of(start.cost),
    )


def serialize_what_if(
    db: Read, inputs: ProjectionInputs, before: Projection, after: Projection, paused: Sequence[UUID],
    accounts: Mapping[UUID, AccountRow], changes: Changes, team: UUID,
) -> rest.WhatIf:  # fmt: skip
    """`accounts`: the budgets that are shown."""
    own = [inputs.jobs[job] for job in before.order if job in inputs.jobs and inputs.jobs[job].team_id == team]
    users, titles = load_user_names(db, {row.user_id for row in own}), ledger.titles(db, list(accounts.values()))
    own_runs = load_teams_of(db, paused)
    own_paused = [job for job in paused if own_runs.get(job) == team]
    moves = compare(before, after, tuple(own_paused), [row.id for row in own])
    worded = wording.queue.WhatIfMoves(moves.earlier, moves.later, moves.newly, moves.no_more, len(own_paused))
    return rest.WhatIf(
        at=to_datetime(inputs.now),
        summary=rest.Reason.of(worded),
        jobs=[
            rest.WhatIfJob(
                job=row.id,
                name=row.name,
                user=users.get(row.user_id, ""),
                before=_start(before.starts[row.id]) if row.id in before.starts else None,
                after=_start(after.starts[row.id]) if row.id in after.starts else None,
            )
            for row in own
        ],
        paused=own_paused,
        budgets=[_budget(row, titles[row.id], before, after, changes) for row in accounts.values()],
    )


def _budget(
    row: AccountRow, title: str, before: Projection, after: Projection, changes: Changes
) -> rest.WhatIfBudget:  # fmt: skip
    limit = changes.accounts[row.id].limit if row.id in changes.accounts else row.limit_micro
    return rest.WhatIfBudget(
        budget=row.id,
        kind=row.kind,
        owner=title.removeprefix(f"{row.kind} ").removeprefix("organization "),
        limit_before=_of_period(row, row.limit_micro),
        limit_after=_of_period(row, limit),
        before=_points(row, before),
        after=_points(row, after),
    )


def _of_period(row: AccountRow, limit: int | None) -> rest.Money | None:
    return None if limit is None else rest.Money.of(limit - row.period_base)


def _points(row: AccountRow, projection: Projection) -> list[rest.SpentBy]:
    """Of its period, as the budget page has it."""
    earlier = row.period_base - row.carried
    return [
        rest.SpentBy(at=to_datetime(point.at), spent=rest.Money.of(max(0, point.spent[row.id] - earlier)))
        for point in projection.points
        if row.id in point.spent
    ]
