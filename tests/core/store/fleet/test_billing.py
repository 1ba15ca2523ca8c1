# SPDX-License-Identifier: Apache-2.0
"""The money of machines: funded while they are wanted, billed by the provider's times to the micro-dollar, once."""

from __future__ import annotations

from functools import partial
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide.funding import MachineFunding
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import BudgetExceeded
from shoestring_core.store import jobs, ledger
from shoestring_core.store.fleet import billing, gangs, launches
from shoestring_core.store.tables import AccountRow, AttemptRow, EventRow, JobRow, MachineRow
from shoestring_core.wording import bills
from shoestring_core.wording.jobs import StorageLost, StorageRestored
from sqlalchemy import event, update

from tests.core.world import (
    LAUNCHING,
    NEVER_LAUNCHED,
    PLANNED,
    RUNNING,
    TERMINATED,
    TERMINATING,
    Fleet,
    World,
    about,
    meanwhile,
)

PRICE, RATE_CAP = "0.158", "0.526"


def held(fleet: Fleet, machine: UUID) -> tuple[str, int, int | None, int | None]:
    """State and rest of the hold, and until when the hold and the machine's row say that it is funded."""
    hold = fleet.hold_row(machine)
    return hold.state, hold.amount - hold.consumed, hold.funded_until, fleet.machine_row(machine).funded_until


def posted(fleet: Fleet, machine: UUID) -> list[int]:
    return [row.amount for row in fleet.transfer_rows(machine)]


def billed(fleet: Fleet) -> list[EventRow]:
    return [one for one in fleet.events("cost") if one.data["action"] == "billed"]


def reserve(fleet: Fleet) -> int:
    return money.cost_ceiling(RATE_CAP, fleet.timeouts.funding_lease + fleet.timeouts.drain)


# Funding


def test_a_machine_is_funded_further_once_half_of_its_lease_is_used(fleet: Fleet) -> None:
    job, (machine, other) = fleet.running(nodes=2)
    begun, lease = fleet.clock.now, fleet.timeouts.funding_lease
    unchanged = ("open", reserve(fleet), begun + lease, begun + lease)
    fleet.clock.now = begun + lease // 2
    assert not fleet.write(billing.extend_funding, machine, fleet.timeouts)
    assert held(fleet, machine) == unchanged
    fleet.clock.now += 1
    fleet.write(billing.post_cost, machine)
    assert fleet.write(billing.extend_funding, machine, fleet.timeouts)
    until = fleet.clock.now + lease
    assert held(fleet, machine) == ("open", reserve(fleet), until, until)
    assert held(fleet, other) == unchanged
    assert not fleet.write(billing.extend_funding, machine, fleet.timeouts)
    used = money.cost(PRICE, lease // 2 + 1)
    assert fleet.totals(fleet.job_row(job)) == [(used, 2 * reserve(fleet), 0)] * 4
    assert fleet.find_discrepancies() == []


def test_only_machines_that_run_or_may_run_yet_are_funded(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    for state in (PLANNED, LAUNCHING, RUNNING, TERMINATING, TERMINATED, NEVER_LAUNCHED):
        fleet.alter(MachineRow, MachineRow.id == machine, state=state, ended_at=1)
        fleet.clock.pass_(40)
        extended = fleet.write(billing.extend_funding, machine, fleet.timeouts)
        assert extended == (state in (PLANNED, LAUNCHING, RUNNING)), state


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("why", ["its job stops", "its attempt closes", "its hold is closed"])
def test_no_money_is_held_for_a_machine_that_is_no_longer_wanted(fleet: Fleet, why: str) -> None:
    job, (machine,) = fleet.running()
    if why == "its job stops":
        fleet.write(jobs.stop, job, "ann")
    elif why == "its attempt closes":
        fleet.write(gangs.close_attempt, job, 1, "machine_lost")
    else:
        fleet.write(ledger.release_hold, machine, bills.NeverRan())
    before = held(fleet, machine)
    fleet.clock.pass_(40)
    assert not fleet.write(billing.extend_funding, machine, fleet.timeouts)
    assert held(fleet, machine) == before


def test_of_two_extensions_at_once_one_is_made(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    _, amount, funded_until, _ = held(fleet, machine)
    fleet.clock.pass_(40)
    theirs = update(MachineRow).where(MachineRow.id == machine).values(funded_until=2**60)
    with meanwhile(fleet.store, "machines", theirs):
        assert not fleet.write(billing.extend_funding, machine, fleet.timeouts)
    assert held(fleet, machine) == ("open", amount, funded_until, 2**60)


def test_a_job_that_runs_is_told_once_that_nothing_can_be_stored_for_long_and_once_that_it_can(fleet: Fleet) -> None:
    job, machines = fleet.running(nodes=2)
    fleet.alter(MachineRow, MachineRow.id == machines[1], funded_until=2**51)
    other, _ = fleet.running()
    tell = partial(fleet.write, billing.tell_storage, job, 1, "The credentials are refused.")
    assert not tell(lost=False)
    assert tell(lost=True)
    assert not tell(lost=True)
    lost = StorageLost("The credentials are refused.", 2**51)
    assert (fleet.job_row(job).wait_detail, fleet.job_row(other).wait_detail) == (lost.as_json(), None)
    assert tell(lost=False)
    assert fleet.job_row(job).wait_detail is None
    reasons = [lost.as_json(), StorageRestored().as_json()]
    assert [(one.data, one.reason) for one in fleet.events("storage")] == list(
        zip([{"lost": True}, {"lost": False}], reasons, strict=True)
    )
    fleet.write(jobs.stop, job, "ann")
    assert not tell(lost=True), "its machines end anyway"


def test_a_machine_that_the_budget_does_not_cover_is_not_funded_further(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    before = held(fleet, machine)
    fleet.limit("team", reserve(fleet))
    fleet.clock.pass_(40)
    fleet.write(billing.post_cost, machine)
    with pytest.raises(BudgetExceeded):
        fleet.write(billing.extend_funding, machine, fleet.timeouts)
    assert held(fleet, machine) == ("open", before[1] - money.cost(PRICE, 40 * S), *before[2:])


def test_the_open_holds_of_the_machines_asked_for_are_loaded(fleet: Fleet) -> None:
    _, (machine, closed, unfunded, _) = fleet.running(nodes=4)
    until = fleet.clock.now + fleet.timeouts.funding_lease
    fleet.clock.pass_(10)
    fleet.write(billing.post_cost, machine)
    fleet.write(ledger.release_hold, closed, bills.NeverRan())
    fleet.write(ledger.release_hold, unfunded, bills.NeverRan())
    account = fleet.hold_row(unfunded).account
    fleet.store.write(
        lambda db: ledger.place_hold(db, machine=unfunded, account=account, rate_cap="1", amount=5, funded_until=None)
    )
    rest = reserve(fleet) - money.cost(PRICE, 10 * S)
    assert fleet.read(billing.load_fundings, [machine, closed, unfunded]) == {
        machine: MachineFunding(RATE_CAP, rest, until)
    }


# Cost of machines that run


def test_the_cost_so_far_is_posted_of_machines_that_run(fleet: Fleet) -> None:
    _, (machine, other) = fleet.running(nodes=2)
    total = 0
    for state in (PLANNED, LAUNCHING, RUNNING, TERMINATING, TERMINATED, NEVER_LAUNCHED):
        fleet.clock.pass_(10)
        ended_at = fleet.clock.now if state == TERMINATED else None
        fleet.alter(MachineRow, MachineRow.id == machine, state=state, ended_at=ended_at)
        fleet.write(billing.post_cost, machine)
        if state in (RUNNING, TERMINATING):
            total = money.cost(PRICE, fleet.clock.now - fleet.machine_row(machine).launched_at)
        assert sum(posted(fleet, machine)) == total, state
    assert total == money.cost(PRICE, 40 * S)
    assert posted(fleet, other) == []
    assert fleet.hold_row(machine).state == "open"


def test_cost_so_far_beyond_the_hold_waits_for_the_final_bill(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    fleet.clock.pass_(3600)
    fleet.write(billing.post_cost, machine)
    assert sum(posted(fleet, machine)) == reserve(fleet)
    fleet.end(machine)
    fleet.write(billing.settle_machine, machine)
    assert sum(posted(fleet, machine)) == 158_000
    assert [row.kind for row in fleet.transfer_rows(machine)] == ["usage", "overrun"]


# Final bills


def test_a_terminated_machine_is_billed_once_from_the_providers_times(fleet: Fleet) -> None:
    job, (machine, other) = fleet.running(nodes=2)
    begun = fleet.clock.now
    assert not fleet.write(billing.settle_machine, machine), "it runs"
    fleet.clock.pass_(100)
    fleet.observe(machine, "ended", launched_at=begun + 5 * S, ended_at=begun + 45 * S, end_cause="crashed")
    assert fleet.requests_tick(lambda: fleet.write(billing.settle_machine, machine))
    billed_at = fleet.clock.now
    fleet.clock.pass_(10)
    assert not fleet.write(billing.settle_machine, machine)
    bill = money.cost(PRICE, 40 * S)
    assert posted(fleet, machine) == [bill]
    assert fleet.machine_row(machine).billed_at == billed_at
    assert fleet.machine_row(other).billed_at is None
    assert fleet.totals(fleet.job_row(job)) == [(bill, reserve(fleet), 0)] * 4
    (told,) = [one for one in billed(fleet) if about(one) == str(machine)]
    assert (told.job, told.attempt) == (job, 1)
    assert told.reason == fleet.transfer_rows(machine)[0].reason


def test_a_machine_that_never_ran_costs_nothing(fleet: Fleet) -> None:
    job, (machine,) = fleet.running()
    fleet.end(machine)
    assert fleet.write(billing.settle_machine, machine)
    assert posted(fleet, machine) == []
    assert held(fleet, machine)[0] == "closed"
    assert fleet.totals(fleet.job_row(job)) == [(0, 0, 0)] * 4
    assert [one.reason for one in billed(fleet) if about(one) == str(machine)] == [bills.NeverRan().as_json()]


def test_what_was_posted_of_a_machine_whose_first_hour_is_free_after_all_is_given_back(fleet: Fleet) -> None:
    job, (machine,) = fleet.running()
    rules = {"free_if_interrupted_within": 3600 * S, "extras": [{"line": "disk", "what": "a disk", "monthly": "25.92"}]}
    fleet.alter(MachineRow, MachineRow.id == machine, billing=rules)
    fleet.clock.pass_(60)
    fleet.write(billing.post_cost, machine)
    used = money.cost(PRICE, 60 * S)
    assert fleet.totals(fleet.job_row(job))[0][0] == used + 600
    fleet.end(machine, "preempted")
    fleet.write(billing.settle_machine, machine)
    assert fleet.totals(fleet.job_row(job)) == [(600, 0, 0)] * 4
    (told,) = [one.reason for one in billed(fleet) if about(one) == str(machine)]
    assert told == bills.FreeInterruption(60 * S, "local.cpu").as_json()
    assert fleet.find_discrepancies() == []


def test_what_was_posted_of_a_machine_that_ended_as_it_began_is_given_back(fleet: Fleet) -> None:
    """The provider answers nothing for a minute, then lists it with the same time for launch and end."""
    job, (machine,) = fleet.running()
    begun = fleet.clock.now
    fleet.clock.pass_(60)
    fleet.write(billing.post_cost, machine)
    assert fleet.totals(fleet.job_row(job))[0][0] == money.cost(PRICE, 60 * S)
    fleet.observe(machine, "ended", ended_at=begun, end_cause="crashed")
    fleet.write(billing.settle_machine, machine)
    assert fleet.totals(fleet.job_row(job)) == [(0, 0, 0)] * 4
    assert fleet.transfer_rows(machine)[-1].reason == bills.NotBilled().as_json()
    assert fleet.find_discrepancies() == []


def test_the_extras_of_a_machine_that_never_left_pending_are_given_back(fleet: Fleet) -> None:
    job, (machine,) = fleet.running()
    extras = [{"line": "disk", "what": "a disk", "monthly": "25.92"}]
    fleet.alter(MachineRow, MachineRow.id == machine, billing={"pending_is_free": True, "extras": extras})
    fleet.clock.pass_(60)
    fleet.write(billing.post_cost, machine)
    fleet.end(machine, RefusalKind.CAPACITY)
    fleet.write(billing.settle_machine, machine)
    assert fleet.totals(fleet.job_row(job)) == [(0, 0, 0)] * 4
    assert fleet.find_discrepancies() == []


def test_only_terminated_machines_get_a_final_bill(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    fleet.clock.pass_(10)
    for state in (PLANNED, LAUNCHING, RUNNING, TERMINATING, NEVER_LAUNCHED):
        fleet.alter(MachineRow, MachineRow.id == machine, state=state)
        assert not fleet.write(billing.settle_machine, machine)
        assert (posted(fleet, machine), held(fleet, machine)[0]) == ([], "open")


def test_evidence_is_what_the_row_has_from_the_provider(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    fleet.clock.pass_(10)
    fleet.end(machine, "preempted")
    row = fleet.machine_row(machine)
    evidence = billing.evidence(row)
    assert (evidence.provider, evidence.type, evidence.market, evidence.price) == ("local", "local.cpu", "spot", PRICE)
    assert (evidence.launched_at, evidence.ended_at, evidence.end_cause) == (
        fleet.clock.now - 10 * S, fleet.clock.now, "preempted",
    )  # fmt: skip


# Jobs


def ended_job(fleet: Fleet) -> tuple[UUID, list[UUID]]:
    """A job that has ended, with two machines that are billed and one that was never launched."""
    job = fleet.start(nodes=3)
    abandoned, *machines = fleet.ids(job)
    fleet.write(launches.record_refusal, fleet.call(abandoned), RefusalKind.CAPACITY, "full")
    for machine in machines:
        fleet.call(machine)
        fleet.observe(machine)
    fleet.write(jobs.stop, job, "ann")
    fleet.write(gangs.begin_stopping, job)
    fleet.finish_attempt(job)
    for machine in machines:
        assert fleet.write(billing.settle_machine, machine)
    return job, machines


@pytest.mark.any_database
def test_a_machine_whose_price_never_changed_has_no_damaged_row(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    _, (machine,) = fleet.running()
    assert billing.evidence(fleet.machine_row(machine)).price_changes == ()
    assert [one.message for one in caplog.records if one.levelname == "ERROR"] == []


def test_a_job_is_settled_once(fleet: Fleet) -> None:
    running, _ = fleet.running()
    fleet.clock.pass_(10)
    job, _ = ended_job(fleet)
    assert (fleet.read(billing.load_unbilled), fleet.read(billing.load_unsettled)) == ([], [job])
    assert fleet.write(billing.settle_job, job)
    settled_at = fleet.clock.now
    assert fleet.read(billing.load_unsettled) == []
    other, _ = ended_job(fleet)
    fleet.clock.pass_(10)
    assert not fleet.write(billing.settle_job, job)
    assert fleet.job_row(job).settled_at == settled_at
    assert fleet.job_row(running).settled_at is None
    assert fleet.read(billing.load_unsettled) == [other], "each job for itself"
    assert fleet.write(billing.settle_job, other)
    assert fleet.job_row(job).settled_at == settled_at
    told = [one for one in fleet.events("cost") if one.data["action"] == "job_settled"]
    assert [(one.job, one.reason) for one in told] == [(one, bills.JobSettled().as_json()) for one in (job, other)]


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("missing", ["a bill", "the end of an attempt", "its own end"])
def test_a_job_is_not_settled_while_anything_is_open(fleet: Fleet, missing: str) -> None:
    job, machines = ended_job(fleet)
    if missing == "a bill":
        fleet.alter(MachineRow, MachineRow.id == machines[1], billed_at=None)
    elif missing == "the end of an attempt":
        fleet.alter(AttemptRow, AttemptRow.job == job, state="closing")
    else:
        fleet.alter(JobRow, JobRow.id == job, state="paused", end_reason=None)
    assert not fleet.write(billing.settle_job, job)
    assert fleet.job_row(job).settled_at is None
    assert all(one.data["action"] != "job_settled" for one in fleet.events("cost"))


# Overdrawn accounts


def test_jobs_on_an_overdrawn_account_are_named_with_the_nearest_one(fleet: Fleet) -> None:
    first, _ = fleet.running()
    second, _ = fleet.running()
    assert fleet.read(billing.overdrawn_jobs, [first, second]) == {}
    fleet.limit("job", 1, fleet.job_row(first))
    assert fleet.read(billing.overdrawn_jobs, [first, second]) == {first: "job digits-quickstart"}
    fleet.limit("team", 1)
    fleet.limit("org", 1)
    assert fleet.read(billing.overdrawn_jobs, [first, second]) == {
        first: "job digits-quickstart", second: f"team team {fleet.name}",
    }  # fmt: skip
    assert list(fleet.read(billing.overdrawn_jobs, [second])) == [second]
    stranger = World(fleet.store)
    theirs = stranger.job()
    stranger.hold(theirs, 10)
    assert fleet.read(billing.overdrawn_jobs, [theirs.id]) == {}


def test_without_machines_or_jobs_nothing_is_read(fleet: Fleet) -> None:
    with fleet.store.read() as db:
        statements: list[str] = []
        event.listen(db.sql, "do_orm_execute", lambda state: statements.append(str(state.statement)))
        assert (billing.load_fundings(db, []), billing.overdrawn_jobs(db, [])) == ({}, {})
    assert statements == []


@pytest.mark.any_database
def test_of_all_jobs_accounts_only_those_asked_for_are_read(fleet: Fleet) -> None:
    """A tick stays as cheap as it is, however many jobs there have been."""
    asked, _ = fleet.running()
    fleet.running()
    fleet.limit("team", 1)
    read = []

    def note(row: AccountRow, _context: object) -> None:
        read.append(row.owner)

    event.listen(AccountRow, "load", note)
    try:
        fleet.read(billing.overdrawn_jobs, [asked])
    finally:
        event.remove(AccountRow, "load", note)
    owners = [fleet.account(kind).owner for kind in ("org", "team", "member")]
    assert sorted(read) == sorted([str(asked), *owners])
