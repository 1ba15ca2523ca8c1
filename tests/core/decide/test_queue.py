# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: dollars are shared by weight, in whatever order jobs came and however the work is cut into jobs."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.queue import AccountBalance, QueuedJob, QueueSnapshot, decayed
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import SchedulingDecision, schedule_jobs
from shoestring_core.decide.start import Start
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.wording import waits

NOW = 1_800_000_000 * S
HOUR, DAY = 3600 * S, 86_400 * S
HALF_LIFE = 7 * DAY
TIMEOUTS = {"sim": Timeouts(funding_lease=60 * S)}
PRICE = "1.00"
DOLLAR = money.MICRO
ORG = UUID(int=1)
A, B, C = (UUID(int=10 * number) for number in (1, 2, 3))


def machines(slots: int | None) -> Offer:
    return Offer("sim", "sim", "", "gpu", "spot", PRICE, PRICE, slots, "test", True)


def member(team: UUID, number: int = 1) -> UUID:
    return UUID(int=team.int + number)


def queued(number: int, team: UUID, user: int = 1, nodes: int = 1, **fields: object) -> QueuedJob:
    """`number` names the job, and is when it came."""
    path = UUID(int=1000 + number), member(team, user), team, ORG
    return QueuedJob(UUID(int=number), Requirements(nodes), path, 1, **{"queued_at": number} | fields)


def snapshot(*queue: QueuedJob, machines_in_use: int = 0, **balances: AccountBalance) -> QueueSnapshot:
    known = {one.id: one for one in balances.values()}
    accounts = {account for job in queue for account in job.account_path} - known.keys()
    known |= {account: balance(account) for account in accounts}
    return QueueSnapshot(1, queue, known, {"sim": machines_in_use})


def balance(
    account: UUID, *, limit: int | None = None, held: int = 0, recent: int = 0, weight: int = 1, guaranteed: int = 0
):
    return AccountBalance(account, f"account {account.int}", limit, 0, held, 0, recent, weight, 0, guaranteed)


def decide(snap: QueueSnapshot, slots: int | None) -> SchedulingDecision:
    return schedule_jobs(snap, [machines(slots)], NOW, TIMEOUTS)


def started(snap: QueueSnapshot, slots: int | None = 1) -> list[int]:
    return [start.job.int for start in decide(snap, slots).starts]


# Whose turn it is


def test_without_any_spending_jobs_start_in_the_order_in_which_they_came():
    assert started(snapshot(queued(3, A), queued(1, B), queued(2, A, 2)), 2) == [1, 2]


def test_jobs_of_one_member_start_in_the_order_in_which_they_came_whatever_was_spent():
    used = balance(A, recent=5 * DOLLAR, held=DOLLAR)
    assert started(snapshot(queued(2, A), queued(1, A), queued(3, A), a=used), 3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("a", "b", "first"),
    [
        (balance(A, recent=2 * DOLLAR), balance(B, recent=DOLLAR), 2),
        (balance(A, held=2 * DOLLAR), balance(B, recent=DOLLAR), 2),
        (balance(A, recent=DOLLAR, held=DOLLAR), balance(B, recent=DOLLAR), 2),
        (balance(A, recent=2 * DOLLAR, weight=3), balance(B, recent=DOLLAR), 1),
        (balance(A, recent=2 * DOLLAR, weight=2), balance(B, recent=DOLLAR), 1),  # equal: the first that came
    ],
)
def test_the_team_that_used_the_fewest_dollars_for_its_weight_is_next(a: AccountBalance, b: AccountBalance, first: int):
    assert started(snapshot(queued(1, A), queued(2, B), a=a, b=b)) == [first]


def test_a_job_that_has_waited_for_long_does_not_put_its_team_before_one_that_used_less():
    old, new = queued(1, A), queued(9 * DAY, B)
    assert started(snapshot(old, new, a=balance(A, recent=2), b=balance(B, recent=1))) == [9 * DAY]


def test_within_a_team_the_member_who_used_least_is_next_and_members_of_other_teams_do_not_count():
    ann, bob = balance(member(A, 1), recent=3 * DOLLAR), balance(member(A, 2), recent=2 * DOLLAR)
    team, other, eve = balance(A, recent=5 * DOLLAR), balance(B, recent=6 * DOLLAR), balance(member(B), recent=DOLLAR)
    queue = queued(1, A, 1), queued(2, A, 2), queued(3, B)
    assert started(snapshot(*queue, ann=ann, bob=bob, team=team, other=other, eve=eve)) == [2]


def test_what_a_start_holds_counts_at_once_so_that_teams_alternate():
    queue = [queued(number, A) for number in (1, 2, 3)] + [queued(number, B) for number in (4, 5, 6)]
    assert started(snapshot(*queue), 4) == [1, 4, 2, 5]


def test_a_team_of_twice_the_weight_starts_twice_the_jobs():
    queue = [queued(number, A) for number in range(1, 9)] + [queued(number, B) for number in range(9, 17)]
    starts = started(snapshot(*queue, b=balance(B, weight=2)), 6)
    assert sum(number > 8 for number in starts) == 4


# Nobody is held up for nothing


def test_a_job_that_cannot_start_for_its_own_reasons_keeps_no_other_team_from_starting():
    limit = balance(UUID(int=1001), limit=1)
    queue = queued(1, A), queued(2, A, nodes=9), queued(3, A, not_before=NOW + S), queued(4, B)
    assert started(snapshot(*queue, own=limit, b=balance(B, recent=9 * DOLLAR)), 2) == [4]


def test_a_team_without_money_keeps_neither_slots_nor_the_money_of_others_beyond_its_first_job():
    """Its second job could not start before the first, so it reserves nothing."""
    queue = queued(1, A, nodes=2), queued(2, A, nodes=4), queued(3, A, terminating_machines=1), queued(4, B)
    hold = decide(snapshot(queued(1, A)), 4).starts[0].hold
    broke, org = balance(A, limit=hold), balance(ORG, limit=3 * hold)
    decision = decide(snapshot(*queue, a=broke, org=org, b=balance(B, recent=DOLLAR)), 2)
    assert [start.job.int for start in decision.starts] == [4]
    assert decision.short_accounts == {A}


def test_a_gang_of_the_team_whose_turn_it_is_is_not_overtaken_by_smaller_jobs():
    queue = queued(1, A, nodes=2), queued(2, B)
    assert started(snapshot(*queue, machines_in_use=1, b=balance(B, recent=DOLLAR)), 2) == []


# Why another goes first


def test_a_job_that_waits_for_slots_says_that_the_other_team_has_used_less():
    a, b = balance(A, recent=3_104_000, weight=2), balance(B, recent=400_000)
    queue = queued(1, A), queued(2, B, nodes=2)
    decision = decide(snapshot(*queue, a=a, b=b, machines_in_use=1), 2)
    first = waits.LessUsed("account 20", "account 10", "0.40", "3.10", 1, 2)
    assert decision.waits[1].detail == waits.MachinesInUse(1, 1, 2, behind=True, first=first)


def test_of_two_teams_that_used_the_same_the_later_says_only_that_another_job_is_earlier():
    (_, behind) = decide(snapshot(queued(1, A, nodes=2), queued(2, B), machines_in_use=1), 2).waits
    assert behind.detail == waits.MachinesInUse(1, 1, 2, behind=True, first=None)


def test_used_dollars_are_told_to_a_cent_and_less_than_one_to_two_digits():
    a, b = balance(A, recent=123_456), balance(B, recent=1_234)
    (_, behind) = decide(snapshot(queued(1, A), queued(2, B, nodes=2), a=a, b=b, machines_in_use=1), 2).waits
    assert behind.detail.first == waits.LessUsed("account 20", "account 10", "0.0012", "0.12", 1, 1)


def test_a_job_that_waits_for_a_shared_budget_says_that_the_other_member_has_used_less():
    hold = decide(snapshot(queued(1, A)), 4).starts[0].hold
    team, bob = balance(A, limit=hold), balance(member(A, 2), recent=DOLLAR)
    waiting = decide(snapshot(queued(1, A, 2), queued(2, A, 1, nodes=2), a=team, bob=bob), 4).waits
    first = waits.LessUsed("account 11", "account 12", "0.00", "1.00", 1, 1)
    assert [wait.job.int for wait in waiting] == [2, 1]
    assert waiting[1].detail == waits.BehindJobShortOfBudget("account 10", first)


# What is not read


def test_what_was_not_read_is_next_only_where_it_may_start():
    """Here job 2, which comes before job 3."""
    queue = queued(1, A), queued(3, B)
    part = replace(snapshot(*queue, b=balance(B, recent=DOLLAR)), unread=frozenset({queue[0].member}))
    assert started(part, 3) == [1]
    assert not decide(part, 3).complete
    full = replace(part, machines_in_use={"sim": 3})
    assert decide(full, 3).complete
    assert [wait.job.int for wait in decide(full, 3).waits] == [1, 3]


def test_a_queue_that_is_read_as_far_as_needed_starts_what_the_whole_queue_starts(seed: int):
    rng = random.Random(seed)
    for _ in range(100):
        teams = [A, B, C]
        queue = [
            queued(
                number, rng.choice(teams), rng.choice((1, 2)), rng.choice((1, 1, 2, 9)),
                not_before=rng.choice((0, 0, NOW + S)), terminating_machines=rng.choice((0, 0, 0, 1)),
            )
            for number in range(1, 25)
        ]  # fmt: skip
        accounts = [
            balance(
                one, limit=rng.choice((None, None, 50_000)), recent=rng.randrange(4), weight=rng.choice((1, 2)),
                guaranteed=rng.choice((0, 0, 2 * DOLLAR)),
            )
            for one in (ORG, *teams)
        ]  # fmt: skip
        snap = snapshot(*queue, **{str(one.id): one for one in accounts}, machines_in_use=rng.randrange(3))
        slots = rng.choice((2, 6, None))
        whole, depth = decide(snap, slots), 1
        while not (part := decide(first_of_each(snap, depth), slots)).complete:
            depth += 1
        assert part.starts == whole.starts


def first_of_each(snap: QueueSnapshot, depth: int) -> QueueSnapshot:
    seen: Counter[tuple[UUID, ...]] = Counter()
    read = []
    for job in snap.queue:
        seen[job.member] += 1
        if seen[job.member] <= depth:
            read.append(job)
    more = frozenset(path for path, count in seen.items() if count > depth)
    return replace(snap, queue=tuple(read), unread=more)


# Thirty days


@dataclass
class Month:
    """Thirty days of teams that always have jobs waiting, on a clock that jumps from one job's end to the next.

    hours  how long each team's jobs run
    """

    slots: int
    hours: dict[UUID, float]
    weights: dict[UUID, int] = field(default_factory=dict)
    spent: Counter[UUID] = field(default_factory=Counter)

    def run(self) -> Counter[UUID]:
        recent, held, running = Counter[UUID](), Counter[UUID](), Counter[UUID]()
        ends: list[tuple[int, int, UUID, int]] = []
        now, number = 0, 0
        waiting = {team: self._submit(team, index) for index, team in enumerate(self.hours)}
        while now < 30 * DAY:
            balances = {
                team: balance(team, recent=recent[team], held=held[team], weight=self.weights.get(team, 1))
                for team in self.hours
            }
            snap = snapshot(*waiting.values(), machines_in_use=sum(running.values()))
            snap.balances.update(balances)
            for start in schedule_jobs(snap, [machines(self.slots)], NOW, TIMEOUTS).starts:
                team = start.inputs.queued.account_path[-2]
                number += 1
                heappush(ends, (now + round(self.hours[team] * HOUR), number, team, start.hold))
                held[team] += start.hold
                running[team] += 1
                waiting[team] = self._submit(team, len(self.hours) + number)
            if sum(running.values()) < self.slots:
                continue
            then, _, ended, hold = heappop(ends)
            for team in self.hours:
                cost = money.cost(PRICE, then - now) * running[team]
                self.spent[team] += cost
                recent[team] = decayed(recent[team], then - now, HALF_LIFE) + cost
            now = then
            running[ended] -= 1
            held[ended] -= hold
        return self.spent

    @staticmethod
    def _submit(team: UUID, number: int) -> QueuedJob:
        return queued(number + 1, team)


def test_teams_of_weights_1_and_2_that_always_have_jobs_waiting_share_the_dollars_1_to_2():
    spent = Month(slots=3, hours={A: 1, B: 1.5}, weights={B: 2}).run()
    assert spent[B] / spent[A] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(("parts", "slots", "hours"), [(2, 5, 24), (30, 5, 24), (1000, 2, 100)])
def test_a_team_that_splits_its_jobs_gains_no_dollars_in_thirty_days(parts: int, slots: int, hours: int):
    """Long jobs, whose cost is known only while they run, gain something; splitting them gives it back."""
    whole, split = (Month(slots, hours={A: each, B: 3, C: 3}).run() for each in (hours, hours / parts))
    assert split[A] <= 1.01 * whole[A]
    if parts > 2:
        assert split[A] / split.total() == pytest.approx(1 / 3, rel=0.01)


def test_what_was_spent_counts_half_after_each_half_life_and_nothing_grows_when_a_clock_is_set_back():
    assert decayed(1_000_000, 2 * HALF_LIFE, HALF_LIFE) == 250_000
    assert decayed(1_000_000, -DAY, HALF_LIFE) == 1_000_000
    assert decayed(1_000_000, 10_000 * HALF_LIFE, HALF_LIFE) == 0


def test_a_start_names_what_it_was_decided_from():
    start = decide(snapshot(queued(1, A), a=balance(A, recent=7, weight=3)), 1).starts[0]
    assert isinstance(start, Start)
    assert [(one.recent, one.weight) for one in start.inputs.balances] == [(0, 1), (0, 1), (7, 3), (0, 1)]
