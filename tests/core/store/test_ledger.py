# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shoestring_core.decide.billing import Line
from shoestring_core.errors import BudgetExceeded, BudgetUnmovable, NotFound, PreconditionFailed, StaleTransition
from shoestring_core.store import events, ledger
from shoestring_core.store.db import Store
from shoestring_core.store.ledger import balances, limits, settlement
from shoestring_core.store.tables import AccountRow, EventRow, HoldRow, JobRow, TeamRow, TransferRow
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording.bills import NeverRan
from shoestring_core.wording.machines import LaunchNotNeeded
from sqlalchemy import exc, func, select, text, update

from tests.core.world import World, meanwhile
from tests.servers import PATIENCE_S
from tests.statements import counted

LEVELS = ["job", "member", "team", "org"]


# Holds


def test_a_hold_counts_on_every_level_until_it_is_released(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    assert world.totals(job) == [(0, 100, 0)] * 4
    assert world.store.write(lambda db: ledger.release_hold(db, machine, LaunchNotNeeded())) == 100
    for nothing_held in (machine, world.machine(job)):
        assert world.store.write(lambda db, id_=nothing_held: ledger.release_hold(db, id_, LaunchNotNeeded())) == 0
    assert world.totals(job) == [(0, 0, 0)] * 4
    assert [event.data["action"] for event in world.events("cost")] == ["held", "released"]
    assert world.find_discrepancies() == []


@pytest.mark.any_database
def test_nothing_is_left_of_a_budget_that_is_overdrawn_by_a_micro_dollar(world: World) -> None:
    job = world.job()
    world.hold(job, 11)
    world.limit("team", 10)
    with pytest.raises(BudgetExceeded, match="overdrawn") as refused:
        world.hold(job, 5)
    assert (refused.value.fields["left"], refused.value.fields["short_by"]) == ("0.00", "0.000005")


@pytest.mark.any_database
def test_a_limit_of_nothing_is_named_as_such(world: World) -> None:
    job = world.job()
    world.limit("team", 0)
    with pytest.raises(BudgetExceeded) as refused:
        world.hold(job, 1)
    assert refused.value.fields["short_by"] == "0.000001"
    assert "of the $0.00 of team" in refused.value.message
    world.limit("team", 7)
    with pytest.raises(BudgetExceeded, match=r"of the \$0.000007 of team"):
        world.hold(job, 8)


def test_what_is_left_is_the_limit_less_what_is_spent_and_held(world: World) -> None:
    job = world.job()
    world.settle(world.hold(job, 100), 30)
    world.hold(job, 5)
    world.limit("team", 50)
    with pytest.raises(BudgetExceeded) as refused:
        world.hold(job, 20)
    assert (refused.value.fields["left"], refused.value.fields["short_by"]) == ("0.000015", "0.000005")


@pytest.mark.parametrize("level", LEVELS)
def test_a_hold_may_use_a_limit_to_the_last_micro_dollar(world: World, level: str) -> None:
    job = world.job()
    world.limit(level, 100, job)
    world.hold(job, 60)
    with pytest.raises(BudgetExceeded) as refused:
        world.hold(job, 41)
    assert refused.value.fields["account"] == str(world.account(level, job).id)
    assert refused.value.fields["short_by"] == "0.000001"
    assert level.replace("org", "organization") in refused.value.message
    assert refused.value.hint
    assert world.totals(job) == [(0, 60, 0)] * 4
    world.hold(job, 40)
    assert world.totals(job) == [(0, 100, 0)] * 4
    assert world.find_discrepancies() == []


def test_a_refused_hold_leaves_its_transaction_as_it_was(world: World) -> None:
    """The planner continues with the next job in the same transaction."""
    poor, other = world.job("0.00001"), world.job()
    machines = [world.machine(poor), world.machine(other)]

    def work(db):
        for job, machine in zip([poor, other], machines, strict=True):
            account = ledger.job_account(db, job.id).id
            try:
                ledger.place_hold(db, machine=machine, account=account, rate_cap="1", amount=50, funded_until=1)
            except BudgetExceeded:
                assert job is poor

    world.store.write(work)
    assert world.totals(poor) == [(0, 0, 0), (0, 50, 0), (0, 50, 0), (0, 50, 0)]
    assert world.totals(other) == [(0, 50, 0)] * 4
    assert world.find_discrepancies() == []


def test_holds_of_a_gang_are_placed_all_or_none(world: World) -> None:
    job = world.job("0.0001")
    account = world.account("job", job).id
    wanted = [ledger.HoldRequest(world.machine(job), account, "1", amount) for amount in (60, 41)]
    with pytest.raises(BudgetExceeded):
        world.store.write(lambda db: ledger.place_holds(db, wanted))
    assert world.totals(job) == [(0, 0, 0)] * 4
    fitting = [ledger.HoldRequest(one.machine, account, "1", 50) for one in wanted]
    holds = world.store.write(lambda db: ledger.place_holds(db, fitting))
    assert [hold.machine for hold in holds] == [one.machine for one in wanted]
    assert world.totals(job) == [(0, 100, 0)] * 4


def test_a_machine_has_one_open_hold(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 10)
    with pytest.raises(StaleTransition):
        world.hold(job, 10, machine)
    world.store.write(lambda db: ledger.release_hold(db, machine, LaunchNotNeeded()))
    world.hold(job, 10, machine)
    assert world.totals(job)[0] == (0, 10, 0)


def test_a_hold_is_extended_once_and_only_from_the_end_that_was_read(world: World) -> None:
    job = world.job("0.0001")
    machine = world.hold(job, 60, until=1000)

    def extend(more: int, until: int, seen: int | None = None) -> HoldRow:
        return world.store.write(lambda db: ledger.extend_hold(db, machine, more, until, if_funded_until=seen))

    hold = extend(20, 2000, seen=1000)
    assert (hold.amount, hold.funded_until) == (80, 2000)
    for until, seen in ((2000, None), (3000, 1000)):
        with pytest.raises(StaleTransition):
            extend(20, until, seen)
    with pytest.raises(BudgetExceeded):
        extend(21, 3000)
    assert world.totals(job)[0] == (0, 80, 0)
    with world.store.read() as db:
        assert db.sql.scalars(select(HoldRow.funded_until).where(HoldRow.machine == machine)).one() == 2000
    extend(0, 3000, seen=2000)
    world.store.write(lambda db: ledger.release_hold(db, machine, LaunchNotNeeded()))
    with pytest.raises(StaleTransition):
        extend(1, 4000)
    assert world.find_discrepancies() == []


def test_an_extension_is_of_one_hold_alone(world: World) -> None:
    job = world.job()
    machine, other = world.hold(job, 60), world.hold(job, 10)
    extend(world, machine, 5)
    with world.store.read() as db:
        held = {hold.machine: (hold.amount, hold.funded_until) for hold in db.sql.scalars(select(HoldRow))}
    assert held == {machine: (65, 2), other: (10, 1)}


def test_what_was_reserved_asks_no_account_and_more_than_that_does(world: World) -> None:
    machine = world.hold(world.job(), 80)
    world.limit("team", 50)
    world.store.write(lambda db: ledger.extend_hold(db, machine, 0, 2, reserved=True))
    with pytest.raises(BudgetExceeded, match="overdrawn"):
        world.store.write(lambda db: ledger.extend_hold(db, machine, 1, 3, reserved=True))


def test_an_overdrawn_account_holds_nothing_even_within_its_limit(world: World) -> None:
    """A second line: no account is overdrawn within its limit."""
    job = world.job("0.0001")
    leaf = world.account("job", job).id
    world.store.write(lambda db: db.execute(update(AccountRow).where(AccountRow.id == leaf).values(overdraft=1)))
    with pytest.raises(BudgetExceeded, match="overdrawn"):
        world.hold(job, 0)


@pytest.mark.parametrize("shared", ["org", "team", "member"])
def test_of_two_racing_holds_that_fit_only_once_exactly_one_is_placed(world: World, shared: str) -> None:
    jobs = [world.job(), world.job()]
    machines = [world.machine(job) for job in jobs]
    world.limit(shared, 150, jobs[0])
    start, refused = threading.Barrier(2), []

    def race(job: JobRow, machine: UUID) -> None:
        start.wait(timeout=PATIENCE_S)
        try:
            world.hold(job, 100, machine)
        except BudgetExceeded as error:
            refused.append(error)

    run_all(*(lambda j=job, m=machine: race(j, m) for job, machine in zip(jobs, machines, strict=True)))
    assert len(refused) == 1
    assert sorted(world.totals(job)[0] for job in jobs) == [(0, 0, 0), (0, 100, 0)]
    assert world.totals(jobs[0])[3] == (0, 100, 0)
    assert world.find_discrepancies() == []


# Settlement


def test_increments_add_up_to_the_bill_and_zero_writes_no_row(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    for cumulative in (10, 10, 35, 35, 60):
        assert world.settle(machine, cumulative, final=False) == 0
        assert world.totals(job) == [(cumulative, 100 - cumulative, 0)] * 4
    world.settle(machine, 61)
    assert world.totals(job) == [(61, 0, 0)] * 4
    rows = transfers(world, job)
    assert [(row.kind, row.increment, row.amount) for row in rows] == [
        ("usage", 1, 10), ("usage", 2, 25), ("usage", 3, 25), ("usage", 4, 1),
    ]  # fmt: skip
    assert {row.debit_account for row in rows} == {world.account("job", job).id}
    assert {row.credit_account for row in rows} == {world.account("cash").id}
    assert world.account("cash").posted == -61
    assert world.find_discrepancies() == []


def test_settling_again_changes_nothing(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    for _ in range(3):
        world.settle(machine, 40, 2)
    assert world.totals(job) == [(42, 0, 0)] * 4
    assert [(row.line, row.increment) for row in transfers(world, job)] == [("line 0", 1), ("line 1", 1)]
    assert [event.data["action"] for event in world.events("cost")] == ["held", "settled"]


def test_only_released_money_requests_a_tick(world: World) -> None:
    """A tick posts what machines have cost since the last one: if that asked for a tick, they would never rest."""
    job, hints = world.job(), []
    machine = world.hold(job, 100)
    world.store.on_commit.append(lambda committed: hints.append(committed.tick_requested))
    world.settle(machine, 10, final=False)
    extend(world, machine, 5)
    assert hints == [False, False]
    world.settle(machine, 20)
    world.limit("org", 1000)
    assert hints == [False, False, True, True]


def test_an_empty_bill_releases_the_whole_hold(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    world.store.write(lambda db: ledger.settle(db, machine, [], final=True))
    assert world.totals(job) == [(0, 0, 0)] * 4
    assert transfers(world, job) == []


def test_a_lower_bill_swaps_debit_and_credit(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    world.settle(machine, 40, final=False)
    world.settle(machine, 30, final=False)
    assert world.totals(job) == [(30, 70, 0)] * 4
    world.settle(machine, 50)
    world.settle(machine, 45)
    assert world.totals(job) == [(45, 0, 0)] * 4
    leaf, cash = world.account("job", job).id, world.account("cash").id
    assert [(row.kind, row.debit_account, row.credit_account, row.amount) for row in transfers(world, job)] == [
        ("usage", leaf, cash, 40), ("usage", cash, leaf, 10), ("usage", leaf, cash, 20), ("correction", cash, leaf, 5),
    ]  # fmt: skip
    assert world.find_discrepancies() == []


@pytest.mark.any_database
@pytest.mark.parametrize("final", [False, True])
def test_a_line_that_the_bill_no_longer_has_is_given_back(world: World, final: bool) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    world.settle(machine, 20, 30, final=False)
    world.settle(machine, 25, final=final)
    assert world.totals(job) == [(25, 0 if final else 75, 0)] * 4
    world.settle(machine, final=True)
    assert world.totals(job) == [(0, 0, 0)] * 4
    assert world.find_discrepancies() == []


def test_cost_beyond_the_hold_is_posted_as_overrun_with_the_final_bill(world: World) -> None:
    job = world.job("0.0001")
    machine = world.hold(job, 100)
    assert world.settle(machine, 130, final=False) == 30
    assert world.totals(job) == [(100, 0, 0)] * 4
    assert world.events("alarm") == []
    assert world.settle(machine, 130) == 30
    assert world.totals(job) == [(130, 0, 30), (130, 0, 0), (130, 0, 0), (130, 0, 0)]
    assert [(row.kind, row.increment, row.amount) for row in transfers(world, job)] == [
        ("usage", 1, 100),
        ("overrun", 2, 30),
    ]
    assert (world.account("cash").posted, world.account("overrun").posted) == (-100, -30)
    (alarm,) = world.events("alarm")
    assert alarm.data == {
        "alarm": "overrun",
        "overdrawn": [{"account": "job digits-quickstart", "overdraft": "0.00003"}],
    }
    world.settle(machine, 130)
    assert world.totals(job)[0] == (130, 0, 30)
    assert len(world.events("alarm")) == 1
    assert world.find_discrepancies() == []


def test_a_final_bill_beyond_the_hold_is_split_into_usage_and_overrun(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    world.settle(machine, 70, 70)
    assert [(row.kind, row.line, row.increment, row.amount) for row in transfers(world, job)] == [
        ("usage", "line 0", 1, 70), ("usage", "line 1", 1, 30), ("overrun", "line 1", 2, 40),
    ]  # fmt: skip
    assert world.totals(job) == [(140, 0, 0)] * 4
    assert len(world.events("alarm")) == 1
    assert [one.data["amount"] for one in world.events("cost") if one.data["action"] == "settled"] == ["0.00014"]
    assert world.find_discrepancies() == []


def test_an_estimate_that_is_as_before_tells_nobody(world: World) -> None:
    machine = world.hold(world.job(), 10)
    world.settle(machine, 2, final=False)
    told = len(world.events("cost"))
    world.settle(machine, 2, final=False)
    assert len(world.events("cost")) == told > 0


def test_increments_are_counted_for_each_machine_and_line(world: World) -> None:
    job = world.job()
    world.settle(world.hold(world.job(), 10), 1)
    machines = [world.hold(job, 10) for _ in range(2)]
    for amounts in ((1,), (2, 1), (3, 4)):
        for machine in machines:
            world.settle(machine, *amounts, final=False)
    with world.store.read() as db:
        rows = ledger.transfers_of(db, world.account("job", job).id)
    assert {row.machine for row in rows} == set(machines), "none of another job"
    for machine in machines:
        numbers = [(row.line, row.increment) for row in rows if row.machine == machine]
        assert sorted(numbers) == [("line 0", 1), ("line 0", 2), ("line 0", 3), ("line 1", 1), ("line 1", 2)]


@pytest.mark.any_database
def test_a_line_that_is_as_before_keeps_no_other_from_being_posted(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    world.settle(machine, 10, 5, final=False)
    world.settle(machine, 20, 5, final=False)
    assert world.totals(job) == [(25, 75, 0)] * 4
    world.settle(machine, 20, 5)
    world.settle(machine, 20, 3)
    assert world.totals(job) == [(23, 0, 0)] * 4


@pytest.mark.any_database
def test_a_higher_bill_after_the_hold_was_released_is_posted_as_overrun(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    world.settle(machine, 40)
    assert world.settle(machine, 45) == 5
    assert world.totals(job) == [(45, 0, 0)] * 4
    assert [(row.kind, row.increment, row.amount) for row in transfers(world, job)] == [
        ("usage", 1, 40), ("overrun", 2, 5),
    ]  # fmt: skip
    assert world.find_discrepancies() == []


def test_a_late_bill_that_is_posted_twice_at_the_same_time_counts_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold that is closed doesn't guard it any more: the number of the increment does."""
    job = world.job()
    machine = world.hold(job, 100)
    world.settle(machine, 40)
    monkeypatch.setattr(settlement, "_next_increment", lambda *_: 1)
    with pytest.raises(StaleTransition):
        world.settle(machine, 45)
    assert world.totals(job) == [(40, 0, 0)] * 4


def test_cost_so_far_leaves_the_rest_with_the_machine(world: World) -> None:
    """Only the end of the hold gives it back to the job's commitment."""
    job = world.job()
    account = world.account("job", job).id
    world.store.write(lambda db: ledger.commit_money(db, account, 80))
    machine = world.hold(job, 50)
    for final, committed, held in ((False, 30, 60), (True, 60, 60)):
        world.settle(machine, 20, final=final)
        with world.store.read() as db:
            assert ledger.load_commitments(db, [account]) == {account: committed}
        assert world.totals(job) == [(20, held, 0)] * 4


@pytest.mark.any_database
def test_what_a_corrected_line_frees_pays_for_the_others(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    world.settle(machine, 20, 80, final=False)
    assert world.settle(machine, 60, 50, final=False) == 10
    assert world.totals(job) == [(100, 0, 0)] * 4
    leaf = world.account("job", job).id
    assert [(row.line, row.amount, row.debit_account == leaf) for row in transfers(world, job)[2:]] == [
        ("line 1", 30, False), ("line 0", 30, True),
    ]  # fmt: skip
    assert world.find_discrepancies() == []


@pytest.mark.any_database
def test_a_hold_pays_for_line_after_line_until_nothing_is_left_of_it(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    assert world.settle(machine, 30, 40, 50, final=False) == 20
    assert [row.amount for row in transfers(world, job)] == [30, 40, 30]
    assert world.totals(job) == [(100, 0, 0)] * 4


@pytest.mark.any_database
def test_a_bill_that_comes_to_nothing_frees_the_whole_hold(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    world.settle(machine, 40, final=False)
    world.settle(machine, 0, final=False)
    assert world.totals(job) == [(0, 100, 0)] * 4


@pytest.mark.any_database
def test_an_overrun_of_a_micro_dollar_is_an_overdraft_with_an_alarm(world: World) -> None:
    job = world.job("0.0001")
    world.settle(world.hold(job, 100), 101)
    assert world.totals(job)[0] == (101, 0, 1)
    (alarm,) = world.events("alarm")
    assert alarm.data["overdrawn"] == [{"account": "job digits-quickstart", "overdraft": "0.000001"}]


def test_a_bill_without_any_hold_is_refused(world: World) -> None:
    machine = world.machine(world.job())
    assert world.settle(machine, 0) == 0
    for amounts in ((1,), (0, 1)):
        with pytest.raises(StaleTransition):
            world.settle(machine, *amounts)


@pytest.mark.any_database
@pytest.mark.parametrize("action", ["settle", "release"])
@pytest.mark.parametrize("change", [{"amount": 120}, {"consumed": 30}, {"state": "closed"}])
def test_a_hold_that_changes_meanwhile_is_neither_settled_nor_released(
    world: World, action: str, change: dict[str, object]
) -> None:
    """Otherwise an extension at the same time would leave money held forever."""
    job = world.job()
    machine = world.hold(job, 100)
    with world.store.read() as db:
        hold = db.sql.scalars(select(HoldRow.id).where(HoldRow.machine == machine)).one()
    theirs = update(HoldRow).where(HoldRow.id == hold).values(**change)

    def end(db):
        if action == "settle":
            ledger.settle(db, machine, [Line("machine", 10, NeverRan())], final=True)
        else:
            ledger.release_hold(db, machine, LaunchNotNeeded())

    with meanwhile(world.store, "holds", theirs), pytest.raises(StaleTransition):
        world.store.write(end)
    assert world.totals(job) == [(0, 100, 0)] * 4
    assert transfers(world, job) == []
    assert world.find_discrepancies() == []


def test_two_concurrent_settlements_of_a_machine_post_once(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 100)
    start = threading.Barrier(3)

    def race() -> None:
        start.wait(timeout=PATIENCE_S)
        for amount in (10, 20, 30):
            try:
                world.settle(machine, amount, final=amount == 30)
            except StaleTransition:
                pass

    run_all(race, race, race)
    world.settle(machine, 30)
    assert world.totals(job) == [(30, 0, 0)] * 4
    assert (
        sum(
            row.amount if row.debit_account == world.account("job", job).id else -row.amount
            for row in transfers(world, job)
        )
        == 30
    )
    assert world.find_discrepancies() == []


# Limits and overdraft


def test_a_limit_below_what_is_used_makes_an_overdraft_with_an_alarm_and_stops_all_holds(world: World) -> None:
    job, other = world.job(), world.job()
    machine = world.hold(job, 80, until=1)
    cut = world.limit("team", 50)
    assert cut.overdraft == 30
    (alarm,) = world.events("alarm")
    assert alarm.data["alarm"] == "limit_lowered"
    for attempt in (lambda: world.hold(other, 0), lambda: extend(world, machine, 0), lambda: extend(world, machine, 1)):
        with pytest.raises(BudgetExceeded, match="overdrawn"):
            attempt()
    with world.store.read() as db:
        leaf = ledger.job_account(db, other.id).id
        assert [row.kind for row in ledger.ancestors(db, leaf) if row.overdraft > 0] == ["team"]
    stranger = World(world.store)
    stranger.hold(stranger.job(), 80)
    assert world.find_discrepancies() == []


def test_an_overdraft_shrinks_with_what_is_used_and_with_a_raised_limit(world: World) -> None:
    job = world.job()
    first, second = world.hold(job, 50), world.hold(job, 50)
    world.limit("org", 40)
    assert world.account("org").overdraft == 60
    world.settle(first, 20)
    assert world.account("org").overdraft == 30
    world.limit("org", 55)
    assert world.account("org").overdraft == 15
    world.store.write(lambda db: ledger.release_hold(db, second, LaunchNotNeeded()))
    assert (world.account("org").overdraft, world.account("org").posted) == (0, 20)
    world.hold(job, 35)
    assert len(world.events("alarm")) == 1
    assert world.find_discrepancies() == []


def test_removing_a_limit_ends_its_overdraft(world: World) -> None:
    job = world.job()
    machine = world.hold(job, 50)
    world.limit("member", 10)
    world.limit("member", None)
    assert world.account("member").overdraft == 0
    extend(world, machine, 1000)


def test_a_limit_that_lost_a_race_is_set_again_from_what_then_holds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, lost = limits._update, []

    def lose_once(*arguments: Any, **values: Any) -> bool:
        return update(*arguments, **values) if lost else bool(lost.append(1))

    monkeypatch.setattr(limits, "_update", lose_once)
    world.limit("team", 10)
    assert (world.account("team").limit_micro, lost) == (10, [1])


def test_a_budget_that_changed_since_it_was_read_is_not_overwritten(world: World) -> None:
    seen = world.account("team")

    def change(limit: int) -> AccountRow:
        return world.store.write(
            lambda db: ledger.set_limit(db, seen.id, limit, actor="ann", reason="", if_version=seen.version)
        )

    assert change(10).version == seen.version + 1
    with pytest.raises(PreconditionFailed):
        change(20)
    assert world.account("team").limit_micro == 10
    (event,) = world.events("budget")
    assert (event.actor, event.data["limit"], event.data["before"]) == ("ann", "0.00001", None)


def test_a_change_of_the_organizations_limit_is_an_event_of_all_its_teams(world: World) -> None:
    org = world.account("org")
    other = uuid7()

    def second_team(db):
        db.insert_new(TeamRow, id=other, name=f"second {world.name}", feed_seq=0)
        ledger.create_accounts(db, org.owner, other)

    world.store.write(second_team)
    stranger = World(world.store)
    world.limit("org", 5)
    with world.store.read() as db:
        assert [event.kind for event in events.load_events(db, other, 0, 10)] == ["budget"]
    assert stranger.events("budget") == [], "another organization is told nothing"


def test_the_tightest_account_has_the_smallest_limit_above_a_job(world: World) -> None:
    job = world.job("0.001")
    with world.store.read() as db:
        leaf = ledger.job_account(db, job.id).id
        assert ledger.tightest_account([world.account("org")]) is None
        least = [AccountRow(limit_micro=1, period_base=0), AccountRow(limit_micro=9, period_base=9)]
        assert ledger.tightest_account(least) is least[1]
        assert ledger.tightest_account(ledger.ancestors(db, leaf)).kind == "job"
    world.limit("team", 400)
    with world.store.read() as db:
        assert ledger.tightest_account(ledger.ancestors(db, leaf)).kind == "team"


def test_another_teams_budget_is_not_found(world: World) -> None:
    stranger = World(world.store)
    with world.store.read() as db:
        for kind in ("team", "member"):
            assert ledger.visible_account(db, world.team, world.account(kind).id).kind == kind
            with pytest.raises(NotFound):
                ledger.visible_account(db, world.team, stranger.account(kind).id)
        assert ledger.visible_account(db, world.team, world.account("org").id).kind == "org"
        for missing in (stranger.account("org").id, uuid7(), world.account("cash").id):
            with pytest.raises(NotFound):
                ledger.visible_account(db, world.team, missing)
        assert [one.kind for one in ledger.team_budgets(db, world.team)] == ["org", "team", "member"]


@pytest.mark.any_database
def test_titles_are_looked_up_without_reading_all_jobs(world: World) -> None:
    job = world.job()
    with world.store.read() as db:
        path = ledger.ancestors(db, ledger.job_account(db, job.id).id)
        with counted(world.store) as statements:
            ledger.titles(db, path)
    assert statements.reads == 3
    assert [statements.scans(world.store, table) for table in ("teams", "users", "jobs")] == [[], [], []]


def test_a_member_has_an_account_from_the_first_job_on(world: World) -> None:
    user = uuid7()
    for _ in range(2):
        path = world.store.write(lambda db: ledger.ensure_member_accounts(db, world.team, user))
        assert [row.kind for row in path] == ["member", "team", "org"]
        assert path[0].owner == f"{world.team}/{user}"
        assert [row.id for row in path[1:]] == [world.account(kind).id for kind in ("team", "org")]


@pytest.mark.any_database
def test_each_account_above_another_has_a_lower_level(world: World) -> None:
    """Accounts are written by level, so that writers can't deadlock."""
    job = world.job()
    with world.store.read() as db:
        levels = [row.level for row in ledger.ancestors(db, ledger.job_account(db, job.id).id)]
    assert levels == sorted(set(levels), reverse=True)
    assert len(levels) == 4


def test_accounts_have_titles_people_understand(world: World) -> None:
    job = world.job(name="mnist again")
    with world.store.read() as db:
        titles = [ledger.title(db, one) for one in ledger.ancestors(db, ledger.job_account(db, job.id).id)]
    assert titles == ["job mnist again", *(f"{kind} {kind.replace('member', 'user')} {world.name}" for kind in ("member", "team")), f"organization org {world.name}"]  # fmt: skip # noqa: E501


# What the database itself refuses


def test_transfers_refuse_update_and_delete(world: World) -> None:
    world.settle(world.hold(world.job(), 10), 5)
    for statement in ("UPDATE transfers SET amount = 1", "DELETE FROM transfers"):
        with pytest.raises(exc.DBAPIError, match="immutable"):
            world.store.write(lambda db, s=statement: db.sql.execute(text(s)))
    with world.store.read() as db:
        assert [row.amount for row in db.sql.scalars(select(TransferRow))] == [5]


def test_the_check_constraint_catches_code_without_the_guard(world: World) -> None:
    world.limit("team", 100)
    account = world.account("team").id
    for values in ({"held": 101}, {"posted": 101}, {"held": -1}, {"overdraft": -1}):
        with pytest.raises(exc.IntegrityError):
            world.store.write(
                lambda db, v=values: db.execute(update(AccountRow).where(AccountRow.id == account).values(v))
            )


def test_ordinary_posting_can_never_make_an_overdraft(world: World) -> None:
    """Only an overrun may: posting more than was held by mistake meets the CHECK instead of being hidden."""
    job = world.job("0.00001")
    leaf = world.account("job", job).id
    with pytest.raises(exc.IntegrityError, match="never_overspent"):
        world.store.write(lambda db: balances.apply_changes(db, {leaf: balances.BalanceChange(posted=11)}))
    assert world.totals(job) == [(0, 0, 0)] * 4


def test_the_audit_finds_a_manipulated_total(world: World) -> None:
    job = world.job()
    world.settle(world.hold(job, 10), 5)
    account = world.account("team").id
    world.store.write(
        lambda db: db.execute(update(AccountRow).where(AccountRow.id == account).values(posted=6, held=3))
    )
    found = {(one.account, one.total, one.expected, one.actual) for one in world.find_discrepancies()}
    assert found == {(account, "posted", 5, 6), (account, "held", 0, 3)}


@pytest.mark.any_database
def test_the_audit_finds_money_from_nowhere_and_an_overdraft_without_cause(world: World) -> None:
    job = world.job()
    world.settle(world.hold(job, 10), 5)
    leaf = world.account("job", job).id
    world.store.write(
        lambda db: db.execute(update(AccountRow).where(AccountRow.id == leaf).values(posted=7, overdraft=3))
    )
    found = {(one.account, one.total, one.expected, one.actual) for one in world.find_discrepancies()}
    assert found == {(leaf, "posted", 5, 7), (leaf, "overdraft", 0, 3), (None, "sum of all", 0, 2)}


# Any interleaving

amounts = st.integers(0, 40)
operations = st.one_of(
    st.tuples(st.just("hold"), st.integers(0, 1), amounts),
    st.tuples(st.just("extend"), st.integers(0, 5), amounts),
    st.tuples(st.just("settle"), st.integers(0, 5), st.integers(0, 90)),
    st.tuples(st.just("final"), st.integers(0, 5), st.integers(0, 90)),
    st.tuples(st.just("release"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("limit"), st.integers(0, 3), st.none() | st.integers(0, 120)),
    st.tuples(st.just("grant"), st.integers(0, 3), amounts),
    st.tuples(st.just("transfer"), st.integers(0, 1), amounts),
    st.tuples(st.just("border"), st.integers(1, 3), st.none() | amounts),
)
at_random = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(steps=st.lists(operations, min_size=5, max_size=25))
@at_random
def test_no_sequence_of_operations_overspends(store: Store, steps: list[tuple[str, int, int | None]]) -> None:
    """A hold succeeds exactly where it fits on every level; overdrafts grow only with an alarm."""
    world = World(store)
    jobs, machines = [world.job("0.00008"), world.job("0.00006")], []
    chains, alarms = look(world, jobs)
    for operation in steps:
        name, index, amount = operation
        fits = all(
            one.overdraft == 0 and (one.limit_micro is None or one.posted + one.held + (amount or 0) <= one.limit_micro)
            for one in chains[index % 2]
        )
        refusal = perform(world, jobs, machines, operation)
        if name == "hold":
            assert (refusal is None) == fits, (operation, refusal)
        before, alarms_before = {one.id: one.overdraft for chain in chains for one in chain}, alarms
        stock = [chain[0].limit_micro for chain in chains]
        chains, alarms = look(world, jobs)
        if name == "transfer" and refusal is None:
            (gave, got), (left, more) = stock, (chain[0].limit_micro for chain in chains)
            assert (left - gave, more - got) in ((-amount, amount), (amount, -amount)), operation
        grown = any(one.overdraft > before[one.id] for chain in chains for one in chain)
        assert not grown or (alarms > alarms_before and name in ("final", "limit")), operation
    assert world.find_discrepancies() == []


def look(world: World, jobs: list[JobRow]) -> tuple[list[list[AccountRow]], int]:
    """The path of each job, and how many alarms there have been."""
    with world.store.read() as db:
        chains = [ledger.ancestors(db, ledger.job_account(db, job.id).id) for job in jobs]
        alarms = select(func.count()).where(EventRow.team == world.team, EventRow.kind == "alarm")
        return chains, db.sql.scalar(alarms)


@given(plans=st.lists(st.lists(operations, min_size=4, max_size=12), min_size=2, max_size=2))
@at_random
def test_no_interleaving_of_two_threads_overspends(
    store: Store, plans: list[list[tuple[str, int, int | None]]]
) -> None:
    """The CHECK never trips (it would be an IntegrityError), and all totals are right in the end."""
    world = World(store)
    jobs, machines, errors = [world.job("0.00008"), world.job("0.00006")], [], []
    world.limit("team", 100)

    def run(plan: list[tuple[str, int, int | None]]) -> None:
        try:
            for operation in plan:
                perform(world, jobs, machines, operation)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    run_all(*(lambda p=plan: run(p) for plan in plans))
    assert errors == []
    assert world.find_discrepancies() == []


def perform(
    world: World, jobs: list[JobRow], machines: list[UUID], operation: tuple[str, int, int | None]
) -> Exception | None:
    """Do one operation; the refusal it met, if any."""
    name, index, amount = operation
    try:
        if name == "hold":
            machine = world.machine(jobs[index % 2])
            world.hold(jobs[index % 2], amount or 0, machine)
            machines.append(machine)
        elif name == "limit":
            world.limit(LEVELS[index], amount, jobs[0])
        elif name == "grant":
            world.grant(world.account(LEVELS[index], jobs[0]), amount or 0)
        elif name == "border":
            world.period(LEVELS[index], "none" if amount is None else "unspent", amount)
            world.roll_over(LEVELS[index])
        elif name == "transfer":
            source, target = (world.account("job", jobs[side]) for side in (index, 1 - index))
            world.transfer(source, target, amount or 0)
        elif machines and (machine := machines[index % len(machines)]):
            if name == "extend":
                extend(world, machine, amount or 0)
            elif name == "release":
                world.store.write(lambda db: ledger.release_hold(db, machine, LaunchNotNeeded()))
            else:
                world.settle(machine, amount or 0, final=name == "final")
    except (BudgetExceeded, BudgetUnmovable, StaleTransition, PreconditionFailed) as refusal:
        return refusal
    return None


def extend(world: World, machine: UUID, more: int) -> HoldRow:
    with world.store.read() as db:
        until = db.sql.scalars(
            select(HoldRow.funded_until).where(HoldRow.machine == machine).order_by(HoldRow.number)
        ).all()[-1]
    return world.store.write(lambda db: ledger.extend_hold(db, machine, more, until + 1))


def transfers(world: World, job: JobRow) -> list[TransferRow]:
    with world.store.read() as db:
        return ledger.transfers_of(db, ledger.job_account(db, job.id).id)


def run_all(*works) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=PATIENCE_S)
        assert not thread.is_alive()
