# SPDX-License-Identifier: Apache-2.0
"""Periods of budgets: what a border does to limits, holds, and bills that come late. Any interleaving: test_ledger.py.

Money is spent once: however a budget is rolled over, what was ever posted is at most what was ever granted.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core.decide.billing import Line
from shoestring_core.decide.forecast import DAY, HOUR, WINDOW, Forecast
from shoestring_core.decide.periods import end_of_month
from shoestring_core.errors import BudgetExceeded, BudgetUnmovable
from shoestring_core.store import ledger
from shoestring_core.store.db import Store
from shoestring_core.store.tables import AccountRow, BudgetPeriodRow, LimitChangeRow
from shoestring_core.store.transactions import Read
from shoestring_core.wording.bills import NeverRan
from shoestring_core.wording.machines import LaunchNotNeeded
from sqlalchemy import select, update

from tests.core.store.test_ledger import at_random, run_all
from tests.core.world import Clock, World, meanwhile


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    ("rollover", "cap", "limit", "expired"),
    [("none", None, 100, 60), ("unspent", None, 160, 0), ("unspent", 25, 125, 35)],
)
def test_a_month_begins_with_its_amount_and_what_carries_over(
    world: World, rollover: str, cap: int | None, limit: int, expired: int
) -> None:
    job = world.job()
    world.limit("team", 100)
    world.settle(world.hold(job, 50), 40)
    world.period("team", rollover, cap)
    after = world.roll_over("team")
    assert (ledger.period_limit(after), ledger.period_use(after), after.overdraft) == (limit, (0, 0), 0)
    row = changes(world, after)[-1]
    assert (row.kind, row.limit_before, row.limit_after, row.base) == ("rolled_over", 100, limit, 40)
    assert row.reason["facts"]["expired"] == f"{expired / 1e6:.6f}".rstrip("0").ljust(4, "0")
    assert world.roll_over("team") is None, "the next border is a month away"
    world.hold(job, limit)
    with pytest.raises(BudgetExceeded) as refused:
        world.hold(job, 1)
    assert refused.value.fields["left"] == "0.00"
    assert world.find_discrepancies() == []


@pytest.mark.parametrize(("rollover", "carried"), [("none", 0), ("unspent", 6)])
def test_what_was_held_at_the_border_is_billed_to_the_period_that_ended(
    world: World, rollover: str, carried: int
) -> None:
    job = world.job()
    world.limit("team", 100)
    machine = world.hold(job, 10)
    world.settle(machine, 2, final=False)
    world.period("team", rollover, cap=None if rollover == "none" else 0)
    world.roll_over("team")
    assert figures(world) == (100, 0, 0)
    world.hold(job, 100)  # all of the new month
    world.settle(machine, 3, final=False)
    assert figures(world) == (100, 0, 100)
    world.period("team", rollover)  # unlimited from here on
    world.settle(machine, 4)
    assert figures(world) == (100 + carried, 0, 100)
    assert world.account("team").posted == 4
    assert world.find_discrepancies() == []


def test_an_extension_after_the_border_is_paid_by_the_new_period(world: World) -> None:
    job = world.job()
    world.limit("team", 100)
    machine = world.hold(job, 10)
    world.period("team")
    world.roll_over("team")
    world.store.write(lambda db: ledger.extend_hold(db, machine, 30, 2))
    assert figures(world) == (100, 0, 30)
    world.settle(machine, 25, final=False)
    assert figures(world) == (100, 15, 15)
    world.settle(machine, 25)
    assert figures(world) == (100, 15, 0)
    assert world.find_discrepancies() == []


def test_a_running_job_is_funded_across_a_border_that_leaves_it_nothing(world: World) -> None:
    job = world.job()
    world.limit("team", 100)
    machine = world.hold(job, 10)
    world.period("team", term=True)
    ended = world.roll_over("team")
    assert (ledger.period_limit(ended), ended.overdraft) == (0, 0)
    with pytest.raises(BudgetExceeded):
        world.store.write(lambda db: ledger.extend_hold(db, machine, 1, 2))
    world.settle(machine, 10)
    assert figures(world) == (0, 0, 0)
    assert world.roll_over("team") is None
    assert world.find_discrepancies() == []


def test_an_overdraft_is_paid_by_the_next_period(world: World) -> None:
    job = world.job()
    world.limit("team", 100)
    machine = world.hold(job, 90)
    world.limit("team", 60)
    world.period("team", "unspent")
    after = world.roll_over("team")
    assert (ledger.period_limit(after), sum(ledger.period_use(after)), after.overdraft) == (60, 30, 0)
    world.settle(machine, 70)
    assert (sum(figures(world)[1:]), world.account("team").posted) == (10, 70)
    assert world.find_discrepancies() == []


def test_soft_lines_begin_anew_with_each_period(world: World) -> None:
    job = world.job()
    world.limit("team", 100)
    world.settle(world.hold(job, 85), 85)
    world.period("team")
    world.roll_over("team")
    world.settle(world.hold(job, 85), 85)
    assert [event.data["percent"] for event in world.events("soft_line")] == [50, 80, 50, 80]


def test_a_new_limit_and_a_grant_count_from_the_border(world: World) -> None:
    job = world.job()
    world.limit("team", 100)
    world.settle(world.hold(job, 40), 40)
    world.period("team")
    world.roll_over("team")
    assert ledger.period_limit(world.limit("team", 30)) == 30
    assert ledger.period_limit(world.grant(world.account("team"), 5)) == 35
    world.hold(job, 35)
    with pytest.raises(BudgetExceeded, match=r"of the \$0.000035 of team .*, \$0.000035 is spent or held"):
        world.hold(job, 1)
    world.period("team")
    assert ledger.period_limit(world.roll_over("team")) == 30, "what was granted was for one period"
    assert world.find_discrepancies() == []


def test_a_budget_without_a_limit_has_no_periods(world: World) -> None:
    with pytest.raises(BudgetUnmovable, match="has no limit"):
        world.period("team")
    world.limit("team", 100)
    world.period("team")
    world.limit("team", None)
    assert world.roll_over("team") is None
    world.limit("team", 50)
    assert figures(world) == (50, 0, 0)
    assert world.find_discrepancies() == []


def test_a_budget_is_one_off_again(world: World) -> None:
    job = world.job()
    world.limit("team", 100)
    machine = world.hold(job, 10)
    world.period("team")
    world.roll_over("team")
    team = world.account("team").id
    world.store.write(lambda db: ledger.set_period(db, team, None, actor="ann", reason=""))
    world.store.write(lambda db: ledger.release_hold(db, machine, LaunchNotNeeded()))
    assert figures(world) == (110, 0, 0), "what a hold gives back no longer expires"
    assert world.find_discrepancies() == []


def test_two_workers_roll_a_border_over_once(world: World) -> None:
    job = world.job()
    world.limit("team", 100)
    machine = world.hold(job, 10)
    world.period("team")
    done: list[AccountRow | None] = []
    spending = [lambda: world.settle(machine, 5, final=False), lambda: world.hold(job, 20)]
    run_all(*(lambda: done.append(world.roll_over("team")) for _ in range(2)), *spending)
    assert len([one for one in done if one is not None]) == 1
    assert [row.kind for row in changes(world, world.account("team"))].count("rolled_over") == 1
    assert world.find_discrepancies() == []


@pytest.mark.any_database
@pytest.mark.parametrize(("kind", "then"), [("month", 100), ("term", 0)])
def test_a_period_that_begins_later_begins_with_the_limit_that_is_set_by_then(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str, then: int
) -> None:
    clock = Clock()
    monkeypatch.setattr(Read, "now", property(lambda _: clock.now))
    job, account = world.job(), world.account("team").id
    world.limit("team", 60)
    begins, ends = clock.now + 10 * DAY, end_of_month(clock.now + 10 * DAY, "UTC")
    plan = ledger.Plan(kind, "UTC", ends, "none", None, begins)
    world.store.write(lambda db: ledger.set_period(db, account, plan, actor="ann", reason="spring"))
    world.settle(world.hold(job, 50), 40)
    assert world.roll_over("team") is None, "until then all stays as it is"
    world.limit("team", 100)
    clock.now = begins
    after = world.roll_over("team")
    assert (ledger.period_limit(after), ledger.period_use(after)) == (100, (0, 0))
    assert changes(world, after)[-1].reason["facts"]["expired"] == "0.00006"
    assert world.roll_over("team") is None
    world.settle(world.hold(job, 100), 30)
    clock.now = ends
    assert ledger.period_limit(world.roll_over("team")) == then
    assert world.roll_over("team") is None
    assert world.find_discrepancies() == []


def test_of_two_periods_that_are_set_at_once_one_holds_and_no_writer_fails(world: World) -> None:
    world.limit("team", 100)
    account = world.account("team").id

    def set_months(rollover: str) -> None:
        for _ in range(5):
            with world.store.read() as db:
                plan = ledger.Plan("month", "UTC", db.now + DAY, rollover)
            world.store.write(lambda db, plan=plan: ledger.set_period(db, account, plan, actor="ann", reason=rollover))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(set_months, ["none", "unspent"]))
    with world.store.read() as db:
        period = ledger.load_periods(db, [account])[account]
    assert len(changes(world, world.account("team"))) == 1 + 10
    assert changes(world, world.account("team"))[-1].reason["facts"]["note"] == period.rollover
    assert world.find_discrepancies() == []


def test_a_limit_that_is_set_while_a_month_begins_is_the_months(world: World) -> None:
    """Between the reading of what was due and the border's own rows."""
    world.limit("team", 100)
    world.period("team")
    account = world.account("team").id
    changed = update(BudgetPeriodRow).where(BudgetPeriodRow.account == account).values(amount=70)
    with meanwhile(world.store, "budget_periods", changed):
        after = world.roll_over("team")
    assert ledger.period_limit(after) == 70


def test_a_limit_that_will_not_last_its_month_is_told_once_for_each_limit(world: World) -> None:
    spend_lately(world, [10] * 24)
    assert tell(world) == (None, False), "there is no limit"
    world.limit("team", 300)
    assert tell(world)[1] is False, "a one-off budget has no end that it could miss"
    team = world.account("team")
    plan = ledger.Plan("month", "UTC", team_now(world) + 10 * DAY)
    world.store.write(lambda db: ledger.set_period(db, team.id, plan, actor="ann", reason=""))
    found, told = tell(world)
    assert (found.expected > 2000, found.crosses(300), told) == (True, True, True)
    assert tell(world)[1] is False
    (said,) = world.events("forecast")
    assert (said.reason["code"], said.data["limit"]) == ("limit_wont_last", "0.0003")
    world.limit("team", 100_000)
    assert tell(world)[1] is False
    world.limit("team", 400)
    assert tell(world)[1] is True


def test_a_forecast_counts_the_jobs_below_a_budget_alone(world: World) -> None:
    spend_lately(world, [7] * 5)
    for kind in ("org", "team", "member"):
        world.limit(kind, 1000)
        with world.store.read() as db:
            found = ledger.load_forecast(db, world.account(kind))
        assert (found.points[-1][1], found.forecast.spent) == (35, 35)
        assert [amount for _, amount in found.points] == [0, 7, 14, 21, 28, 35]
    stranger = World(world.store)
    with world.store.read() as db:
        assert ledger.load_forecast(db, stranger.account("team")).points[-1][1] == 0


def test_a_forecast_counts_what_was_given_back_in_the_hour_when_it_was(world: World) -> None:
    machine = world.hold(world.job(), 10)
    settle_before(world, machine, 8, 2 * HOUR, final=False)
    settle_before(world, machine, 5, 0)
    with world.store.read() as db:
        points = ledger.load_forecast(db, world.account("team")).points
    assert [amount for _, amount in points] == [0, 8, 5]


def test_the_points_of_a_forecast_rise_in_time_from_its_first_hour_on(world: World) -> None:
    job = world.job()
    for ago in (WINDOW - HOUR // 3600, HOUR):
        settle_before(world, world.hold(job, 10), 10, ago)
    with world.store.read() as db:
        found = ledger.load_forecast(db, world.account("team"))
    times = [at for at, _ in found.points]
    assert times == sorted(set(times))
    assert times[0] == found.starts_at


def test_a_one_off_budget_is_drawn_from_when_it_was_first_spent_from(world: World) -> None:
    def start() -> tuple[int, int]:
        with world.store.read() as db:
            return (found := ledger.load_forecast(db, world.account("team"))).starts_at, found.points[-1][0]

    starts_at, now = start()
    assert starts_at == now
    settle_before(world, world.hold(world.job(), 10), 10, 3 * HOUR)
    starts_at, now = start()
    assert starts_at == (now - 3 * HOUR) // HOUR * HOUR
    settle_before(world, world.hold(world.job(), 10), 10, WINDOW + DAY)
    starts_at, now = start()
    assert starts_at == now - WINDOW


def test_a_correction_after_a_border_is_not_what_was_held_at_it(world: World) -> None:
    world.limit("team", 100)
    machine = world.hold(world.job(), 10)
    world.settle(machine, 4, final=False)
    world.period("team")
    world.roll_over("team")
    assert world.account("team").carried == 6
    world.settle(machine, 3, final=False)
    assert world.account("team").carried == 6
    assert world.find_discrepancies() == []


def spend_lately(world: World, hours: list[int]) -> None:
    """Post an amount in each of the last hours, the last of them now."""
    job = world.job()
    for ago, amount in enumerate(reversed(hours)):
        settle_before(world, world.hold(job, amount), amount, ago * HOUR)


def settle_before(world: World, machine: UUID, amount: int, ago: int, *, final: bool = True) -> None:
    """Post what a machine has cost, so many µs ago."""

    def settle(db) -> None:
        db.now = db.now - ago
        ledger.settle(db, machine, [Line("machine", amount, NeverRan())], final=final)

    world.store.write(settle)


def tell(world: World) -> tuple[Forecast | None, bool]:
    """The forecast of the team's budget, and whether somebody was told about it."""
    team = world.account("team")
    told = world.store.write(lambda db: ledger.tell_forecast(db, team.id))
    with world.store.read() as db:
        return ledger.load_forecast(db, team).forecast, told


def team_now(world: World) -> int:
    with world.store.read() as db:
        return db.now


steps = st.lists(
    st.tuples(st.sampled_from(["hold", "part", "final", "release", "border", "cut"]), st.integers(0, 60)),
    min_size=4, max_size=20,
)  # fmt: skip


@given(rollover=st.sampled_from(["none", "unspent"]), cap=st.none() | st.integers(0, 50), steps=steps)
@at_random
def test_what_is_ever_spent_is_at_most_what_was_ever_granted(
    store: Store, rollover: str, cap: int | None, steps: list[tuple[str, int]]
) -> None:
    """Each border adds at most its amount to what could be spent before, and what is carried over was there before."""
    world = World(store)
    job, machines, amount = world.job(), [], 100
    most = world.limit("team", amount).limit_micro
    for step, size in steps:
        if step == "hold":
            try:
                machines.append((world.hold(job, size), size))
            except BudgetExceeded:
                pass
        elif step == "border":
            world.period("team", rollover, cap)
            most += amount
            left = ledger.period_limit(world.account("team")) if rollover == "unspent" else 0
            after = world.roll_over("team")
            assert amount <= ledger.period_limit(after) <= amount + min(left, left if cap is None else cap)
        elif step == "cut":
            amount = size + 1
            most = max(most, world.limit("team", amount).limit_micro)
        elif machines:
            machine, held = machines[size % len(machines)]
            if step == "release":
                world.store.write(lambda db, m=machine: ledger.release_hold(db, m, LaunchNotNeeded()))
            else:
                world.settle(machine, min(size, held), final=step == "final")
            if step != "part":
                machines.remove((machine, held))
        team = world.account("team")
        assert team.posted + team.held <= team.limit_micro + team.overdraft
        assert team.posted + team.held <= most
        assert 0 <= team.carried <= team.held
        assert len(changes(world, team)) == team.version
    assert world.find_discrepancies() == []


def figures(world: World) -> tuple[int | None, int, int]:
    """(limit, spent, held) of the team's period."""
    team = world.account("team")
    return ledger.period_limit(team), *ledger.period_use(team)


def changes(world: World, account: AccountRow) -> list[LimitChangeRow]:
    with world.store.read() as db:
        rows = select(LimitChangeRow).where(LimitChangeRow.account == account.id).order_by(LimitChangeRow.version)
        return list(db.sql.scalars(rows))
