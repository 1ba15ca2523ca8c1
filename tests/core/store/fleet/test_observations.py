# SPDX-License-Identifier: Apache-2.0
"""What providers report about machines is recorded as it is, for that machine alone, and ends are final."""

from __future__ import annotations

import pytest
from shoestring_core import money
from shoestring_core.decide.billing import CLOCK_STEP
from shoestring_core.decide.reconcile import ProviderMachine, TrackedMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet import agents, billing, gangs, launches, observations
from shoestring_core.store.tables import AttemptRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording.machines import LeaseExpired, NoLongerListed, NotNeeded
from sqlalchemy import update

from tests.core.world import (
    LAUNCHING,
    NEVER_LAUNCHED,
    OFFER,
    PLANNED,
    RUNNING,
    TERMINATED,
    TERMINATING,
    Fleet,
    about,
    meanwhile,
)


@pytest.mark.parametrize("called", [True, False])
def test_a_machine_that_is_listed_runs_and_may_take_its_time_to_boot(fleet: Fleet, called: bool) -> None:
    machine, other = fleet.ids(fleet.start(nodes=2))
    if called:
        fleet.call(machine)
    launched_at = fleet.clock.now
    fleet.clock.pass_(3)
    assert fleet.requests_tick(lambda: fleet.observe(machine, launched_at=launched_at))
    row = fleet.machine_row(machine)
    assert (row.state, row.provider_id, row.launched_at) == (RUNNING, f"pm-{machine.hex}", launched_at)
    assert row.alive_until == fleet.clock.now + fleet.timeouts.boot
    assert (row.ended_at, row.end_cause, row.end_evidence) == (None, None, None)
    assert fleet.told("machine", machine)[-1] == (RUNNING, None)
    others = fleet.machine_row(other)
    assert (others.state, others.provider_id, others.launched_at, others.alive_until) == (PLANNED, None, None, None)


def test_seeing_the_same_again_changes_nothing(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    before, told = fleet.machine_row(machine), fleet.told("machine", machine)
    fleet.clock.pass_(5)
    fleet.tick_requests.clear()
    fleet.observe(machine)
    after = fleet.machine_row(machine)
    assert (after.state, after.alive_until, after.launched_at) == (before.state, before.alive_until, before.launched_at)
    assert fleet.told("machine", machine) == told
    assert fleet.tick_requests == []


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("seen", ["running", "stopping"])
def test_a_machine_that_terminates_does_so_until_its_end(fleet: Fleet, seen: str) -> None:
    machine, other = fleet.launch(fleet.start(nodes=2))
    fleet.observe(machine, "stopping")
    assert fleet.machine_row(machine).state == TERMINATING
    assert fleet.told("machine", machine)[-1] == (TERMINATING, None)
    fleet.observe(machine, seen)
    assert fleet.machine_row(machine).state == TERMINATING
    assert fleet.machine_row(other).state == RUNNING


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    ("launched_after", "ended_after", "expected"),
    [(0, 40 * S, 40 * S), (10 * S, 4 * S, 10 * S), (0, None, 90 * S)],
)
def test_an_end_is_recorded_with_the_providers_time_and_never_changes(
    fleet: Fleet, launched_after: int, ended_after: int | None, expected: int
) -> None:
    """Without a time it is now; before its launch no machine ends."""
    begun = fleet.clock.now
    machine, other = fleet.launch(fleet.start(nodes=2))
    fleet.clock.pass_(90)
    ended_at = None if ended_after is None else begun + ended_after
    facts = {"launched_at": begun + launched_after, "ended_at": ended_at, "end_cause": "crashed"}
    assert fleet.requests_tick(lambda: fleet.observe(machine, "ended", **facts))
    for _ in range(2):
        row = fleet.machine_row(machine)
        assert (row.state, row.ended_at, row.end_cause, row.end_evidence) == (
            TERMINATED, begun + expected, "crashed", "provider",
        )  # fmt: skip
        fleet.clock.pass_(10)
        fleet.observe(machine, "ended", ended_at=begun + 80 * S, end_cause="exited")
        fleet.observe(machine)
        fleet.write(observations.presume_terminated, machine)
    last = [one for one in fleet.events("machine") if about(one) == str(machine)][-1]
    assert (last.data["state"], last.data["cause"]) == (TERMINATED, "crashed")
    assert fleet.machine_row(other).state == RUNNING


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("set_by", [-7200 * S, -CLOCK_STEP, CLOCK_STEP, 7200 * S])
def test_a_machine_keeps_its_lease_and_its_bill_when_the_clock_is_set(fleet: Fleet, set_by: int) -> None:
    _, (machine,) = fleet.running()
    began = fleet.clock.now
    fleet.clock.now += 20 * S + set_by
    fleet.observe(machine, clock_shift=set_by)
    row = fleet.machine_row(machine)
    assert row.alive_until == fleet.clock.now + fleet.timeouts.machine_lease, "neither hours late, nor over at once"
    fleet.write(billing.post_cost, machine)
    launched_s = (began - (row.launched_at or 0)) // S
    assert [one.amount for one in fleet.transfer_rows(machine)] == [money.cost(row.price, (launched_s + 20) * S)]


def test_what_a_bill_is_made_from_is_recorded_when_the_provider_says_it(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    begun = fleet.clock.now
    for seconds, state, changes in (
        (5, "pending", ()),
        (10, "running", ((begun - 60 * S, "0.40"), (begun + 7 * S, "0.41"))),
        (20, "stopping", ()),
        (30, "stopping", ()),
        (40, "ended", ((begun + 7 * S, "0.41"), (begun + 12 * S, "0.42"))),
    ):
        fleet.clock.now = begun + seconds * S
        fleet.observe(machine, state, price_changes=changes)
        if state == "running":
            (tracked,) = fleet.read(observations.load_tracked_machines, OFFER.provider)
            assert tracked.priced_until == begun + 7 * S
    evidence = billing.evidence(fleet.machine_row(machine))
    assert (evidence.pending_until, evidence.ended_at) == (begun + 5 * S, begun + 20 * S)
    assert evidence.price_changes == ((begun - 60 * S, "0.40"), (begun + 7 * S, "0.41"), (begun + 12 * S, "0.42"))


def test_what_the_provider_does_not_say_again_stays_as_it_was(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    fleet.observe(machine, image="ami-1")
    fleet.write(agents.record_notice, machine, fleet.clock.now + 120 * S)
    noticed = fleet.clock.now
    fleet.clock.pass_(60)
    fleet.observe(machine, "stopping", end_cause="preempted")
    row = fleet.machine_row(machine)
    assert (row.image, row.price_changes) == ("ami-1", None)
    assert (row.end_cause, row.refusal, row.refused_at) == ("preempted", RefusalKind.INTERRUPTED, noticed)


def test_a_machine_that_was_never_launched_stays_so(fleet: Fleet) -> None:
    (machine,) = fleet.ids(fleet.start())
    fleet.write(launches.record_refusal, fleet.call(machine), RefusalKind.CAPACITY, "full")
    for state in ("running", "stopping", "ended"):
        fleet.observe(machine, state)
    row = fleet.machine_row(machine)
    assert (row.state, row.provider_id, row.launched_at, row.ended_at) == (NEVER_LAUNCHED, None, None, None)


def test_an_end_that_is_recorded_meanwhile_stands(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    fleet.clock.pass_(50)
    ends = update(MachineRow).where(MachineRow.id == machine).values(state=TERMINATED, ended_at=1, end_cause="crashed")
    with meanwhile(fleet.store, "machines", ends):
        fleet.end(machine, "exited")
    row = fleet.machine_row(machine)
    assert (row.state, row.ended_at, row.end_cause) == (TERMINATED, 1, "crashed")


def test_what_is_observed_of_a_machine_whose_end_is_recorded_meanwhile_changes_nothing(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    before = fleet.machine_row(machine).clock_shift
    ends = update(MachineRow).where(MachineRow.id == machine).values(state=TERMINATED, ended_at=1, end_cause="crashed")
    with meanwhile(fleet.store, "machines", ends):
        fleet.observe(machine, "running", clock_shift=5 * S)
    assert (fleet.machine_row(machine).state, fleet.machine_row(machine).clock_shift) == (TERMINATED, before)


def test_a_region_is_listed_often_while_a_machine_there_begins_or_is_no_longer_wanted(fleet: Fleet) -> None:
    job = fleet.start()
    provider = fleet.machine_rows(job)[0].provider
    (machine,) = fleet.launch(job)
    region = fleet.machine_row(machine).region

    def living() -> dict[str, bool]:
        return fleet.read(observations.load_regions_in_use, provider, 0)

    assert living() == {region: False}
    for state in (PLANNED, LAUNCHING, TERMINATING):
        fleet.alter(MachineRow, MachineRow.id == machine, state=state)
        assert living() == {region: True}, state
    fleet.alter(MachineRow, MachineRow.id == machine, state=RUNNING)
    for table, whose, wanted, unwanted in (
        (JobRow, JobRow.id == job, {"desired_state": "run"}, {"desired_state": "stop"}),
        (JobRow, JobRow.id == job, {"state": "running"}, {"state": "queued"}),
        (AttemptRow, AttemptRow.job == job, {"state": "open"}, {"state": "closing"}),
    ):
        fleet.alter(table, whose, **unwanted)
        assert living() == {region: True}, unwanted
        fleet.alter(table, whose, **wanted)
        assert living() == {region: False}, wanted
    fleet.alter(MachineRow, MachineRow.id == machine, state=TERMINATED, ended_at=1)
    assert living() == {}


def test_a_region_is_listed_at_once_where_a_machine_may_have_ended(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    provider = fleet.machine_rows(job)[0].provider
    machines = fleet.launch(job)
    region = fleet.machine_row(machines[0]).region

    def living(silent_since: int = 0) -> dict[str, bool]:
        return fleet.read(observations.load_regions_in_use, provider, silent_since)

    assert living(fleet.clock.now - 1) == {region: False}
    assert living(fleet.clock.now) == {region: True}, "those that boot have said nothing yet"
    fleet.form(job)
    assert living(fleet.clock.now - 1) == {region: False}
    assert living(fleet.clock.now) == {region: True}, "they were silent"
    of_one = (MemberRow.machine == machines[1], MemberRow.generation == 1)
    fleet.alter(MemberRow, *of_one, exited_at=fleet.clock.now)
    assert living() == {region: True}, "ranks exit whose peers are lost"
    fleet.alter(MemberRow, *of_one, exited_at=None)
    assert living() == {region: False}


def test_a_region_is_listed_by_what_happens_to_its_own_machines_alone(fleet: Fleet) -> None:
    job, (first, second) = fleet.running(nodes=2)
    provider, region = fleet.machine_row(first).provider, fleet.machine_row(first).region
    elsewhere, (foreign,) = fleet.running()
    fleet.alter(MachineRow, MachineRow.id == second, region="b")
    fleet.alter(MachineRow, MachineRow.id == foreign, provider="other", region="c")

    def living() -> dict[str, bool]:
        return fleet.read(observations.load_regions_in_use, provider, 0)

    assert living() == {region: False, "b": False}
    fleet.exits(foreign, 1, "signal")
    fleet.alter(AttemptRow, AttemptRow.job == elsewhere, state="closing")
    assert living() == {region: False, "b": False}, "of another job and another provider"
    fleet.exits(second, 1, "signal")
    assert living() == {region: False, "b": True}
    fleet.alter(MachineRow, MachineRow.id == second, region=region)
    assert living() == {region: True}, "one of the two"
    fleet.restart(job)
    assert living() == {region: False}, "ranks of a generation before"
    fleet.alter(JobRow, JobRow.id == job, attempt=2)
    assert living() == {region: True}, "machines of an attempt before"


def test_what_is_observed_of_no_machine_of_ours_changes_nothing(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    before = fleet.machine_row(machine).provider_id
    observed = ProviderMachine("local", "local", "pm-other", str(uuid7()), {}, "running", fleet.clock.now)
    fleet.write(observations.record_observation, uuid7(), observed, fleet.timeouts)
    fleet.end(machine)
    fleet.clock.pass_(5)
    fleet.write(observations.record_observation, machine, observed, fleet.timeouts)
    row = fleet.machine_row(machine)
    assert (row.state, row.provider_id, row.ended_at) == (TERMINATED, before, fleet.clock.now - 5 * S)


def test_a_cause_that_was_told_before_the_end_is_kept(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    fleet.observe(machine, "stopping", end_cause="preempted")
    fleet.observe(machine, "ended", ended_at=fleet.clock.now)
    assert fleet.machine_row(machine).end_cause == "preempted"


def test_an_observation_of_an_unknown_machine_is_ignored(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    fleet.store.write(lambda db: observations.presume_terminated(db, uuid7()))
    assert not fleet.write(observations.begin_termination, uuid7(), LeaseExpired(), lease=False)
    assert fleet.machine_row(machine).state == RUNNING


# Machines that the provider has forgotten


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    ("funded", "passed", "launched", "expected"),
    [(60, 90, 0, 60), (60, 20, 0, 20), (60, 60, 0, 60), (None, 90, 0, 90), (60, 90, 70, 70)],
)
def test_a_forgotten_machine_has_ended_with_its_funding_at_the_latest(
    fleet: Fleet, funded: int | None, passed: int, launched: int, expected: int
) -> None:
    begun = fleet.clock.now
    machine, other = fleet.launch(fleet.start(nodes=2))
    funded_until = None if funded is None else begun + funded * S
    fleet.alter(
        MachineRow, MachineRow.id == machine, funded_until=funded_until, launched_at=begun + launched * S
    )  # fmt: skip
    fleet.clock.pass_(passed)
    assert fleet.requests_tick(lambda: fleet.write(observations.presume_terminated, machine))
    row = fleet.machine_row(machine)
    assert (row.state, row.ended_at, row.end_evidence) == (TERMINATED, begun + expected * S, "inferred")
    assert fleet.told("machine", machine)[-1] == (TERMINATED, NoLongerListed().as_json())
    assert fleet.machine_row(other).state == RUNNING


def test_a_machine_that_was_never_listed_is_not_presumed_terminated(fleet: Fleet) -> None:
    (machine,) = fleet.ids(fleet.start())
    for state in (PLANNED, LAUNCHING, NEVER_LAUNCHED):
        fleet.alter(MachineRow, MachineRow.id == machine, state=state)
        fleet.write(observations.presume_terminated, machine)
        assert fleet.machine_row(machine).state == state


def test_a_terminating_machine_that_is_forgotten_has_terminated(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    fleet.observe(machine, "stopping")
    fleet.clock.pass_(10)
    fleet.write(observations.presume_terminated, machine)
    row = fleet.machine_row(machine)
    assert (row.state, row.ended_at) == (TERMINATED, fleet.clock.now)


def test_a_forgotten_machine_whose_end_is_reported_meanwhile_ended_then(fleet: Fleet) -> None:
    (machine,) = fleet.launch(fleet.start())
    ends = update(MachineRow).where(MachineRow.id == machine).values(state=TERMINATED, ended_at=1)
    with meanwhile(fleet.store, "machines", ends):
        fleet.write(observations.presume_terminated, machine)
    row = fleet.machine_row(machine)
    assert (row.ended_at, row.end_evidence) == (1, None)
    assert TERMINATED not in dict(fleet.told("machine", machine))


# Terminations


def test_a_termination_is_decided_once_and_called_for_until_the_end(fleet: Fleet) -> None:
    machine, other = fleet.launch(fleet.start(nodes=2))
    for _ in range(3):
        assert fleet.write(observations.begin_termination, machine, NotNeeded(), lease=False)
    assert fleet.machine_row(machine).state == TERMINATING
    assert fleet.told("machine", machine)[1:] == [(RUNNING, None), (TERMINATING, NotNeeded().as_json())]
    assert fleet.machine_row(other).state == RUNNING


@pytest.mark.parametrize(("lease", "left", "terminates"), [(True, 1, False), (True, 0, True), (False, 1, True)])
def test_a_lease_that_was_renewed_meanwhile_protects_its_machine_from_silence_alone(
    fleet: Fleet, lease: bool, left: int, terminates: bool
) -> None:
    machine, other = fleet.launch(fleet.start(nodes=2))
    fleet.clock.now = fleet.machine_row(machine).alive_until - left
    assert fleet.write(observations.begin_termination, machine, LeaseExpired(), lease=lease) == terminates
    assert fleet.machine_row(machine).state == (TERMINATING if terminates else RUNNING)
    assert fleet.machine_row(other).state == RUNNING


def test_only_a_running_machine_is_terminated(fleet: Fleet) -> None:
    (machine,) = fleet.ids(fleet.start())
    for state in (PLANNED, LAUNCHING, TERMINATED, NEVER_LAUNCHED):
        fleet.alter(MachineRow, MachineRow.id == machine, state=state, ended_at=1)
        assert not fleet.write(observations.begin_termination, machine, NotNeeded(), lease=False)
        assert fleet.machine_row(machine).state == state


# What is compared with the provider


def test_every_live_machine_is_compared_with_the_provider(fleet: Fleet) -> None:
    wanted, closing = fleet.start(nodes=2), fleet.start(nodes=4)
    planned, running = fleet.ids(wanted)
    fleet.call(running)
    fleet.observe(running)
    fleet.register(running)
    refused, called, ended, abandoned = fleet.ids(closing)
    for one in (refused, called, ended):
        fleet.call(one)
    fleet.alter(MachineRow, MachineRow.id == refused, refusal="capacity")
    fleet.alter(MachineRow, MachineRow.id == called, refusal=launches.UNKNOWN)
    fleet.end(ended)
    fleet.clock.pass_(1)
    fleet.write(gangs.close_attempt, closing, 1, "stop")
    fleet.write(launches.abandon_launch, abandoned, 0, fleet.timeouts)
    begun = fleet.clock.now - S
    deadline = begun + fleet.timeouts.launch_call
    common = {"region": "local", "funded_until": begun + fleet.timeouts.funding_lease}
    expected = {
        planned: TrackedMachine(
            id=planned, state=PLANNED, provider_id=None, wanted=True, unwanted_since=2**62, refused=False,
            registered=False, call_deadline=0, alive_until=None, **common,
        ),
        running: TrackedMachine(
            id=running, state=RUNNING, provider_id=f"pm-{running.hex}", wanted=True, unwanted_since=2**62,
            refused=False, registered=True, call_deadline=deadline,
            alive_until=begun + fleet.timeouts.machine_lease, **common,
        ),
        refused: TrackedMachine(
            id=refused, state=LAUNCHING, provider_id=None, wanted=False, unwanted_since=fleet.clock.now, refused=True,
            registered=False, call_deadline=deadline, alive_until=None, **common,
        ),
        called: TrackedMachine(
            id=called, state=LAUNCHING, provider_id=None, wanted=False, unwanted_since=fleet.clock.now, refused=False,
            registered=False, call_deadline=deadline, alive_until=None, **common,
        ),
    }  # fmt: skip
    everywhere = [expected[one] for one in sorted(expected)]
    assert fleet.read(observations.load_tracked_machines, OFFER.provider) == everywhere
    assert fleet.read(observations.load_tracked_machines, OFFER.provider, "local") == everywhere
    assert fleet.read(observations.load_tracked_machines, OFFER.provider, "elsewhere") == []
    assert fleet.read(observations.load_tracked_machines, "another") == []


def test_a_machine_is_compared_once_however_many_attempts_its_job_had(fleet: Fleet) -> None:
    job, (first,) = fleet.running()
    fleet.retry(job)
    (second,) = fleet.launch_again(job)
    fleet.alter(MachineRow, MachineRow.id == first, state=RUNNING, ended_at=None)
    tracked = fleet.read(observations.load_tracked_machines, OFFER.provider)
    assert [(one.id, one.wanted) for one in tracked] == sorted([(first, False), (second, True)])
    fleet.alter(MachineRow, MachineRow.id == first, state=TERMINATED, ended_at=1)
    assert fleet.read(observations.load_regions_in_use, OFFER.provider, 0) == {"local": False}


@pytest.mark.parametrize(("noticed", "unwanted"), [(True, True), (True, False), (False, True)])
def test_only_a_machine_that_is_noticed_and_unwanted_may_be_left_to_its_provider(
    fleet: Fleet, noticed: bool, unwanted: bool
) -> None:
    job, (machine,) = fleet.running()
    rules = {"minimum": 60 * S, "increment": 1, "pending_is_free": True, "free_if_interrupted_within": 3600 * S}
    fleet.alter(MachineRow, MachineRow.id == machine, billing=rules)
    if noticed:
        fleet.write(agents.record_notice, machine, fleet.clock.now + 120 * S)
    if unwanted:
        fleet.write(gangs.close_attempt, job, 1, "stop")
    (tracked,) = fleet.read(observations.load_tracked_machines, OFFER.provider)
    assert (tracked.left_until is not None) == (noticed and unwanted)
