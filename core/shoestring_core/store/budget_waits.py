# SPDX-License-Identifier: Apache-2.0
"""Which queued jobs wait for a budget, which paused ones can't resume without it, and what is missing now.

Asked when somebody reads a job: stored amounts would be out of date, and a job far back, which no schedule has looked
at, has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from uuid import UUID

from shoestring_core import money
from shoestring_core.decide.funding import hold_for
from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.queue import AccountBalance
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.start import find_shortage
from shoestring_core.spec import Resources, rate_limit_of_stored, reserved_time_of_stored
from shoestring_core.states import JobState, StopReason, WaitReason
from shoestring_core.store import ledger
from shoestring_core.store.fleet.launches import load_refusals
from shoestring_core.store.fleet.offers import load_known
from shoestring_core.store.fleet.queue import chosen_type
from shoestring_core.store.fleet.rows import ancestor_ids
from shoestring_core.store.tables import AccountRow, JobRow
from shoestring_core.store.transactions import Read
from shoestring_core.wording.waits import BudgetOverdrawn, BudgetShort


def load_budget_waits(
    db: Read, jobs: Sequence[JobRow], leaves: Mapping[UUID, AccountRow], accounts: Mapping[UUID, AccountRow]
) -> dict[UUID, BudgetOverdrawn | BudgetShort]:
    """What those jobs lack that no schedule looked at, or that waited for a budget when one did, or were paused for it.

    leaves    the jobs' own accounts, by job
    accounts  these and all above them, by id

    Whatever else such a job may wait for, its budget comes first, as in a schedule.
    """
    asked = [job for job in jobs if _may_wait_for_budget(job) and job.id in leaves]
    if not asked:
        return {}
    needs = _Needs(db)
    found: dict[UUID, BudgetOverdrawn | BudgetShort] = {}
    short: dict[UUID, AccountRow] = {}
    for job in asked:
        path = [accounts[account] for account in ancestor_ids(leaves[job.id], accounts)]
        if _is_ample(path, path[0].limit_micro) or _is_ample(path, needs.most(job)) or (need := needs.of(job)) is None:
            continue
        if shortage := find_shortage([_balance(row) for row in path], *need):
            balance, found[job.id] = shortage
            short[job.id] = next(row for row in path if row.id == balance.id)
    names = ledger.titles(db, [row for row in short.values() if row.kind != "job"])
    return {job: replace(detail, account=names.get(short[job].id, "this job")) for job, detail in found.items()}


def _may_wait_for_budget(job: JobRow) -> bool:
    if job.state == JobState.PAUSED:
        return job.stop_reason == StopReason.BUDGET
    return job.state == JobState.QUEUED and job.wait_reason in (None, WaitReason.BUDGET)


def _is_ample(path: Sequence[AccountRow], most: int | None) -> bool:
    """Whether each account could pay the most that a job may hold: then what it really does need not be known."""
    return most is not None and all(
        not row.overdraft and (row.limit_micro is None or row.limit_micro - row.posted - row.held >= most)
        for row in path
    )


class _Needs:
    """What starting a job holds."""

    def __init__(self, db: Read) -> None:
        self._db = db
        self._best, self._most = cache(self._find_hold), cache(self._find_most)

    def most(self, job: JobRow) -> int | None:
        """Micro-dollars that it holds at most, whatever was refused lately; None: that isn't known."""
        requirements = _requirements(job)
        return None if requirements is None or _stored_need(job) is not None else self._most(requirements)

    def of(self, job: JobRow) -> tuple[int, int] | None:
        """Micro-dollars for all its machines, and how many; None: no offer suits it, or its row is damaged."""
        if (requirements := _requirements(job)) is None:
            return None
        if (need := _stored_need(job)) is not None:
            return money.from_decimal(need), requirements.nodes
        hold = self._best(requirements)
        return None if hold is None else (hold, requirements.nodes)

    def _find_hold(self, requirements: Requirements) -> int | None:
        known, refusals = self._db.once(load_known), self._db.once(load_refusals)
        best = rank_offers(known.offers, requirements, self._db.now, refusals).best
        return None if best is None else hold_for(best, requirements, known.timeouts)

    def _find_most(self, requirements: Requirements) -> int:
        known = self._db.once(load_known)
        suitable = rank_offers(known.offers, requirements).ranked
        return max((hold_for(offer, requirements, known.timeouts) for offer in suitable), default=0)


def _requirements(job: JobRow) -> Requirements | None:
    """None: the job's row is damaged."""
    try:
        chosen = chosen_type(job.sizing)
        limits = reserved_time_of_stored(job.spec), rate_limit_of_stored(job.spec)
        return Requirements.of(Resources.of_stored(job.spec), chosen, *limits)
    except (ValueError, KeyError, TypeError):
        return None


def _stored_need(job: JobRow) -> str | None:
    """What a schedule found that the job needs, dollars."""
    match job.wait_detail:
        case {"code": BudgetShort.code, "facts": {"need": str(need)}}:
            return need
    return None


def _balance(row: AccountRow) -> AccountBalance:
    return AccountBalance(row.id, "", row.limit_micro, row.posted, row.held, row.overdraft)
