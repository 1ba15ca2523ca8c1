# SPDX-License-Identifier: Apache-2.0
"""Starts the queued jobs whose turn it is, evicts jobs that have to make room, and records why the others wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from shoestring_core.decide import preemption
from shoestring_core.decide.funding import Storage
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import is_served, is_stale, rank_offers
from shoestring_core.decide.preemption import Eviction
from shoestring_core.decide.queue import QueuedJob, QueueSnapshot
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import SchedulingDecision, schedule_jobs
from shoestring_core.decide.start import Start, Wait
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import BudgetExceeded, StaleTransition
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import planning, queue
from shoestring_core.store.fleet.launches import PlannedMachine
from shoestring_core.store.fleet.offers import load_offers
from shoestring_core.store.fleet.queue import LoadedQueue, QueueMark
from shoestring_core.store.objects import Objects
from shoestring_core.wording.waits import NoOffer, ProviderUnanswered, ProviderUnserved

from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.steps import ItemRunner, find_storage, write

log = logging.getLogger(__name__)

RECHECK_S = 60.0
"""How often a schedule is made although nothing changed, in case a write that should change the mark doesn't."""


@dataclass(frozen=True)
class AppliedSchedule:
    """What the last schedule was made from. Until something of it changes, another one would be the same.

    offers       each with whether it was stale
    valid_until  when the first backoff of a waiting job, or of an offer that was refused, ends, or a running job may be
                 evicted (µs UTC); None: never
    made_at      by the monotonic clock
    """

    mark: QueueMark
    offers: list[tuple[Offer, bool]]
    storage: Storage
    unanswered: Mapping[str, str]
    valid_until: int | None
    made_at: float


@dataclass
class JobScheduler:
    """Decides again only if something has changed. It remembers what in memory: after a restart it decides again.

    schedule_again   called when a schedule was out of date before it was applied
    find_unanswered  as `decide.schedule.schedule_jobs` takes them
    """

    store: Store
    providers: Mapping[str, ManagedProvider]
    objects: Objects
    timeouts: Timeouts
    agent_url: str
    ca: str
    deployment: str
    items: ItemRunner
    schedule_again: Callable[[], None]
    find_unanswered: Callable[[], Mapping[str, str]]
    monotonic: Callable[[], float] = time.monotonic

    requirements: frozenset[Requirements] = frozenset()
    """Those of the jobs that the last schedule looked at."""
    _known: dict[UUID, QueuedJob] = field(default_factory=dict)
    _offers: list[Offer] = field(default_factory=list)
    _of_others: list[Offer] = field(default_factory=list)
    """Those of the providers that this worker doesn't serve."""
    _answered_at: Mapping[str, int] = field(default_factory=dict)
    """When each provider answered last (µs UTC), also those that this worker doesn't serve."""
    _offer_versions: Mapping[str, int] | None = None
    _applied: AppliedSchedule | None = None

    def schedule_jobs(self, mark: QueueMark, offer_versions: Mapping[str, int], now: int) -> list[PlannedMachine]:
        """Make a schedule and apply it, unless the last one still applies at `now`. Returns the machines to launch."""
        if not mark.queued:
            return []
        offers, storage = self._load_offers(offer_versions), find_storage(self.objects)
        unanswered = self.find_unanswered()
        if self._still_applies(mark, offers, storage, unanswered, now):
            return []
        if storage.problem:
            self.items.warn("no job starts", storage.problem)
        now, loaded, schedule = self._make_schedule(offers, storage, unanswered)
        self._forget_all_but(loaded.snapshot.queue)
        for job, problem in loaded.snapshot.unreadable.items():
            self.items.warn(f"job {job} can't be scheduled", problem)
        self.requirements = frozenset(job.requirements for job in loaded.snapshot.queue)
        planned, version = self._apply(schedule, loaded, now)
        if version is not None:
            applied_mark = loaded.mark._replace(plan_version=version)
            until = _valid_until(loaded.snapshot, now)
            self._applied = AppliedSchedule(
                applied_mark, _with_staleness(offers, now), storage, unanswered, until, self.monotonic()
            )
        return planned

    def _make_schedule(
        self, offers: list[Offer], storage: Storage, unanswered: Mapping[str, str]
    ) -> tuple[int, LoadedQueue, SchedulingDecision]:
        """When it was made, and from what. Reads more of the queue for as long as a job further back may start."""
        timeouts = {name: provider.timeouts for name, provider in self.providers.items()}
        with self.store.read() as db:
            given = offers, db.now, timeouts, storage, unanswered, self._answered_at
            loaded = queue.load_queue(db, self.timeouts, self._known)
            schedule = schedule_jobs(loaded.snapshot, *given)
            while not schedule.complete:
                loaded = queue.load_queue(db, self.timeouts, self._known, loaded, schedule.short_accounts)
                schedule = schedule_jobs(loaded.snapshot, *given)
            return db.now, loaded, schedule

    def _apply(
        self, schedule: SchedulingDecision, loaded: LoadedQueue, now: int
    ) -> tuple[list[PlannedMachine], int | None]:
        """Each start and eviction in a transaction of its own, then the waits. Returns the machines to launch, and the
        plan's version after that; None: not all of it was applied."""
        planned: list[PlannedMachine] = []
        version, complete = loaded.mark.plan_version, True
        for start in schedule.starts:
            machines = self.items.run(f"the start of job {start.job}", self._start, start, version) or []
            planned += [PlannedMachine(start.offer.provider, machine) for machine in machines]
            version, complete = version + bool(machines), complete and bool(machines)
        for eviction in schedule.evictions:
            evicted = bool(self.items.run(f"the eviction of job {eviction.job}", self._evict, eviction, version))
            version, complete = version + evicted, complete and evicted
        if waits := self._without_those_of_others(loaded.changed(schedule.waits), loaded, now):
            written = bool(self.items.run("why jobs wait", self._record_waits, waits, loaded.waits, version))
            version, complete = version + written, complete and written
        return planned, version if complete else None

    def _without_those_of_others(self, waits: list[Wait], loaded: LoadedQueue, now: int) -> list[Wait]:
        """What none of this worker's providers has, another worker's may have: that one starts the job, or says why it
        waits. That is said here only if no worker has said so yet."""
        theirs = [offer for offer in self._of_others if is_served(offer, now)]
        if not theirs:
            return waits
        needed = {job.job: job.requirements for job in loaded.snapshot.queue}
        left = []
        for wait in waits:
            if isinstance(wait.detail, NoOffer | ProviderUnserved | ProviderUnanswered) and wait.job in needed:
                there = rank_offers([*self._offers, *theirs], needed[wait.job], now, loaded.snapshot.refusals)
                of_ours = isinstance(wait.detail, ProviderUnanswered)
                if there.ranked or (not of_ours and loaded.waits.get(wait.job, (None, None))[0] is not None):
                    continue
                left.append(wait if of_ours else replace(wait, detail=there.why_none))
            else:
                left.append(wait)
        return left

    def _load_offers(self, versions: Mapping[str, int]) -> list[Offer]:
        """Those of the providers that this worker serves. EC2 has hundreds, which seldom change."""
        if versions != self._offer_versions:
            with self.store.read() as db:
                stored = load_offers(db)
            self._offers = [offer for offer in stored if offer.provider in self.providers]
            self._of_others = [offer for offer in stored if offer.provider not in self.providers]
            self._answered_at = {offer.provider: offer.fetched_at for offer in stored if offer.fetched_at is not None}
            self._offer_versions = versions
        return self._offers

    def _forget_all_but(self, queue: Iterable[QueuedJob]) -> None:
        for job in self._known.keys() - {queued.job for queued in queue}:
            del self._known[job]

    def _start(self, start: Start, version: int) -> list[UUID] | None:
        """The machines of the job that was started; None if another worker has applied a newer schedule."""
        try:
            return write(
                self.store, planning.record_start, start, version,
                agent_url=self.agent_url, ca=self.ca, deployment=self.deployment,
            )  # fmt: skip
        except (StaleTransition, BudgetExceeded) as changed:
            log.info("the schedule is out of date: %s", changed)
            self.schedule_again()
            return None

    def _evict(self, eviction: Eviction, version: int) -> bool:
        """False if another worker has applied a newer schedule, or the job has just moved."""
        try:
            return write(self.store, planning.record_eviction, eviction, version)
        except StaleTransition as changed:
            log.info("the schedule is out of date: %s", changed)
            self.schedule_again()
            return False

    def _record_waits(self, waits: Sequence[Wait], before: Mapping[UUID, queue.StoredWait], version: int) -> bool:
        return write(self.store, queue.apply_waits, waits, before, version)

    def _still_applies(
        self, mark: QueueMark, offers: list[Offer], storage: Storage, unanswered: Mapping[str, str], now: int
    ) -> bool:
        last = self._applied
        return (
            last is not None
            and (last.mark, last.offers) == (mark, _with_staleness(offers, now))
            and (last.storage, last.unanswered) == (storage, unanswered)
            and (last.valid_until is None or now < last.valid_until)
            and self.monotonic() < last.made_at + RECHECK_S
        )


def _with_staleness(offers: Iterable[Offer], now: int) -> list[tuple[Offer, bool]]:
    return [(offer, is_stale(offer, now)) for offer in offers]


def _valid_until(snapshot: QueueSnapshot, now: int) -> int | None:
    """As `AppliedSchedule.valid_until`."""
    ends = [job.not_before for job in snapshot.queue if job.not_before > now]
    ends += [refusal.at + refusal.kind.memory for refusal in snapshot.refusals]
    protected = [preemption.protected_until(job) for job in snapshot.running]
    ends += [until for until in protected if until is not None and until > now]
    return min(ends, default=None)
