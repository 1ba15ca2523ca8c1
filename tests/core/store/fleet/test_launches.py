# SPDX-License-Identifier: Apache-2.0
"""Launch calls: each machine is launched once, and its hold is released only if it was certainly never launched."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.store import jobs
from shoestring_core.store.fleet import agents, gangs, launches
from shoestring_core.store.tables import AttemptRow, JobRow, MachineRow
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording.machines import LaunchRefused, LaunchUnanswered
from sqlalchemy import update

from tests.core.world import LAUNCHING, NEVER_LAUNCHED, OFFER, PLANNED, RUNNING, Fleet, meanwhile


def call_facts(fleet: Fleet, machine: UUID) -> tuple[str, int | None, str | None, str]:
    """What answers to launch calls may change: the machine's state, its call's deadline and refusal, its hold."""
    row = fleet.machine_row(machine)
    return row.state, row.call_deadline, row.refusal, fleet.hold_row(machine).state


def unwanted(fleet: Fleet, job: UUID) -> None:
    assert fleet.write(gangs.close_attempt, job, 1, "stop")


def launchable(fleet: Fleet) -> list[UUID]:
    return [machine.id for machine in fleet.read(launches.load_launchable)]


# Calls


def test_a_call_in_progress_is_made_again_only_after_its_deadline(fleet: Fleet) -> None:
    (machine,) = fleet.ids(fleet.start())
    assert launchable(fleet) == [machine]
    call = fleet.call(machine)
    row = fleet.machine_row(machine)
    assert call.call_deadline == fleet.clock.now + fleet.timeouts.launch_call
    assert call == launches.LaunchCall(
        machine, row.provider, LaunchRequest.from_json(row.launch_request), call.call_deadline
    )
    assert call_facts(fleet, machine) == (LAUNCHING, call.call_deadline, None, "open")
    fleet.clock.now = call.call_deadline - 1
    assert launchable(fleet) == []
    assert fleet.write(launches.begin_launch, machine, fleet.timeouts) is None
    assert fleet.machine_row(machine).call_deadline == call.call_deadline
    fleet.clock.now += 1
    assert launchable(fleet) == [machine]
    again = fleet.call(machine)
    assert again.request == call.request
    deadline = fleet.clock.now + fleet.timeouts.launch_call
    assert call_facts(fleet, machine) == (LAUNCHING, deadline, launches.UNKNOWN, "open")


def test_a_machine_that_runs_is_not_called_for_again(fleet: Fleet) -> None:
    fleet.running()
    fleet.clock.pass_(600)
    assert launchable(fleet) == []


def test_a_call_without_an_answer_is_made_again_at_once(fleet: Fleet) -> None:
    machine, other = fleet.ids(fleet.start(nodes=2))
    call, others = fleet.call(machine), fleet.call(other)
    fleet.clock.pass_(1)
    fleet.write(launches.record_no_answer, call)
    assert call_facts(fleet, machine) == (LAUNCHING, fleet.clock.now, launches.UNKNOWN, "open")
    assert call_facts(fleet, other) == (LAUNCHING, others.call_deadline, None, "open")
    assert launchable(fleet) == [machine]


def test_of_workers_that_begin_the_same_call_one_makes_it(fleet: Fleet) -> None:
    (machine,) = fleet.ids(fleet.start())
    theirs = update(MachineRow).where(MachineRow.id == machine).values(state=LAUNCHING, call_deadline=2**60)
    with meanwhile(fleet.store, "machines", theirs):
        assert fleet.write(launches.begin_launch, machine, fleet.timeouts) is None
    assert call_facts(fleet, machine) == (LAUNCHING, 2**60, None, "open")


def test_a_call_begins_only_for_its_own_machine(fleet: Fleet) -> None:
    machine, other = fleet.ids(fleet.start(nodes=2))
    fleet.call(machine)
    assert call_facts(fleet, other) == (PLANNED, None, None, "open")
    assert launchable(fleet) == [other]
    assert fleet.write(launches.begin_launch, uuid7(), fleet.timeouts) is None


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize(
    "why",
    ["its attempt closes", "its job stops", "its job is to pause", "it is of an older attempt", "resumed as it stops"],
)
def test_no_machine_is_called_for_that_is_no_longer_wanted(fleet: Fleet, why: str, called: bool) -> None:
    job, (machine, *_) = fleet.running(nodes=1)
    fleet.start()  # another job's attempt, as open as can be
    state = LAUNCHING if called else PLANNED
    fleet.alter(MachineRow, MachineRow.id == machine, state=state, call_deadline=0 if called else None)
    assert machine in launchable(fleet)
    if why == "its job stops":
        fleet.write(jobs.stop, job, "ann")
    elif why == "resumed as it stops":
        fleet.alter(JobRow, JobRow.id == job, state="stopping", desired_state="run")
    elif why == "its job is to pause":
        fleet.alter(JobRow, JobRow.id == job, desired_state="pause")
    else:
        unwanted(fleet, job)
    if why == "it is of an older attempt":
        fleet.store.write(
            lambda db: db.insert_new(
                AttemptRow, job=job, number=2, state="open", plan={}, plan_version=0, opened_at=db.now
            )
        )
    assert machine not in launchable(fleet)
    assert fleet.write(launches.begin_launch, machine, fleet.timeouts) is None
    assert fleet.machine_row(machine).state == state


# Refusals


def test_the_hold_of_a_refused_machine_is_released_at_once(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    machine, other = fleet.ids(job)
    call, others = fleet.call(machine), fleet.call(other)
    held = fleet.hold_row(machine).amount
    assert fleet.totals(fleet.job_row(job)) == [(0, 2 * held, 0)] * 4
    assert fleet.requests_tick(
        lambda: fleet.write(launches.record_refusal, call, RefusalKind.CAPACITY, "no slot is free")
    )
    assert call_facts(fleet, machine) == (NEVER_LAUNCHED, call.call_deadline, "capacity", "closed")
    assert call_facts(fleet, other) == (LAUNCHING, others.call_deadline, None, "open")
    assert fleet.totals(fleet.job_row(job)) == [(0, held, 0)] * 4
    assert fleet.told("machine", machine)[-1] == (
        NEVER_LAUNCHED,
        LaunchRefused("capacity", "no slot is free").as_json(),
    )
    fleet.write(launches.record_refusal, call, RefusalKind.CAPACITY, "no slot is free")
    assert fleet.totals(fleet.job_row(job)) == [(0, held, 0)] * 4
    assert fleet.find_discrepancies() == []


def test_a_problem_that_somebody_has_to_solve_is_told_once_and_kept_until_the_machine_is_there(fleet: Fleet) -> None:
    (machine,) = fleet.ids(fleet.start())
    begun = len(fleet.told("machine", machine))
    for problem in (None, "Set the clock.", "Set the clock, please.", None):
        fleet.write(launches.record_no_answer, fleet.call(machine), problem)
        fleet.clock.pass_(1)
    assert fleet.machine_row(machine).refusal_text == "Set the clock, please."
    assert fleet.told("machine", machine)[begun:] == [(LAUNCHING, LaunchUnanswered("Set the clock.").as_json())]
    assert launchable(fleet) == [machine]


def test_a_refusal_proves_nothing_after_a_call_whose_outcome_is_unknown(fleet: Fleet) -> None:
    machine, other = fleet.ids(fleet.start(nodes=2))
    for one in (machine, other):
        fleet.write(launches.record_no_answer, fleet.call(one))
    second, others = fleet.call(machine), fleet.call(other)
    fleet.clock.pass_(1)
    fleet.write(launches.record_refusal, second, RefusalKind.CAPACITY, "full")
    assert call_facts(fleet, machine) == (LAUNCHING, fleet.clock.now, "capacity", "open")
    assert call_facts(fleet, other) == (LAUNCHING, others.call_deadline, launches.UNKNOWN, "open")
    assert launchable(fleet) == [], "the provider has refused it"
    assert fleet.write(launches.abandon_launch, machine, LATER, fleet.timeouts)
    assert fleet.told("machine", machine)[-1] == (NEVER_LAUNCHED, LaunchRefused("capacity", "full").as_json())


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("answer", ["refused", "not answered"])
@pytest.mark.parametrize("first_known", [True, False])
def test_an_answer_to_an_older_call_changes_nothing(fleet: Fleet, answer: str, first_known: bool) -> None:
    (machine,) = fleet.ids(fleet.start())
    first = fleet.call(machine)
    fleet.clock.now = first.call_deadline
    second = fleet.call(machine)
    refusal = None if first_known else launches.UNKNOWN
    fleet.alter(MachineRow, MachineRow.id == machine, refusal=refusal)
    fleet.clock.pass_(1)
    if answer == "refused":
        fleet.write(launches.record_refusal, first, RefusalKind.CAPACITY, "full")
    else:
        fleet.write(launches.record_no_answer, first)
    assert call_facts(fleet, machine) == (LAUNCHING, second.call_deadline, refusal, "open")
    assert launchable(fleet) == []


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("answer", ["refused", "not answered"])
@pytest.mark.parametrize("refusal", [None, launches.UNKNOWN])
def test_an_answer_to_the_call_of_a_machine_that_runs_changes_nothing(
    fleet: Fleet, answer: str, refusal: str | None
) -> None:
    (machine,) = fleet.ids(fleet.start())
    call = fleet.call(machine)
    fleet.observe(machine)
    fleet.alter(MachineRow, MachineRow.id == machine, refusal=refusal)
    fleet.clock.pass_(1)
    if answer == "refused":
        fleet.write(launches.record_refusal, call, RefusalKind.CAPACITY, "full")
    else:
        fleet.write(launches.record_no_answer, call)
    assert call_facts(fleet, machine) == (RUNNING, call.call_deadline, refusal, "open")


def test_a_refusal_for_an_unknown_machine_is_ignored(fleet: Fleet) -> None:
    call = fleet.call(*fleet.ids(fleet.start()))
    unknown = replace(call, machine=uuid7())
    fleet.write(launches.record_refusal, unknown, RefusalKind.QUOTA, "y")
    fleet.write(launches.record_no_answer, unknown, "Set the clock.")
    assert not fleet.write(launches.abandon_launch, uuid7(), 2**60, fleet.timeouts)


# Machines that were never launched

LATER = 2**60


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    ("state", "refusal", "wanted", "listed_after", "abandoned"),
    [
        (PLANNED, None, True, LATER, False),
        (PLANNED, None, False, -LATER, True),
        (LAUNCHING, None, True, LATER, False),
        (LAUNCHING, None, False, -1, False),
        (LAUNCHING, None, False, 0, True),
        (LAUNCHING, launches.UNKNOWN, True, LATER, False),
        (LAUNCHING, launches.UNKNOWN, False, 0, True),
        (LAUNCHING, "capacity", True, -1, False),
        (LAUNCHING, "capacity", True, 0, True),
        (LAUNCHING, "capacity", False, 0, True),
        (RUNNING, None, False, LATER, False),
        (NEVER_LAUNCHED, "capacity", False, LATER, False),
    ],
)
def test_a_machine_is_given_up_only_if_no_call_can_have_launched_it(
    fleet: Fleet, state: str, refusal: str | None, wanted: bool, listed_after: int, abandoned: bool
) -> None:
    """`listed_after`: when the list without it was requested, from when every call must show in it on."""
    job = fleet.start(nodes=2)
    machine, other = fleet.ids(job)
    for one in (machine, other):
        fleet.alter(MachineRow, MachineRow.id == one, state=state, refusal=refusal, call_deadline=fleet.clock.now)
    if not wanted:
        unwanted(fleet, job)
    held = fleet.hold_row(machine).amount
    listed_at = fleet.clock.now + fleet.timeouts.consistency_window + listed_after
    assert fleet.write(launches.abandon_launch, machine, listed_at, fleet.timeouts) == abandoned
    assert call_facts(fleet, machine) == (
        (NEVER_LAUNCHED, fleet.clock.now, refusal, "closed") if abandoned else (state, fleet.clock.now, refusal, "open")
    )
    assert call_facts(fleet, other) == (state, fleet.clock.now, refusal, "open")
    assert fleet.totals(fleet.job_row(job)) == [(0, held if abandoned else 2 * held, 0)] * 4


def test_a_machine_that_turns_up_while_it_is_given_up_keeps_its_hold(fleet: Fleet) -> None:
    job = fleet.start()
    (machine,) = fleet.ids(job)
    call = fleet.call(machine)
    unwanted(fleet, job)
    turns_up = update(MachineRow).where(MachineRow.id == machine).values(state=RUNNING)
    with meanwhile(fleet.store, "machines", turns_up):
        assert not fleet.write(launches.abandon_launch, machine, LATER, fleet.timeouts)
    assert call_facts(fleet, machine) == (RUNNING, call.call_deadline, None, "open")
    assert [state for state, _ in fleet.told("machine", machine)] == [PLANNED]


@pytest.mark.any_database
@pytest.mark.parametrize("noticed", [True, False])
def test_an_offer_is_avoided_after_a_machine_of_it_was_interrupted_with_or_without_notice(
    fleet: Fleet, noticed: bool
) -> None:
    _, (machine,) = fleet.running()
    assert fleet.read(launches.load_refusals) == ()
    if noticed:
        fleet.write(agents.record_notice, machine, fleet.clock.now + 120 * S)
    else:
        fleet.end(machine, "preempted")
    (avoided,) = fleet.read(launches.load_refusals)
    assert (avoided.kind, avoided.at, avoided.concerns(OFFER)) == (RefusalKind.INTERRUPTED, fleet.clock.now, True)


def test_an_offer_is_avoided_whose_machine_was_refused_after_it_had_been_launched(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    fleet.end(machine, RefusalKind.CAPACITY)
    assert [avoided.kind for avoided in fleet.read(launches.load_refusals)] == [RefusalKind.CAPACITY]


def test_an_offer_is_not_avoided_after_a_machine_of_it_ended_otherwise(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    fleet.end(machine, "exited")
    assert fleet.read(launches.load_refusals) == ()


def test_a_machine_is_asked_of_the_provider_that_it_was_planned_with(fleet: Fleet) -> None:
    machine, other = fleet.ids(fleet.start(nodes=2))
    fleet.alter(MachineRow, MachineRow.id == other, provider="other")
    assert [fleet.read(launches.load_provider, one) for one in (machine, other, uuid7())] == ["local", "other", None]
