# SPDX-License-Identifier: Apache-2.0
"""The queue: the jobs in it, the accounts that pay for them, and whose turn it is.

Next is the team, and in it the member, that has used the fewest dollars for its weight: what it spent, which counts for
less the longer ago it was, and what is held for it now. A start's hold counts at once. A member's own jobs start in the
order in which they came, and so do all while nobody has used anything: how long a job waits never puts its team first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import TypeAlias
from uuid import UUID

from shoestring_core.decide.quotas import Product
from shoestring_core.decide.refusals import RecentRefusal
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import S

MIN_WEIGHT, MAX_WEIGHT = 1, 1000

HALF_LIFE = 7 * 86_400 * S
"""After so long, a dollar that was spent counts half, unless the worker's settings say otherwise."""

MemberPath: TypeAlias = tuple[UUID, ...]
"""A member's accounts, from the member's own to the organization's."""


@dataclass(frozen=True)
class AccountBalance:
    """An account at the time of the decision, in micro-dollars.

    recent  what it spent, each amount halved with every half-life that has passed since
    weight  a team of weight 2 gets twice the dollars of one of weight 1; a member of a team likewise
    """

    id: UUID
    name: str
    limit: int | None
    posted: int
    held: int
    overdraft: int
    recent: int = 0
    weight: int = 1

    @property
    def used(self) -> int:
        """What counts towards its share."""
        return self.recent + self.held

    @property
    def used_by_weight(self) -> float:
        """The lower it is, the sooner it is its turn."""
        return self.used / self.weight

    def holding(self, amount: int) -> AccountBalance:
        """This account once it holds `amount` more."""
        return AccountBalance(
            self.id, self.name, self.limit, self.posted, self.held + amount, self.overdraft, self.recent, self.weight
        )

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
    terminating_machines  of earlier attempts: there are never two living machines for one slot
    closing               its last attempt is not closed yet, even if its machines have terminated
    not_before            it waits for a backoff until then (µs UTC)
    refused               because a provider refused machines to its last attempt
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

    @property
    def member(self) -> MemberPath:
        return self.account_path[1:]


@dataclass(frozen=True)
class QueueSnapshot:
    """What a schedule is made from. `machines_in_use` counts them by provider.

    products    the same machines, by what they are
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


_Turn: TypeAlias = tuple[tuple[float, ...], int, int, int]
"""What a team and its member have used, when the member's next job came, its id, the member's place in the list."""


@dataclass(frozen=True)
class _MemberQueue:
    """A member's jobs, in order. None at the end: there are more, which were not read."""

    path: MemberPath
    jobs: deque[QueuedJob | None] = field(default_factory=deque)


class FairQueue:
    """The queued jobs of a snapshot in the order of service.

    balances  by account; the caller adds what starts hold, which moves their teams and members back
    """

    def __init__(self, snapshot: QueueSnapshot, balances: Mapping[UUID, AccountBalance]) -> None:
        self._balances = balances
        members: dict[MemberPath, _MemberQueue] = {}
        for job in sorted(snapshot.queue, key=lambda one: (one.queued_at, one.job)):
            path = job.member
            if (member := members.get(path)) is None:
                member = members[path] = _MemberQueue(path)
            member.jobs.append(job)
        for path in sorted(snapshot.unread):
            members.setdefault(path, _MemberQueue(path)).jobs.append(None)
        self._members = list(members.values())
        self._turns = [self._turn_of(place, self._used(place)) for place in range(len(self._members))]
        heapify(self._turns)

    def __iter__(self) -> Iterator[tuple[MemberPath, QueuedJob | None]]:
        """The member whose turn it is, and the job; None: it is one that was not read."""
        while self._turns:
            used, *_, place = self._turns[0]
            if (used_now := self._used(place)) != used:  # others of the team have started: what was used only grows
                heapreplace(self._turns, self._turn_of(place, used_now))
                continue
            member = self._members[place]
            job = member.jobs.popleft()
            if member.jobs:
                heapreplace(self._turns, self._turn_of(place, used))
            else:
                heappop(self._turns)
            yield member.path, job

    def _used(self, place: int) -> tuple[float, ...]:
        """By weight: what the team has used, then its member."""
        return tuple([self._balances[account].used_by_weight for account in self._members[place].path[-2::-1]])

    def _turn_of(self, place: int, used: tuple[float, ...]) -> _Turn:
        """What orders the turns of members: the smallest is next. The team comes before the member."""
        job = self._members[place].jobs[0]
        return (used, -1, 0, place) if job is None else (used, job.queued_at, job.job.int, place)
