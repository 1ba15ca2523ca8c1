# SPDX-License-Identifier: Apache-2.0
"""Orders, funding, bills and the comparison with the provider, decided from values alone."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from itertools import product
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide.billing import (
    CLOCK_STEP,
    BillingRules,
    Evidence,
    Extra,
    bill,
    free_if_left_until,
    hourly,
)
from shoestring_core.decide.funding import (
    HoldExtension,
    MachineFunding,
    due_extension,
    end_reason_after_stopping,
    initial_hold,
    when_budget_exhausted,
)
from shoestring_core.decide.orders import Membership, OrderInputs, decide_order
from shoestring_core.decide.reconcile import (
    DEPLOYMENT_TAG,
    PROVIDER_TAG,
    AbandonLaunch,
    NotListed,
    PresumeTerminated,
    ProviderMachine,
    RecordObservation,
    Terminate,
    TrackedMachine,
    reconcile,
)
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.states import AttemptState, DesiredState, EndReason, GenerationState, JobState, MachineState
from shoestring_core.wording.bills import Usage

NOW = 1_800_000_000 * S
TIMEOUTS = Timeouts(funding_lease=60 * S)

# Orders

FORMING, FORMED = Membership(GenerationState.FORMING, False), Membership(GenerationState.FORMED, False)
LEFT = Membership(GenerationState.FORMED, True)


def standing(job=JobState.RUNNING, part=FORMED, machine=MachineState.RUNNING, attempt=AttemptState.OPEN, current=True):
    return OrderInputs(machine, job, current, attempt, 4, part)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (standing(JobState.LAUNCHING, None), "wait"),
        (standing(JobState.LAUNCHING, FORMING), "prepare"),
        (standing(part=FORMED), "run"),
        (standing(part=LEFT), "wait"),
        (standing(part=FORMING), "prepare"),
        (standing(JobState.STOPPING, FORMED), "drain"),
        (standing(JobState.STOPPING, FORMED, attempt=AttemptState.CLOSING), "drain"),
        (standing(JobState.STOPPING, LEFT), "shutdown"),
        (standing(JobState.STOPPING, FORMING), "shutdown"),
        (standing(JobState.STOPPING, None), "shutdown"),
        (standing(attempt=AttemptState.CLOSING), "shutdown"),
        (standing(current=False), "shutdown"),
        (standing(JobState.STOPPING, current=False), "shutdown"),
    ],
)
def test_each_machine_gets_the_order_that_its_job_needs(given, kind):
    assert decide_order(given).kind == kind


def test_a_machine_that_is_ending_or_whose_job_is_not_active_is_ordered_to_terminate():
    for job, part in product(JobState, (None, FORMING, FORMED, LEFT)):
        if job not in (JobState.LAUNCHING, JobState.RUNNING, JobState.STOPPING):
            assert decide_order(standing(job, part)).kind == "shutdown"
        for machine in (MachineState.TERMINATING, MachineState.TERMINATED, MachineState.NEVER_LAUNCHED):
            assert decide_order(standing(job, part, machine)).kind == "shutdown"


# MachineFunding


def test_a_hold_is_extended_once_less_than_half_is_left():
    full = MachineFunding("0.526", initial_hold("0.526", TIMEOUTS), NOW + 60 * S)
    assert due_extension(full, NOW + 30 * S, TIMEOUTS) is None
    due = due_extension(full, NOW + 31 * S, TIMEOUTS)
    # Nothing was posted, so the hold still has all of it: it covers 75 s from then as it did from the start.
    assert due == HoldExtension(0, NOW + 91 * S)


def test_a_machine_is_funded_no_longer_than_it_could_store_a_checkpoint():
    ends = NOW + 50 * S
    held = MachineFunding("0.526", initial_hold("0.526", TIMEOUTS), NOW + 10 * S)
    due = due_extension(held, NOW, TIMEOUTS, storable_until=ends)
    assert due is not None
    assert due.funded_until == ends - TIMEOUTS.drain
    funded = MachineFunding("0.526", held.remaining, due.funded_until)
    assert due_extension(funded, due.funded_until - 1, TIMEOUTS, storable_until=ends) is None
    assert due_extension(held, NOW, TIMEOUTS, storable_until=NOW + 3600 * S) == due_extension(held, NOW, TIMEOUTS)


def test_an_extension_asks_for_what_the_remaining_hold_does_not_cover():
    need = money.cost_ceiling("0.526", 75 * S)
    assert due_extension(MachineFunding("0.526", need - 100, NOW + S), NOW, TIMEOUTS) == HoldExtension(
        100, NOW + 60 * S
    )


def test_a_hold_covers_every_second_that_a_machine_can_live():
    for lived in range(76):
        assert money.cost("0.526", lived * S) <= initial_hold("0.526", TIMEOUTS)


@pytest.mark.parametrize(
    ("on_budget", "want", "end"),
    [
        ("pause", DesiredState.PAUSE, None),
        ("stop", DesiredState.STOP, EndReason.BUDGET),
        ("finish", DesiredState.PAUSE, None),
    ],
)
def test_a_job_without_budget_is_paused_or_stopped(on_budget, want, end):
    assert when_budget_exhausted(on_budget) is want
    assert end_reason_after_stopping(want, "budget") is end


# Bills


@pytest.mark.parametrize("cause", ["requested", "preempted", "exited", "crashed", None])
def test_the_local_cloud_bills_the_time_used_whatever_the_end_cause(cause):
    evidence = Evidence("local", "local.cpu", "spot", "0.158", NOW, NOW + 123_456_789, cause)
    (line,) = bill(evidence, NOW + 999 * S)
    assert line.amount == round(0.158 * 123.456789 / 3600 * 1e6)


def test_a_bill_is_rounded_once_so_its_increments_add_up_to_it():
    evidence = Evidence("local", "t", "spot", "0.158", NOW, None)
    amounts = [bill(evidence, NOW + step * 7_654_321)[0].amount for step in range(1, 50)]
    slices = [after - before for before, after in zip([0, *amounts], amounts, strict=False)]
    assert sum(slices) == money.cost("0.158", 49 * 7_654_321)


def test_a_provider_may_bill_a_least_time_which_the_hold_covers():
    rules = BillingRules(minimum=60 * S)
    short = Evidence("cloud", "t", "spot", "3.60", NOW, NOW + 5 * S, rules=rules)
    assert [line.amount for line in bill(short, NOW + 99 * S)] == [money.cost("3.60", 60 * S)]
    long = replace(short, ended_at=NOW + 61 * S)
    assert [line.amount for line in bill(long, NOW + 99 * S)] == [money.cost("3.60", 61 * S)]
    assert bill(replace(short, launched_at=None), NOW) == []
    brief = Timeouts(funding_lease=20 * S, drain=10 * S)
    assert initial_hold("3.60", brief, rules.minimum) == money.cost_ceiling("3.60", 60 * S)


def test_without_rules_the_time_from_launch_to_end_is_billed_at_the_first_price():
    used = 60 * S + 1
    changes = ((NOW - S, "9.99"), (NOW + 10 * S, "9.99"))
    life = {"pending_until": NOW + 30 * S, "price_changes": changes}
    evidence = Evidence("local", "t", "spot", "0.158", NOW, NOW + used, "preempted", **life)
    (line,) = bill(evidence, NOW + 999 * S)
    assert (line.line, line.amount, line.estimate) == ("machine", money.cost("0.158", used), False)
    assert line.reason == Usage(used, "t", "spot", "0.158")
    running = replace(evidence, ended_at=None, end_cause=None)
    assert bill(running, NOW + used)[0].reason == line.reason


def test_what_is_billed_besides_has_its_hourly_price():
    extras = (Extra("disk", "a disk", "72"), Extra("address", "an address", "3.60"))
    assert Decimal(hourly(extras)) == Decimal("0.105")
    assert Decimal(hourly(extras, "0.4")) == Decimal("0.505")
    assert hourly((), "0.40") == "0.40"


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_clock_that_is_set_changes_no_bill_and_is_said_on_it(hours):
    set_by = hours * 3600 * S
    running = Evidence("local", "t", "spot", "0.158", NOW, None, clock_shift=set_by)
    ended = replace(running, ended_at=NOW + 60 * S, end_cause="requested")
    for evidence, now in ((running, NOW + 60 * S + set_by), (ended, NOW + 99 * S + set_by)):
        (line,) = bill(evidence, now)
        assert line.amount == money.cost("0.158", 60 * S)
        assert f"set {'back' if hours < 0 else 'forward'} by 7200 s" in line.reason.text()
    assert "clock" not in bill(replace(ended, clock_shift=CLOCK_STEP - 1), NOW)[0].reason.text()
    assert "by 1 s" in bill(replace(ended, clock_shift=CLOCK_STEP), NOW)[0].reason.text()


def test_a_lease_from_before_the_clock_was_set_back_is_given_anew():
    hold = MachineFunding("0.526", remaining=money.cost_ceiling("0.526", 60 * S), funded_until=NOW + 7200 * S)
    extension = due_extension(hold, NOW, TIMEOUTS)
    assert extension is not None
    assert extension.funded_until == NOW + TIMEOUTS.funding_lease
    assert extension.amount == money.cost_ceiling("0.526", TIMEOUTS.funding_lease + TIMEOUTS.drain) - hold.remaining


def test_a_machine_that_was_not_launched_or_only_now_costs_nothing():
    assert bill(Evidence("local", "t", "spot", "0.158", None, None), NOW) == []
    assert bill(Evidence("local", "t", "spot", "0.158", NOW, None), NOW) == []
    assert bill(Evidence("local", "t", "spot", "0.158", NOW + S, None), NOW) == [], (
        "a second later by its provider's clock"
    )


# What the provider shows

ID = UUID(int=5)
UP = TrackedMachine(
    ID, "local", MachineState.RUNNING, "m-1", wanted=True, unwanted_since=2**62, refused=False,
    registered=True, call_deadline=NOW, alive_until=NOW + 30 * S, funded_until=NOW + 60 * S,
)  # fmt: skip
LAUNCHING = replace(UP, state=MachineState.LAUNCHING, provider_id=None, alive_until=None, registered=False)
SEEN = ProviderMachine("local", "local", "m-1", str(ID), {DEPLOYMENT_TAG: "us"}, "running", NOW - 60 * S)


def actions(row: TrackedMachine | None, one: ProviderMachine | None, at: int = NOW, leases: bool = True) -> list[type]:
    return reconcile([row] if row else [], [one] if one else [], "local", "us", at, leases, TIMEOUTS)


def unwanted(row: TrackedMachine, since: int = NOW) -> TrackedMachine:
    return replace(row, wanted=False, unwanted_since=since)


@pytest.mark.parametrize(
    ("row", "one", "at", "expected"),
    [
        (UP, SEEN, NOW, []),
        (UP, replace(SEEN, state="ended"), NOW, [RecordObservation]),
        (UP, replace(SEEN, state="stopping"), NOW, [RecordObservation]),
        (LAUNCHING, SEEN, NOW, [RecordObservation]),
        (unwanted(LAUNCHING), SEEN, NOW, [RecordObservation, Terminate]),
        (LAUNCHING, None, NOW + 99 * S, []),
        (replace(LAUNCHING, refused=True), None, NOW + S, []),
        (replace(LAUNCHING, refused=True), None, NOW + 2 * S, [AbandonLaunch]),
        (unwanted(LAUNCHING), None, NOW + S, []),
        (unwanted(LAUNCHING), None, NOW + 2 * S, [AbandonLaunch]),
        (replace(UP, state=MachineState.PLANNED, provider_id=None), None, NOW, []),
        (unwanted(replace(UP, state=MachineState.PLANNED, provider_id=None)), None, NOW, [AbandonLaunch]),
        (unwanted(UP), SEEN, NOW + 7 * S, []),
        (unwanted(UP), SEEN, NOW + 8 * S, [Terminate]),
        (replace(unwanted(UP), save_time=40 * S, alive_until=None), SEEN, NOW + 47 * S, []),
        (replace(unwanted(UP), save_time=40 * S, alive_until=None), SEEN, NOW + 48 * S, [Terminate]),
        (replace(unwanted(UP), save_time=99 * S, alive_until=None), SEEN, NOW + 60 * S - 1, []),
        (replace(unwanted(UP), save_time=99 * S, alive_until=None), SEEN, NOW + 60 * S, [Terminate]),  # unfunded
        (unwanted(replace(UP, registered=False)), SEEN, NOW, [Terminate]),
        (replace(unwanted(UP), left_until=NOW + 10 * S), SEEN, NOW + 10 * S - 1, []),
        (replace(unwanted(UP), left_until=NOW + 10 * S), SEEN, NOW + 10 * S, [Terminate]),
        (replace(unwanted(UP), left_until=NOW + 99 * S), SEEN, NOW + 15 * S - 1, []),
        (replace(unwanted(UP), left_until=NOW + 99 * S), SEEN, NOW + 15 * S, [Terminate]),
        (replace(unwanted(UP), left_until=NOW + 99 * S, alive_until=NOW), SEEN, NOW + 14 * S, []),
        (replace(unwanted(UP), left_until=NOW + 99 * S, funded_until=NOW + 2 * S), SEEN, NOW + 2 * S, [Terminate]),
        (replace(unwanted(UP), left_until=NOW + 99 * S, funded_until=None), SEEN, NOW + 9 * S, []),
        (replace(UP, left_until=NOW + 99 * S), SEEN, NOW + 31 * S, [Terminate]),
        (replace(UP, state=MachineState.TERMINATING), SEEN, NOW, [Terminate]),
        (replace(UP, state=MachineState.TERMINATING), replace(SEEN, state="stopping"), NOW, [Terminate]),
        (replace(UP, state=MachineState.TERMINATING), replace(SEEN, state="ended"), NOW, [RecordObservation]),
        (UP, SEEN, NOW + 31 * S, [Terminate]),
        (replace(UP, alive_until=NOW + 99 * S), SEEN, NOW + 60 * S, [Terminate]),
        (replace(UP, alive_until=None, funded_until=None), SEEN, NOW + 999 * S, []),
        (UP, replace(SEEN, clock_shift=-7200 * S), NOW, [RecordObservation]),
        (UP, replace(SEEN, clock_shift=7200 * S), NOW + 7200 * S, [RecordObservation]),
        (replace(UP, clock_shift=-7200 * S), replace(SEEN, clock_shift=-7200 * S + 1), NOW, []),
        (UP, replace(SEEN, state="pending"), NOW, [RecordObservation]),
        (UP, replace(SEEN, price_changes=((NOW, "0.1"),)), NOW, [RecordObservation]),
        (replace(UP, priced_until=NOW), replace(SEEN, price_changes=((NOW, "0.1"),)), NOW, []),
        (UP, None, NOW, [NotListed]),
        (replace(UP, not_listed_since=NOW), None, NOW + 299 * S, []),
        (replace(UP, not_listed_since=NOW), None, NOW + 300 * S, [PresumeTerminated]),
        (replace(UP, not_listed_since=NOW, alive_until=None), None, NOW + 300 * S, [PresumeTerminated]),
        (replace(UP, not_listed_since=NOW, alive_until=NOW + 301 * S), None, NOW + 300 * S, []),
        (
            unwanted(replace(UP, not_listed_since=NOW, alive_until=NOW + 301 * S)),
            None,
            NOW + 300 * S,
            [PresumeTerminated],
        ),
        (None, SEEN, NOW, [Terminate]),
        (None, replace(SEEN, state="ended"), NOW, []),
        (None, replace(SEEN, state="stopping"), NOW, []),
        (None, replace(SEEN, state="stopping", rests=True), NOW, [Terminate]),
        (None, replace(SEEN, tags={DEPLOYMENT_TAG: "others"}), NOW, []),
        (None, replace(SEEN, tags={}), NOW, []),
        (None, replace(SEEN, provider="another"), NOW, []),
        (None, replace(SEEN, tags={DEPLOYMENT_TAG: "us", PROVIDER_TAG: "another"}), NOW, []),
        (UP, replace(SEEN, tags={DEPLOYMENT_TAG: "others"}), NOW, [NotListed]),
        (UP, replace(SEEN, provider="another"), NOW, [NotListed]),
    ],
)
def test_each_difference_has_its_action(row, one, at, expected):
    assert [type(action) for action in actions(row, one, at)] == expected


def test_missed_reports_count_only_while_the_service_could_receive_them():
    late = NOW + 31 * S
    (end,) = actions(UP, SEEN, late)
    assert end.lease_expired
    assert actions(UP, SEEN, late, leases=False) == []


FREE_HOUR = BillingRules(free_if_interrupted_within=3600 * S)


@pytest.mark.parametrize(
    ("notice_at", "market", "rules", "expected"),
    [
        (NOW + 3600 * S - 1, "spot", FREE_HOUR, NOW + 3660 * S - 1),
        (NOW + 3600 * S, "spot", FREE_HOUR, None),
        (NOW + 60 * S, "on_demand", FREE_HOUR, None),
        (NOW + 60 * S, "spot", BillingRules(), None),
    ],
)
def test_a_machine_with_a_notice_is_left_to_its_provider_only_where_that_makes_it_free(
    notice_at: int, market: str, rules: BillingRules, expected: int | None
):
    evidence = Evidence("ec2", "t", market, "0.41", NOW, None, rules=rules)
    until = free_if_left_until(evidence, notice_at)
    assert until == expected
    interrupted, ended = (
        bill(replace(evidence, ended_at=notice_at, end_cause=cause), notice_at)[0].amount
        for cause in ("preempted", "requested")
    )
    assert (interrupted < ended) == (until is not None)


def test_a_bill_at_two_spot_prices_names_the_lowest_and_the_highest():
    rules = BillingRules(spot_price_moves=True)
    changes = ((0, "0.40"), (10 * S, "0.42"))
    evidence = Evidence("p", "t", "spot", "0.40", 0, 20 * S, "requested", price_changes=changes, rules=rules)
    (line,) = bill(evidence, 30 * S)
    assert (line.reason.price, line.reason.highest) == ("0.40", "0.42")
