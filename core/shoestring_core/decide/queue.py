# SPDX-License-Identifier: Apache-2.0
"""The queue: the jobs in it, the accounts that pay for them, and whose turn it is.

Next is the team, and in it the member, that has used the fewest dollars for its weight: what it spent, which counts for
less the longer ago it was, and what is held for it now. A start's hold counts at once. A member's own jobs start in the
order in which they came, and so do all while nobody has used anything: how long a job waits never puts its team first.
Before all others come jobs that would miss their deadline otherwise, and jobs with which a team stays within its
guaranteed rate of dollars per hour.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import TypeAlias
from uuid import UUID

from shoestring_core.decide.deadlines import DeadlineTurn
from shoestring_core.decide.quotas import Product
from shoestring_core.decide.refusals import RecentRefusal
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import S

MIN_WEIGHT, MAX_WEIGHT = 1, 1000
MAX_CAP = 1_000_000
"""The largest concurrency cap, of jobs and of GPUs."""

HALF_LIFE = 7 * 86_400 * S
"""After so long, a dollar that was spent counts half, unless the worker's settings say otherwise."""

MemberPath: TypeAlias = tuple[UUID, ...]
"""A member's accounts, from the member's own to the organization's."""


@dataclass(slots=True)
class AccountBalance:
    """An account at the time of the decision, in micro-dollars. Nobody changes one: `holding` makes another. It is not
    frozen because that doubles what making one takes, and a schedule makes three for each start.

    recent  what it spent, each amount halved with every half-life that has passed since
    weight  a team of weight 2 gets twice the dollars of one of weight 1; a member of a team likewise
    rate    of a team: what its running machines cost an hour
    guaranteed_rate  of a team: what they may cost before it borrows from others; 0: all is borrowed
    max_jobs  of a team or member: how many of its jobs may run at once, of which `jobs` do; None: no cap
    max_gpus  how many GPUs they may have at once, and `gpus` that they have
    """

    id: UUID
    name: str
    limit: int | None
    posted: int
    held: int
    overdraft: int
    recent: int = 0
    weight: int = 1
    rate: int = 0
    guaranteed_rate: int = 0
    max_jobs: int | None = None
    max_gpus: int | None = None
    jobs: int = 0
    gpus: int = 0

    @property
    def used(self) -> int:
        """What counts towards its share."""
        return self.recent + self.held

    @property
    def used_by_weight(self) -> float:
        """The lower it is, the sooner it is its turn."""
        return (self.recent + self.held) / self.weight

    @property
    def borrowed_rate(self) -> int:
        return max(0, self.rate - self.guaranteed_rate)

    @property
    def share(self) -> float:
        """The more a team borrows for its weight, the sooner it has to give back."""
        return self.borrowed_rate / self.weight

    def guarantees(self, rate: int) -> bool:
        """Whether the team borrows nothing if machines at this rate are added."""
        return 0 < self.guaranteed_rate >= self.rate + rate

    def holding(self, amount: int, rate: int = 0, jobs: int = 0, gpus: int = 0) -> AccountBalance:
        """This account once it holds `amount` more, for so many more jobs and GPUs that cost `rate` more an hour."""
        return AccountBalance(
            self.id, self.name, self.limit, self.posted, self.held + amount, self.overdraft, self.recent, self.weight,
            self.rate + rate, self.guaranteed_rate, self.max_jobs, self.max_gpus, self.jobs + jobs, self.gpus + gpus,
        )  # fmt: skip

    @property
    def runs_all_it_may(self) -> bool:
        """Whether no other of its jobs may run now."""
        return self.max_jobs is not None and self.jobs >= self.max_jobs

    def shortfall(self, amount: int) -> int:
        """How much is missing to hold `amount` more; 0: nothing."""
        if self.limit is None:
            return 0
        missing = self.posted + self.held + amount - self.limit
        return max(missing, 0)


def decayed(amount: int, elapsed: int, half_life: int) -> int:
    """What is left of an amount after so many µs; all of it if the clock was set back."""
    return round(amount * math.exp2(-max(elapsed, 0) / half_life))


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue.

    account_path          its accounts, leaf to root
    attempt               number of the attempt that would open
    queued_at             when it came (µs UTC)
    reopened              that attempt was open before and launched no machine
    terminating_machines  of earlier attempts: there are never two live machines for one slot
    closing               its last attempt is not closed yet, even if its machines have terminated
    not_before            it waits for a backoff until then (µs UTC)
    refused               because a provider refused machines to its last attempt
    time_limit            µs that it may train, over all its attempts; None: no limit
    deadline              where it is to train, to keep its deadline; None: it has none
    """

    job: UUID
    requirements: Requirements
    account_path: tuple[UUID, ...]
    attempt: int
    queued_at: int = 0
    reopened: bool = False
    terminating_machines: int = 0
    closing: bool = False
    not_before: int = 0
    refused: bool = False
    time_limit: int | None = None
    deadline: DeadlineTurn | None = None

    @property
    def is_urgent(self) -> bool:
        """It could be late if it didn't start now; it is paid from what is committed to it."""
        return self.deadline is not None and self.deadline.market == "on_demand"

    @property
    def committed(self) -> int:
        return self.deadline.committed if self.deadline else 0

    @property
    def member(self) -> MemberPath:
        return self.account_path[1:]


@dataclass(frozen=True)
class RunningJob:
    """A job whose attempt is open and wanted.

    team      its account
    provider  of all its machines
    machines  that are alive, by what they are
    rate      what they cost an hour, in micro-dollars
    since     when its attempt began to train (µs UTC); None: not yet
    ends_by   when its time limit ends it (µs UTC); None: it has none
    vcpus     what they count against quotas, by `quotas.quota_id`
    """

    job: UUID
    attempt: int
    team: UUID
    provider: str
    machines: tuple[tuple[Product, int], ...]
    rate: int
    since: int | None
    ends_by: int | None = None
    vcpus: Mapping[str, int] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        return sum(number for _, number in self.machines)


@dataclass(frozen=True)
class QueueSnapshot:
    """What a schedule is made from. `machines_in_use` counts them by provider.

    products    the same machines, by what they are
    running     the jobs that have them; read only if a team has a guaranteed rate, or a queued job a time limit
    unread      members who have more queued jobs, behind those in `queue`
    unreadable  jobs that are left out of the queue because their stored spec or sizing can't be read, and why
    """

    plan_version: int
    queue: tuple[QueuedJob, ...]
    balances: dict[UUID, AccountBalance]
    machines_in_use: dict[str, int]
    unread: frozenset[MemberPath] = frozenset()
    unreadable: dict[UUID, str] = field(default_factory=dict)
    refusals: tuple[RecentRefusal, ...] = ()
    products: dict[Product, int] = field(default_factory=dict)
    running: tuple[RunningJob, ...] = ()


def _by_deadline(job: QueuedJob) -> tuple[int, UUID]:
    return (job.deadline.case.plan.deadline if job.deadline and job.deadline.case else 0), job.job


_Turn: TypeAlias = tuple[bool, tuple[float, ...], int, int, int]
"""Whether the team borrows for the member's next job; what both have used; when that job came, its id, the member's
place in the list. The smallest is next."""


@dataclass
class _Team:
    """changes: how often what it or its members hold has changed."""

    changes: int = 0


@dataclass
class _MemberQueue:
    """A member's jobs, in order. None at the end: there are more, which were not read.

    balances  of the member's accounts up to the team's
    used      by weight: what the team has used, then the member
    as_of     `changes` of the team when these were read
    """

    path: MemberPath
    team: _Team
    jobs: deque[QueuedJob | None] = field(default_factory=deque)
    balances: tuple[AccountBalance, ...] = ()
    used: tuple[float, ...] = ()
    as_of: int = -1


class FairQueue:
    """The queued jobs of a snapshot in the order of service.

    balances  by account. The caller adds what starts hold and cost an hour, which moves their teams and members back,
              and says so by `balances_changed`
    rate_of   what the machines of a job would cost an hour, in micro-dollars
    """

    def __init__(
        self, snapshot: QueueSnapshot, balances: Mapping[UUID, AccountBalance], rate_of: Callable[[QueuedJob], int]
    ) -> None:
        self._balances, self._rate_of = balances, rate_of
        self._teams: dict[UUID, _Team] = {}
        members: dict[UUID, _MemberQueue] = {}
        self._urgent = sorted((job for job in snapshot.queue if job.is_urgent), key=_by_deadline)
        ordinary = [job for job in snapshot.queue if not job.is_urgent] if self._urgent else snapshot.queue
        for job in sorted(ordinary, key=lambda one: (one.queued_at, one.job)):
            self._jobs_of(members, job.member).append(job)
        for path in sorted(snapshot.unread):
            self._jobs_of(members, path).append(None)
        self._members = list(members.values())
        self._turns = [self._turn_of(place) for place in range(len(self._members))]
        heapify(self._turns)

    def balances_changed(self, team: UUID) -> None:
        """Of the team or its members."""
        if team in self._teams:
            self._teams[team].changes += 1

    def __iter__(self) -> Iterator[tuple[tuple[AccountBalance, ...], QueuedJob | None]]:
        """The balances of the member whose turn it is, and the job; None: it is one that was not read. Urgent jobs come
        first."""
        for urgent in self._urgent:
            yield tuple([self._balances[account] for account in urgent.member]), urgent
        while self._turns:
            place = self._turns[0][-1]
            member = self._members[place]
            if member.as_of != member.team.changes and (turn := self._turn_of(place)) != self._turns[0]:
                heapreplace(self._turns, turn)  # others of the team have started: what was used only grows
                continue
            yield (*member.balances, self._balances[member.path[-1]]), member.jobs.popleft()
            if member.jobs:
                heapreplace(self._turns, self._turn_of(place))
            else:
                heappop(self._turns)

    def _jobs_of(self, members: dict[UUID, _MemberQueue], path: MemberPath) -> deque[QueuedJob | None]:
        member = members.get(path[0])
        if member is None:
            member = members[path[0]] = _MemberQueue(path, self._teams.setdefault(path[-2], _Team()))
        return member.jobs

    def _turn_of(self, place: int) -> _Turn:
        member = self._members[place]
        if member.as_of != member.team.changes:
            self._read_balances(member)
        job = member.jobs[0]
        came, id_ = (job.queued_at, job.job.int) if job else (-1, 0)
        return self._borrows(member), member.used, came, id_, place

    def _read_balances(self, member: _MemberQueue) -> None:
        member.balances = tuple([self._balances[account] for account in member.path[:-1]])
        member.used = tuple([balance.used_by_weight for balance in reversed(member.balances)])
        member.as_of = member.team.changes

    def _borrows(self, member: _MemberQueue) -> bool:
        """Whether the team borrows for the member's next job."""
        team = member.balances[-1]
        if not team.guaranteed_rate:
            return True
        job = member.jobs[0]
        return not team.guarantees(self._rate_of(job) if job else 1)
