# SPDX-License-Identifier: Apache-2.0
"""What the scheduler would do with a list of jobs: `schedule_jobs` itself, on a clock that jumps from event to event.

Simplified are only machines and money. Machines are launched as soon as they are decided, train after `startup`, and
have ended `drain` after an eviction; none is lost. Cost is posted at every event, and a first hold is held as long as
the job runs, which differs from a service by less than a funding lease of its cost.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal
from uuid import UUID

from shoestring_core import money
from shoestring_core.decide import preemption
from shoestring_core.decide.funding import rate_of
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.queue import (
    HALF_LIFE,
    AccountBalance,
    MemberPath,
    QueuedJob,
    QueueSnapshot,
    RunningJob,
    decayed,
)
from shoestring_core.decide.quotas import Product
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import SchedulingDecision, schedule_jobs
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.wording import Reason

FIRST_READ = 100
"""Queued jobs that a schedule looks at first, as many of each member; of more only if one of them may start."""


@dataclass(frozen=True)
class Team:
    """`guaranteed_rate`: micro-dollars an hour. `max_jobs`: that run at once; None: no cap."""

    name: str
    weight: int = 1
    guaranteed_rate: int = 0
    max_jobs: int | None = None


@dataclass(frozen=True)
class Job:
    """Submitted `at`; it trains for `work`, and by its spec for `time_limit` at most. µs."""

    name: str
    team: str
    member: str
    at: int
    work: int
    requirements: Requirements
    time_limit: int | None = None


@dataclass(frozen=True)
class Scenario:
    """Times in µs.

    startup  from a machine's launch until it trains
    drain    from an eviction until the machines have ended
    """

    offers: tuple[Offer, ...]
    teams: tuple[Team, ...]
    jobs: tuple[Job, ...]
    startup: int = 60 * S
    drain: int = 15 * S
    half_life: int = HALF_LIFE
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(frozen=True)
class Step:
    """`reason`: of an eviction. `offer`: of a start, with `hold` micro-dollars for all its machines."""

    at: int
    kind: Literal["start", "evict", "end"]
    job: Job
    attempt: int
    offer: Offer | None = None
    hold: int = 0
    reason: Reason | None = None


@dataclass
class _Attempt:
    """began: when its machines were launched. ends: when they have ended, as far as is known. left: work at `began`."""

    job: Job
    queued: QueuedJob
    offer: Offer
    hold: int
    began: int
    ends: int
    left: int
    evicted: bool = False

    @property
    def rate(self) -> int:
        return rate_of(self.offer, self.queued.requirements.nodes)

    @property
    def product(self) -> Product:
        return self.offer.provider, self.offer.region, self.offer.type, self.offer.market


def simulate(scenario: Scenario) -> Iterator[Step]:
    """Every decision and every end, in order. A job that no offer suits, and one that never gets a turn, has none."""
    return _Simulation(scenario).run()


class _Simulation:
    def __init__(self, scenario: Scenario) -> None:
        self._scenario, self._now = scenario, 0
        numbers = count(1)
        self._organization = UUID(int=next(numbers))
        self._balances = {self._organization: AccountBalance(self._organization, "the organization", None, 0, 0, 0)}
        teams: dict[str, UUID] = {}
        for team in scenario.teams:
            teams[team.name] = account = UUID(int=next(numbers))
            self._balances[account] = AccountBalance(
                account, f"team {team.name}", None, 0, 0, 0, 0, team.weight, 0, team.guaranteed_rate, team.max_jobs
            )
        members: dict[tuple[str, str], UUID] = {}
        self._jobs: dict[UUID, Job] = {}
        self._coming: list[QueuedJob] = []
        for job in sorted(scenario.jobs, key=lambda one: one.at):
            if (job.team, job.member) not in members:
                members[job.team, job.member] = account = UUID(int=next(numbers))
                self._balances[account] = AccountBalance(account, f"member {job.member}", None, 0, 0, 0)
            own, identity = UUID(int=next(numbers)), UUID(int=next(numbers))
            self._balances[own] = AccountBalance(own, "this job", None, 0, 0, 0)
            path = (own, members[job.team, job.member], teams[job.team], self._organization)
            self._jobs[identity] = job
            self._coming.append(
                QueuedJob(identity, job.requirements, path, 1, queued_at=job.at, time_limit=job.time_limit)
            )
        self._sharing = [*teams.values(), *members.values()]
        self._left = {identity: job.work for identity, job in self._jobs.items()}
        self._coming.reverse()  # the next is last
        self._queue: dict[MemberPath, list[QueuedJob]] = {}
        self._attempts: dict[UUID, _Attempt] = {}
        self._timeouts = {offer.provider: scenario.timeouts for offer in scenario.offers}
        self._guarantees = any(team.guaranteed_rate for team in scenario.teams)
        self._limits = any(job.time_limit is not None for job in scenario.jobs)

    def run(self) -> Iterator[Step]:
        while (then := self._next_event()) is not None:
            self._spend(then)
            yield from self._end_attempts()
            while self._coming and self._coming[-1].queued_at <= self._now:
                self._enqueue(self._coming.pop())
            yield from self._apply(self._schedule())

    def _next_event(self) -> int | None:
        events = [attempt.ends for attempt in self._attempts.values()]
        if self._coming:
            events.append(self._coming[-1].queued_at)
        if self._guarantees and self._queue:
            protected = [preemption.protected_until(job) for job in self._running(at=None)]
            events += [until for until in protected if until is not None and until > self._now]
        return min(events, default=None)

    def _spend(self, then: int) -> None:
        """Time passes; what runs costs money, and what was spent counts for less."""
        elapsed, self._now = then - self._now, then
        spent: Counter[UUID] = Counter()
        for attempt in self._attempts.values():
            _, member, team, _ = attempt.queued.account_path
            for account in (member, team):
                spent[account] += attempt.rate * elapsed // money.HOUR
        for account in self._sharing:
            balance = self._balances[account]
            recent = decayed(balance.recent, elapsed, self._scenario.half_life) + spent[account]
            self._balances[account] = replace(balance, recent=recent)

    def _end_attempts(self) -> Iterator[Step]:
        for identity, attempt in [*self._attempts.items()]:
            if attempt.ends > self._now:
                continue
            del self._attempts[identity]
            self._hold(attempt.queued, -attempt.hold, -1)
            if attempt.evicted:
                self._enqueue(replace(attempt.queued, attempt=attempt.queued.attempt + 1))
            else:
                self._left[identity] = 0
                yield Step(self._now, "end", attempt.job, attempt.queued.attempt)

    def _enqueue(self, job: QueuedJob) -> None:
        insort(self._queue.setdefault(job.member, []), job, key=lambda one: (one.queued_at, one.job))

    def _schedule(self) -> SchedulingDecision:
        depth = max(1, FIRST_READ // max(1, len(self._queue)))
        offers, timeouts = self._scenario.offers, self._timeouts
        while not (decision := schedule_jobs(self._snapshot(depth), offers, self._now, timeouts)).complete:
            depth *= 2
        return decision

    def _snapshot(self, depth: int) -> QueueSnapshot:
        running = tuple(self._running(self._now)) if self._guarantees or self._limits else ()
        balances = dict(self._balances)
        for job in running:
            balances[job.team] = balances[job.team].holding(0, job.rate)
        machines: Counter[str] = Counter()
        products: Counter[Product] = Counter()
        for attempt in self._attempts.values():
            machines[attempt.offer.provider] += attempt.queued.requirements.nodes
            products[attempt.product] += attempt.queued.requirements.nodes
        return QueueSnapshot(
            0,
            tuple(job for jobs in self._queue.values() for job in jobs[:depth]),
            balances,
            dict(machines),
            frozenset(path for path, jobs in self._queue.items() if len(jobs) > depth),
            products=dict(products),
            running=running,
        )

    def _running(self, at: int | None) -> Iterator[RunningJob]:
        """at: those that don't train yet by then say so; None: all say when they will."""
        for identity, attempt in self._attempts.items():
            if not attempt.evicted:
                since = attempt.began + self._scenario.startup
                yield RunningJob(
                    identity, attempt.queued.attempt, attempt.queued.account_path[-2], attempt.offer.provider,
                    ((attempt.product, attempt.queued.requirements.nodes),), attempt.rate,
                    since if at is None or since <= at else None, self._ends_by(attempt),
                )  # fmt: skip

    def _ends_by(self, attempt: _Attempt) -> int | None:
        limit, trained = attempt.job.time_limit, attempt.job.work - attempt.left
        return None if limit is None else attempt.began + self._scenario.startup + limit - trained

    def _apply(self, decision: SchedulingDecision) -> Iterator[Step]:
        for start in decision.starts:
            queued, hold = start.inputs.queued, start.hold * start.nodes
            self._remove(queued)
            left = self._left[queued.job]
            ends = self._now + self._scenario.startup + left
            job = self._jobs[queued.job]
            self._attempts[queued.job] = _Attempt(job, queued, start.offer, hold, self._now, ends, left)
            self._hold(queued, hold, 1)
            yield Step(self._now, "start", job, start.attempt, start.offer, hold)
        for eviction in decision.evictions:
            attempt = self._attempts[eviction.job]
            trained = max(0, self._now - attempt.began - self._scenario.startup)
            self._left[eviction.job] = attempt.left - trained
            attempt.ends, attempt.evicted = self._now + self._scenario.drain, True
            yield Step(self._now, "evict", attempt.job, eviction.attempt, reason=eviction.reason)

    def _remove(self, job: QueuedJob) -> None:
        jobs = self._queue[job.member]
        jobs.remove(job)
        if not jobs:
            del self._queue[job.member]

    def _hold(self, job: QueuedJob, amount: int, jobs: int) -> None:
        for account in job.account_path:
            self._balances[account] = self._balances[account].holding(amount, jobs=jobs)
