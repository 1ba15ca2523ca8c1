# SPDX-License-Identifier: Apache-2.0
"""Starts are applied whole and once, from a snapshot that has all that they depend on."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

import pytest
from shoestring_core import spec
from shoestring_core.decide import funding
from shoestring_core.decide.offers import Disk, Hardware, Offer
from shoestring_core.decide.preemption import Eviction, EvictionInputs
from shoestring_core.decide.queue import AccountBalance, QueueSnapshot
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import BudgetExceeded, InvalidSpec, StaleTransition
from shoestring_core.launch_request import LaunchDisk, LaunchRequest
from shoestring_core.store import jobs
from shoestring_core.store.fleet import gangs, launches, offers, planning, queue
from shoestring_core.store.tables import AttemptRow, JobRow, MachineRow
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording.jobs import AttemptStarted, Evicted
from shoestring_core.wording.machines import MachinePlanned
from sqlalchemy import select

from tests.core.world import NEVER_LAUNCHED, OFFER, PLANNED, RUNNING, TERMINATED, Fleet


def snapshot(fleet: Fleet) -> QueueSnapshot:
    return fleet.read(queue.load_queue, fleet.timeouts, {}).snapshot


def planned_as(slot: int) -> dict[str, Any]:
    return MachinePlanned(slot, "local.cpu", "spot", "local", "0.158").as_json()


def refill(
    fleet: Fleet, job: UUID, slot: int, offer: Offer = OFFER, storable_until: int | None = None
) -> UUID | None:  # fmt: skip
    return fleet.write(
        planning.refill_slot, job, 1, slot, offer, agent_url="http://api", deployment="test", timeouts=fleet.timeouts,
        storable_until=storable_until,
    )  # fmt: skip


# Starts


def test_an_attempt_that_launched_nothing_is_opened_again_under_its_number(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    first, second = fleet.ids(job)
    for machine in (first, second):
        fleet.write(launches.record_refusal, fleet.call(machine), RefusalKind.CAPACITY, "full")
    fleet.end_attempt(job, "capacity")
    fleet.finish_attempt(job)
    queued = snapshot(fleet).queue[0]
    assert (queued.attempt, queued.reopened) == (1, True)
    fleet.clock.pass_(100)
    again = fleet.open_attempt(job)
    row = fleet.attempt_row(job)
    assert (row.state, row.reason, row.opened_at, row.closed_at) == ("open", None, fleet.clock.now, None)
    assert (row.plan_version, row.trained) == (2, False)
    assert row.plan["queued"]["job"] == str(job)
    rows = [(one.id, one.attempt, one.ordinal, one.slot, one.state) for one in fleet.machine_rows(job)]
    assert rows == [
        (first, 1, 0, 0, NEVER_LAUNCHED),
        (second, 1, 1, 1, NEVER_LAUNCHED),
        (again[0], 1, 2, 0, PLANNED),
        (again[1], 1, 3, 1, PLANNED),
    ]


def test_a_start_holds_money_for_the_machines_that_it_intends(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    row, attempt = fleet.job_row(job), fleet.attempt_row(job)
    assert (row.state, row.attempt, row.wait_reason) == ("launching", 1, None)
    assert (attempt.state, attempt.opened_at, attempt.plan_version, attempt.trained) == (
        "open", fleet.clock.now, 1, False,
    )  # fmt: skip
    funded_until = fleet.clock.now + fleet.timeouts.funding_lease
    for slot, machine in enumerate(fleet.machine_rows(job)):
        assert (machine.slot, machine.ordinal, machine.attempt, machine.state) == (slot, slot, 1, PLANNED)
        assert (machine.provider, machine.region, machine.zone, machine.type) == ("local", "local", "", "local.cpu")
        assert (machine.market, machine.price, machine.on_demand_price) == ("spot", "0.158", "0.526")
        assert (machine.funded_until, machine.created_at, machine.acked_seq) == (funded_until, fleet.clock.now, 0)
        assert machine.launch_request == {
            "token": str(machine.id), "region": "local", "zone": "",
            "tags": {DEPLOYMENT_TAG: "test", PROVIDER_TAG: "local", "job": str(job), "attempt": "1", "slot": str(slot)},
            "type": "local.cpu", "market": "spot", "price": "0.158",
            "user_data": {"server_url": "http://api", "machine": str(machine.id), "boot_token": "", "ca": ""},
            "disk": None, "placement_group": None, "efa": False, "data_role": None,
        }  # fmt: skip
        hold = fleet.hold_row(machine.id)
        assert (hold.state, hold.rate_cap, hold.consumed, hold.funded_until) == ("open", "0.526", 0, funded_until)
        assert fleet.told("machine", machine.id) == [(PLANNED, planned_as(machine.slot))]
    assert [one.reason for one in fleet.events("job")][-1] == AttemptStarted(1, 2, "local.cpu", "spot").as_json()
    assert snapshot(fleet).plan_version == 1


def test_a_start_that_was_planned_for_an_earlier_attempt_is_refused(fleet: Fleet) -> None:
    job = fleet.job(resources={"nodes": 1}).id
    planned = snapshot(fleet)
    (start,) = schedule_jobs(planned, [OFFER], fleet.clock.now, {OFFER.provider: fleet.timeouts}).starts
    fleet.alter(JobRow, JobRow.id == job, attempt=1)
    with pytest.raises(StaleTransition):
        fleet.write(planning.record_start, start, planned.plan_version, agent_url="http://api", deployment="test")
    assert (fleet.ids(job), snapshot(fleet).plan_version) == ([], 0)
    fleet.alter(JobRow, JobRow.id == job, attempt=0)
    assert fleet.write(planning.record_start, start, planned.plan_version + 1, agent_url="", deployment="test") is None
    assert fleet.write(planning.record_start, start, planned.plan_version, agent_url="", deployment="test") is not None


# Slots filled again


def test_a_refused_slot_is_filled_again_with_money_of_its_own(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    refused, other = fleet.ids(job)
    fleet.write(launches.record_refusal, fleet.call(refused), RefusalKind.CAPACITY, "full")
    fleet.clock.pass_(3)
    machine = refill(fleet, job, 0)
    row, hold = fleet.machine_row(machine), fleet.hold_row(machine)
    assert (row.slot, row.ordinal, row.attempt, row.state) == (0, 2, 1, PLANNED)
    until = fleet.clock.now + fleet.timeouts.funding_lease
    assert (row.funded_until, hold.funded_until, hold.rate_cap) == (until, until, "0.526")
    assert hold.amount == fleet.hold_row(other).amount
    assert fleet.totals(fleet.job_row(job)) == [(0, 2 * hold.amount, 0)] * 4
    assert fleet.told("machine", machine) == [(PLANNED, planned_as(0))]


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("why", ["its slot is filled", "its job was stopped", "its attempt closes"])
def test_no_machine_is_bought_for_a_slot_that_needs_none(fleet: Fleet, why: str) -> None:
    job = fleet.start(nodes=2)
    refused, _ = fleet.ids(job)
    fleet.write(launches.record_refusal, fleet.call(refused), RefusalKind.CAPACITY, "full")
    if why == "its job was stopped":
        fleet.write(jobs.stop, job, "ann")
    elif why == "its attempt closes":
        fleet.write(gangs.close_attempt, job, 1, "stop")
    slot = 1 if why == "its slot is filled" else 0
    before = fleet.totals(fleet.job_row(job))
    assert refill(fleet, job, slot) is None
    assert len(fleet.ids(job)) == 2
    assert fleet.totals(fleet.job_row(job)) == before


def test_a_machine_that_fills_a_slot_again_is_funded_no_longer_than_what_it_does_can_be_stored(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    refused, _ = fleet.ids(job)
    fleet.write(launches.record_refusal, fleet.call(refused), RefusalKind.CAPACITY, "full")
    storable = fleet.clock.now + fleet.timeouts.drain
    assert refill(fleet, job, 0, storable_until=storable) is None
    machine = refill(fleet, job, 0, storable_until=storable + 20 * S)
    assert fleet.machine_row(machine).funded_until == fleet.hold_row(machine).funded_until == fleet.clock.now + 20 * S


def test_a_slot_that_the_budget_does_not_cover_stays_empty(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    refused, other = fleet.ids(job)
    fleet.write(launches.record_refusal, fleet.call(refused), RefusalKind.CAPACITY, "full")
    fleet.limit("team", 2 * fleet.hold_row(other).amount - 1)
    with pytest.raises(BudgetExceeded):
        refill(fleet, job, 0)
    assert len(fleet.ids(job)) == 2


def test_a_lost_machine_of_an_elastic_gang_is_replaced_in_its_slot(fleet: Fleet) -> None:
    job, machines = fleet.running(nodes="2..3")
    fleet.end(machines[1], "crashed")
    machine = refill(fleet, job, 1)
    assert (fleet.machine_row(machine).slot, fleet.machine_row(machine).ordinal) == (1, 3)
    assert fleet.machine_states(job) == [RUNNING, TERMINATED, RUNNING, PLANNED]
    assert refill(fleet, job, 1) is None
    with fleet.store.read() as db:
        assert len(db.sql.scalars(select(MachineRow).where(MachineRow.job == job)).all()) == 4


def test_the_least_that_a_job_holds_is_for_all_its_machines_on_the_cheapest_offer(fleet: Fleet) -> None:
    dearer = replace(OFFER, type="local.gpu", on_demand_price="1.052", slots=3)
    fleet.write(offers.save_offers, "local", [dearer, replace(OFFER, slots=3)], fleet.timeouts)
    three = spec.parse({"recipe": "digits/quickstart", "resources": {"nodes": 3}})
    assert fleet.read(planning.min_hold, three) == 3 * funding.initial_hold(OFFER.on_demand_price, fleet.timeouts)
    four = spec.parse({"recipe": "digits/quickstart", "resources": {"nodes": 4}})
    with pytest.raises(InvalidSpec):
        fleet.read(planning.min_hold, four)


def test_an_intent_has_the_disk_and_the_hardware_that_were_chosen(fleet: Fleet) -> None:
    disk = Disk("gp3", 100, 3_000, 250, (8, 3_000, 125), (16_384, 16_000, 1_000), 500, "0.25", "0.08", "0.005", "0.04")
    hardware = Hardware(4, 16384, "A10G", 1, 24576, simulated_gpus=True)
    cloud = replace(OFFER, type="g5.xlarge", hardware=hardware, disk=disk)
    fleet.write(offers.save_offers, "local", [OFFER, cloud], fleet.timeouts)
    job = fleet.job(resources={"gpu": "A10G", "disk": {"size": "200GB"}}).id
    before = snapshot(fleet)
    (start,) = schedule_jobs(before, fleet.read(offers.load_offers), fleet.clock.now, {"local": fleet.timeouts}).starts
    (machine,) = fleet.write(
        planning.record_start, start, before.plan_version, agent_url="http://api", deployment="test"
    )
    row = fleet.machine_row(machine)
    assert (row.job, row.type, row.offered_hardware) == (job, "g5.xlarge", asdict(hardware))
    assert LaunchRequest.from_json(row.launch_request).disk == LaunchDisk(187, 3_000, 250)
    assert [extra["what"] for extra in row.billing["extras"]] == ["187 GiB of gp3 with 3000 IOPS and 250 MiB/s"]
    assert fleet.hold_row(machine).rate_cap == start.offer.rate_cap > cloud.rate_cap


@pytest.mark.parametrize("efa", [False, True])
def test_the_machines_of_an_attempt_are_in_one_placement_group_if_the_job_wants_them_close(
    fleet: Fleet, efa: bool
) -> None:
    hardware = Hardware(4, 16384, cluster=True, efa=efa)
    fleet.write(offers.save_offers, "local", [replace(OFFER, hardware=hardware, slots=8)], fleet.timeouts)
    close = fleet.job(resources={"nodes": 2, "placement": "cluster"}).id
    anywhere = fleet.job(resources={"nodes": 1}).id
    requests: dict[UUID, list[LaunchRequest]] = {}
    for start in schedule_jobs(
        snapshot(fleet), fleet.read(offers.load_offers), fleet.clock.now, {"local": fleet.timeouts}
    ).starts:
        version = snapshot(fleet).plan_version
        machines = fleet.write(planning.record_start, start, version, agent_url="http://api", deployment="test")
        rows = [fleet.machine_row(machine).launch_request for machine in machines]
        requests[start.job] = [LaunchRequest.from_json(row) for row in rows]
    group = f"shoestring-{close}-1"
    assert [(one.placement_group, one.efa) for one in requests[close]] == [(group, efa), (group, efa)]
    assert [(one.placement_group, one.efa) for one in requests[anywhere]] == [(None, False)]


def test_a_job_that_nobody_has_machines_for_is_refused_once_it_is_known_what_there_is(fleet: Fleet) -> None:
    wanted, misspelt = (
        spec.parse({"recipe": "digits/quickstart", "resources": {"gpu": gpu}}) for gpu in ("A10G", "A10")
    )
    fleet.write(offers.register_provider, "ec2", fleet.timeouts)
    fleet.write(offers.save_offers, "local", [OFFER], fleet.timeouts)
    assert fleet.read(planning.min_hold, wanted) == 0, "ec2 has not said yet what it offers"
    with pytest.raises(InvalidSpec, match="Did you mean A10G"):
        fleet.read(planning.min_hold, misspelt)
    fleet.write(offers.save_offers, "ec2", [], fleet.timeouts)
    with pytest.raises(InvalidSpec, match="no worker of this service serves ec2"):
        fleet.read(planning.min_hold, wanted)


def test_a_job_that_no_offer_suits_holds_nothing_yet(fleet: Fleet) -> None:
    assert fleet.read(planning.min_hold, spec.parse({"recipe": "digits/quickstart"})) == 0


# Machines after others, and attempts that make room


def test_machines_are_numbered_from_0_in_each_attempt(fleet: Fleet) -> None:
    job, _ = fleet.running(nodes=2)
    fleet.retry(job)
    fleet.launch_again(job)
    other = fleet.start()
    assert [(row.attempt, row.ordinal) for row in fleet.machine_rows(job)] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [(row.attempt, row.ordinal) for row in fleet.machine_rows(other)] == [(1, 0)]


def test_an_attempt_that_is_not_closed_is_not_opened_again(fleet: Fleet) -> None:
    job = fleet.start()
    (machine,) = fleet.ids(job)
    fleet.write(launches.record_refusal, fleet.call(machine), RefusalKind.CAPACITY, "full")
    fleet.retry(job, "capacity")
    fleet.clock.pass_(100)
    before = snapshot(fleet)
    (start,) = schedule_jobs(before, [OFFER], fleet.clock.now, {OFFER.provider: fleet.timeouts}).starts
    assert start.reopened
    fleet.alter(AttemptRow, AttemptRow.job == job, state="closing")
    with pytest.raises(StaleTransition):
        fleet.write(planning.record_start, start, before.plan_version, agent_url="http://api", deployment="test")
    assert fleet.ids(job) == [machine]


def test_machines_of_which_nothing_is_known_are_close_together_without_efa(fleet: Fleet) -> None:
    fleet.write(
        offers.save_offers, "local", [replace(OFFER, hardware=Hardware(4, 16384, cluster=True))], fleet.timeouts
    )
    job = fleet.job(resources={"nodes": "1..2", "placement": "cluster"}).id
    before = snapshot(fleet)
    (start,) = schedule_jobs(before, fleet.read(offers.load_offers), fleet.clock.now, {"local": fleet.timeouts}).starts
    unknown = replace(start, offer=replace(start.offer, hardware=None))
    machines = fleet.write(planning.record_start, unknown, before.plan_version, agent_url="", deployment="test")
    request = LaunchRequest.from_json(fleet.machine_row(machines[0]).launch_request)
    assert (request.placement_group, request.efa) == (f"shoestring-{job}-1", False)


def evict(fleet: Fleet, job: UUID, attempt: int = 1, plan_version: int | None = None) -> bool:
    team = AccountBalance(fleet.account("team").id, "team", None, 0, 0, 0)
    inputs = EvictionInputs(uuid7(), 1, team, "local", 1, None, 0, (), (team,), fleet.clock.now)
    eviction = Eviction(job, attempt, Evicted("speech", "1", "0", "vision", "0", "1"), inputs)
    version = snapshot(fleet).plan_version if plan_version is None else plan_version
    return fleet.write(planning.record_eviction, eviction, version)


def test_an_eviction_ends_the_attempt_that_makes_room_and_no_other(fleet: Fleet) -> None:
    job, _ = fleet.running()
    fleet.retry(job)
    fleet.launch_again(job)
    fleet.form(job)
    other, _ = fleet.running()
    fleet.retry(other)
    fleet.launch_again(other)
    fleet.form(other)
    assert not evict(fleet, job, 2, plan_version=0), "another plan came first"
    assert fleet.job_row(job).state == "running"
    assert evict(fleet, job, 2)
    assert (fleet.job_row(job).state, fleet.job_row(job).stop_reason) == ("stopping", "eviction")
    assert fleet.job_row(other).state == "running"
    recorded = {(one, number): fleet.attempt_row(one, number).eviction for one in (job, other) for number in (1, 2)}
    assert [place for place, eviction in recorded.items() if eviction] == [(job, 2)]


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("why", ["it launches", "it is to pause", "it runs in another attempt"])
def test_a_job_that_does_not_run_in_this_attempt_makes_no_room(fleet: Fleet, why: str) -> None:
    job = fleet.start()
    fleet.launch(job)
    if why != "it launches":
        fleet.form(job)
    if why == "it is to pause":
        fleet.alter(JobRow, JobRow.id == job, desired_state="pause")
    elif why == "it runs in another attempt":
        fleet.retry(job)
        fleet.launch_again(job)
        fleet.form(job)
    before = fleet.job_row(job).state
    with pytest.raises(StaleTransition):
        evict(fleet, job)
    assert (fleet.job_row(job).state, fleet.attempt_row(job).eviction) == (before, None)
