# SPDX-License-Identifier: Apache-2.0
"""Starts the queued jobs whose turn it is, and records why the others wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import is_stale
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import QueuedJob, Start, schedule_jobs
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import BudgetExceeded, StaleTransition
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import planning, queue
from shoestring_core.store.fleet.offers import load_offers
from shoestring_core.store.fleet.queue import QueueMark

from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.steps import ItemRunner, write

log = logging.getLogger(__name__)

RECHECK_S = 60.0
"""How often a schedule is made although nothing changed, in case a write that should change the mark doesn't."""


@dataclass(frozen=True)
class AppliedSchedule:
    """What the last schedule was made from. Until something of it changes, another one would be the same.

    offers       each with whether it was stale
    valid_until  when the first backoff of a waiting job, or of an offer that was refused, ends (µs UTC); None: never
    made_at      by the monotonic clock
    """

    mark: QueueMark
    offers: list[tuple[Offer, bool]]
    valid_until: int | None
    made_at: float


@dataclass
class JobScheduler:
    """Decides again only if something has changed. It remembers what in memory: after a restart it decides again.

    schedule_again  called when a schedule was out of date before it was applied
    """

    store: Store
    providers: Mapping[str, ManagedProvider]
    timeouts: Timeouts
    agent_url: str
    deployment: str
    items: ItemRunner
    schedule_again: Callable[[], None]
    monotonic: Callable[[], float] = time.monotonic

    requirements: frozenset[Requirements] = frozenset()
    """Those of the jobs that the last schedule looked at."""
    _known: dict[UUID, QueuedJob] = field(default_factory=dict)
    _applied: AppliedSchedule | None = None

    def schedule_jobs(self) -> None:
        """Make a schedule and apply it, unless the last one still applies."""
        with self.store.read() as db:
            mark, now = queue.load_mark(db), db.now
            offers = [offer for offer in load_offers(db) if offer.provider in self.providers] if mark.queued else []
        if not mark.queued or self._still_applies(mark, offers, now):
            return
        timeouts = {name: provider.timeouts for name, provider in self.providers.items()}
        with self.store.read() as db:
            now, loaded = db.now, queue.load_queue(db, self.timeouts, self._known)
            schedule = schedule_jobs(loaded.snapshot, offers, now, timeouts)
            while loaded.end is not None and not schedule.exhausted:
                loaded = queue.load_queue(db, self.timeouts, self._known, loaded, schedule.short_accounts)
                schedule = schedule_jobs(loaded.snapshot, offers, now, timeouts)
        self._forget_all_but(loaded.snapshot.queue)
        for job, problem in loaded.snapshot.unreadable.items():
            self.items.warn(f"job {job} can't be scheduled", problem)
        self.requirements = frozenset(job.requirements for job in loaded.snapshot.queue)
        version, complete = loaded.mark.plan_version, True
        for start in schedule.starts:
            started = bool(self.items.run(f"the start of job {start.job}", self._start, start, version))
            version, complete = version + started, complete and started
        if waits := loaded.changed(schedule.waits):
            written = write(self.store, queue.apply_waits, waits, loaded.waits, version)
            version, complete = version + written, complete and written
        if complete:
            backoffs = [job.not_before for job in loaded.snapshot.queue if job.not_before > now]
            backoffs += [refusal.at + refusal.kind.memory for refusal in loaded.snapshot.refusals]
            mark = loaded.mark._replace(plan_version=version)
            stale = [(offer, is_stale(offer, now)) for offer in offers]
            self._applied = AppliedSchedule(mark, stale, min(backoffs, default=None), self.monotonic())

    def _forget_all_but(self, queue: Iterable[QueuedJob]) -> None:
        for job in self._known.keys() - {queued.job for queued in queue}:
            del self._known[job]

    def _start(self, start: Start, version: int) -> bool:
        """Returns whether the job was started; not if another worker has applied a newer schedule."""
        try:
            machines = write(
                self.store, planning.record_start, start, version, agent_url=self.agent_url, deployment=self.deployment
            )
        except (StaleTransition, BudgetExceeded) as changed:
            log.info("the schedule is out of date: %s", changed)
            self.schedule_again()
            return False
        return machines is not None

    def _still_applies(self, mark: QueueMark, offers: list[Offer], now: int) -> bool:
        last = self._applied
        return (
            last is not None
            and (last.mark, last.offers) == (mark, [(offer, is_stale(offer, now)) for offer in offers])
            and (last.valid_until is None or now < last.valid_until)
            and self.monotonic() < last.made_at + RECHECK_S
        )
