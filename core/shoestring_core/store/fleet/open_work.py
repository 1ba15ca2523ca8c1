# SPDX-License-Identifier: Apache-2.0
"""What a tick of the control loop may have to act on, read at once: the reads are most of what a tick costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import bindparam, exists, select

from shoestring_core.decide.funding import MachineFunding
from shoestring_core.store.fleet import billing, launches, queue, rows
from shoestring_core.store.fleet.active_attempts import ActiveAttempt, load_active_attempts
from shoestring_core.store.fleet.launches import PlannedMachine
from shoestring_core.store.fleet.offers import load_versions
from shoestring_core.store.tables import DeadlineRow, JobRow, MachineRow
from shoestring_core.store.transactions import Read


@dataclass(frozen=True)
class Demand:
    """What providers are asked for: whether jobs wait for machines, and the providers whose machines are alive; and
    whether it is to be decided about jobs with a deadline."""

    now: int
    jobs_queued: bool
    deadlines_due: bool
    in_use: frozenset[str]


@dataclass(frozen=True)
class OpenWork:
    """All that a tick may have to act on, as of `now`. Falsy if there is nothing.

    launchable      machines to launch, each with its provider
    fundings        of the machines of wanted attempts
    overdrawn       jobs of wanted attempts that draw on an account in overdraft, and its name
    queue           whether a schedule must be made: it is as old as what the last one was made from
    offer_versions  by provider
    """

    now: int
    attempts: Sequence[ActiveAttempt]
    launchable: Sequence[PlannedMachine]
    fundings: Mapping[UUID, MachineFunding]
    overdrawn: Mapping[UUID, str]
    unbilled: Sequence[UUID]
    unsettled: Sequence[UUID]
    queue: queue.QueueMark
    offer_versions: Mapping[str, int]

    def __bool__(self) -> bool:
        return bool(self.attempts or self.unbilled or self.unsettled or self.queue.queued)


def load_demand(db: Read) -> Demand:
    ((queued, due),) = db.rows(_JOBS_QUEUED, now=db.now)
    return Demand(db.now, queued, due, frozenset(provider for (provider,) in db.rows(_PROVIDERS_IN_USE)))


def load_open_work(db: Read) -> OpenWork:
    """In as many statements however much there is; in few if there is nothing."""
    attempts = load_active_attempts(db)
    wanted = [active for active in attempts if active.wanted]
    mark = queue.load_mark(db)
    return OpenWork(
        now=db.now,
        attempts=attempts,
        launchable=launches.load_launchable(db) if wanted else [],
        fundings=billing.load_fundings(db, [machine.id for active in wanted for machine in active.machines]),
        overdrawn=billing.overdrawn_jobs(db, [active.job.id for active in wanted]),
        unbilled=billing.load_unbilled(db),
        unsettled=billing.load_unsettled(db),
        queue=mark,
        offer_versions=load_versions(db) if mark.queued else {},
    )


_JOBS_QUEUED = select(exists().where(JobRow.state == "queued"), exists().where(DeadlineRow.next_at <= bindparam("now")))
_PROVIDERS_IN_USE = select(MachineRow.provider).where(MachineRow.state.in_(rows.ALIVE)).distinct()
