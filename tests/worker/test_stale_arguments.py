# SPDX-License-Identifier: Apache-2.0
"""Writes of launches, terminations, holds and bills that come late: what they were decided from no longer holds."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from shoestring_core.decide import failures
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S
from shoestring_core.states import EndReason
from shoestring_core.store import jobs, ledger
from shoestring_core.store.fleet import agents, billing, gangs, launches, observations, planning
from shoestring_core.store.tables import AccountRow, HoldRow, MachineRow
from shoestring_core.wording.attempts import MachineLost
from shoestring_core.wording.machines import LeaseExpired, NotNeeded
from sqlalchemy import select, update

from tests.worker.conftest import World
from tests.worker.test_control_loop import finish, leave

pytestmark = pytest.mark.any_database


@pytest.fixture
def planned(world: World) -> MachineRow:
    """A machine whose launch requests are all lost, so that its row stays as its first call left it."""
    world.provider.fault = lambda _: "lost_request"
    job = world.submit()
    world.tick()
    (machine,) = world.machines(job)
    assert (machine.state, machine.refusal) == ("launching", launches.UNKNOWN)
    return machine


@pytest.fixture
def up(world: World) -> MachineRow:
    job = world.submit()
    world.tick()
    world.form(job)
    return world.machines(job)[0]


def row(world: World, machine: UUID) -> MachineRow:
    with world.store.read() as db:
        return db.sql.scalars(select(MachineRow).where(MachineRow.id == machine)).one()


def hold(world: World, machine: UUID) -> HoldRow:
    with world.store.read() as db:
        return db.sql.scalars(select(HoldRow).where(HoldRow.machine == machine)).one()


def begin(world: World, machine: UUID) -> launches.LaunchCall | None:
    return world.store.write(lambda db: launches.begin_launch(db, machine, world.timeouts))


def seen(world: World, machine: MachineRow, **fields: object) -> ProviderMachine:
    (known,) = [one for one in world.provider._machines.values() if one.token == str(machine.id)]
    return replace(known, **fields)


# Launches


def test_a_call_in_progress_is_begun_by_nobody_else(world: World, planned: MachineRow):
    call = begin(world, planned.id)
    assert call is not None
    assert call.call_deadline == world.clock.now + world.timeouts.launch_call
    assert begin(world, planned.id) is None
    world.clock.now = call.call_deadline - 1
    assert begin(world, planned.id) is None
    world.clock.now = call.call_deadline
    assert begin(world, planned.id) is not None


def test_no_call_is_begun_for_a_machine_that_is_not_wanted_or_does_not_exist(world: World, planned: MachineRow):
    assert begin(world, uuid4()) is None
    world.store.write(lambda db: jobs.stop(db, planned.job, "ann"))
    assert begin(world, planned.id) is None


def test_a_refusal_of_an_earlier_call_gives_no_later_one_up(world: World, planned: MachineRow):
    first = begin(world, planned.id)
    world.clock.pass_(20)
    second = begin(world, planned.id)
    world.store.write(lambda db: launches.record_refusal(db, first, RefusalKind.CAPACITY, "full"))
    assert (row(world, planned.id).state, row(world, planned.id).call_deadline) == ("launching", second.call_deadline)
    assert row(world, planned.id).refusal == launches.UNKNOWN
    assert hold(world, planned.id).state == "open"


def test_a_late_report_that_a_call_got_no_answer_does_not_end_the_next_call(world: World, planned: MachineRow):
    first = begin(world, planned.id)
    world.clock.pass_(20)
    second = begin(world, planned.id)
    world.store.write(lambda db: launches.record_no_answer(db, first))
    assert row(world, planned.id).call_deadline == second.call_deadline
    assert begin(world, planned.id) is None


def test_a_refusal_after_a_lost_request_keeps_the_hold_until_the_list_is_consistent(world: World, planned: MachineRow):
    call = begin(world, planned.id)
    world.store.write(lambda db: launches.record_refusal(db, call, RefusalKind.CAPACITY, "full"))
    refused = row(world, planned.id)
    assert (refused.state, hold(world, planned.id).state) == ("launching", "open")
    early = refused.call_deadline + world.timeouts.consistency_window - 1

    def abandon(listed_at: int) -> bool:
        return world.store.write(lambda db: launches.abandon_launch(db, planned.id, listed_at, world.timeouts))

    assert not abandon(early)
    assert hold(world, planned.id).state == "open"
    assert abandon(early + 1)
    assert (row(world, planned.id).state, hold(world, planned.id).state) == ("never_launched", "closed")
    assert not abandon(early + 1)


@pytest.mark.parametrize("state", ["launching", "running"])
def test_a_machine_that_is_wanted_or_runs_is_not_given_up(world: World, request: pytest.FixtureRequest, state: str):
    machine = request.getfixturevalue("planned" if state == "launching" else "up")
    later = world.clock.now + 10**12
    assert not world.store.write(lambda db: launches.abandon_launch(db, machine.id, later, world.timeouts))
    if state == "running":
        world.store.write(lambda db: jobs.stop(db, machine.job, "ann"))
        assert not world.store.write(lambda db: launches.abandon_launch(db, machine.id, later, world.timeouts))
    assert (row(world, machine.id).state, hold(world, machine.id).state) == (state, "open")


# Observations and terminations


def test_a_terminated_machine_stays_so_whatever_is_observed_later(world: World, up: MachineRow):
    world.clock.pass_(10)
    world.provider.end(up.provider_id, "crashed")
    world.tick()
    ended = row(world, up.id)
    stale = seen(world, up, state="running", ended_at=None, end_cause=None)
    world.store.write(lambda db: observations.record_observation(db, up.id, stale, world.timeouts))
    world.store.write(lambda db: observations.presume_terminated(db, up.id))
    now = row(world, up.id)
    assert (now.state, now.ended_at, now.end_evidence) == ("terminated", ended.ended_at, "provider")
    assert not world.store.write(lambda db: observations.begin_termination(db, up.id, NotNeeded(), lease=False))


def test_a_machine_that_was_never_launched_is_not_presumed_terminated(world: World, planned: MachineRow):
    world.store.write(lambda db: observations.presume_terminated(db, planned.id))
    assert row(world, planned.id).state == "launching"


def test_a_forgotten_machine_is_billed_until_its_funding_ends(world: World, up: MachineRow):
    world.clock.pass_(500)
    world.store.write(lambda db: observations.presume_terminated(db, up.id))
    assert row(world, up.id).ended_at == up.funded_until < world.clock.now


def test_a_termination_is_requested_again_until_the_provider_confirms_it(world: World, up: MachineRow):
    def begin_termination() -> bool:
        return world.store.write(lambda db: observations.begin_termination(db, up.id, NotNeeded(), lease=False))

    assert begin_termination()
    assert row(world, up.id).state == "terminating"
    assert begin_termination()  # the first call may have been lost
    world.provider.silent = True
    world.tick()
    assert len(world.provider.alive()) == 1
    world.provider.silent = False
    world.tick()
    assert world.provider.alive() == []


def test_the_silence_of_one_machine_is_not_that_of_another(world: World):
    job = world.submit(nodes=2)
    world.tick()
    world.form(job)
    silent, reporting = world.alive(job)
    world.clock.pass_(31)
    world.store.write(lambda db: agents.renew_lease(db, reporting.id, world.timeouts))
    assert not world.store.write(
        lambda db: observations.begin_termination(db, reporting.id, LeaseExpired(), lease=True)
    )
    assert world.store.write(lambda db: observations.begin_termination(db, silent.id, LeaseExpired(), lease=True))


# Money


def test_a_machine_that_is_not_wanted_or_has_terminated_is_not_funded_further(world: World, up: MachineRow):
    def extend() -> bool:
        return world.store.write(lambda db: billing.extend_funding(db, up.id, world.timeouts))

    assert not extend()  # not due yet
    world.clock.pass_(40)
    world.store.write(lambda db: jobs.stop(db, up.job, "ann"))
    assert not extend()
    assert row(world, up.id).funded_until == up.funded_until
    world.provider.end(up.provider_id, "crashed")
    world.tick()
    assert not extend()


def test_a_bill_is_settled_once_and_never_before_the_end(world: World, up: MachineRow):
    def settle() -> bool:
        return world.store.write(lambda db: billing.settle_machine(db, up.id))

    assert not settle()
    assert hold(world, up.id).state == "open"
    world.clock.pass_(10)
    finish(world, up.job)
    paid = [transfer.id for transfer in world.transfers()]
    assert not settle()
    assert [transfer.id for transfer in world.transfers()] == paid
    with world.store.read() as db:
        assert ledger.find_discrepancies(db) == []
        assert db.sql.scalars(select(AccountRow.held).where(AccountRow.kind == "org")).one() == 0


def test_a_job_is_settled_only_after_its_last_bill(world: World):
    job = world.submit(nodes=2)
    world.tick()
    generation = world.form(job)
    first, second = world.alive(job)
    world.train(job, 10)
    assert world.commit(first.id, generation, 10, "final")
    world.provider.end(first.provider_id, "exited")
    world.tick()
    assert not world.store.write(lambda db: billing.settle_job(db, job))
    world.provider.end(second.provider_id, "exited")
    world.store.write(lambda db: observations.record_observation(db, second.id, seen(world, second), world.timeouts))
    assert not world.store.write(lambda db: billing.settle_job(db, job))  # terminated, not billed
    world.tick()
    assert world.job(job).settled_at is not None
    assert not world.store.write(lambda db: billing.settle_job(db, job))


# Plans and decisions


def test_a_slot_that_is_filled_or_whose_job_was_stopped_is_not_refilled(world: World, up: MachineRow):
    offer = world.provider.offers(())[0]

    def refill(slot: int) -> UUID | None:
        return world.store.write(
            lambda db: planning.refill_slot(
                db, up.job, 1, slot, offer, agent_url="http://a", deployment="d", timeouts=world.timeouts
            )
        )

    assert refill(0) is None
    world.store.write(lambda db: jobs.stop(db, up.job, "ann"))
    assert refill(1) is None
    assert len(world.machines(up.job)) == 1


def test_a_decision_about_an_earlier_generation_or_a_stopped_job_is_not_applied(world: World, up: MachineRow):
    end = failures.EndJob(EndReason.INFRASTRUCTURE, MachineLost(0, None))

    def apply(generation: int | None) -> bool:
        return world.store.write(lambda db: gangs.apply_action(db, up.job, 1, generation, end))

    assert not apply(None)
    assert not apply(2)
    world.store.write(lambda db: jobs.stop(db, up.job, "ann"))
    assert not apply(1)
    assert world.job(up.job).state == "stopping"


def test_a_lost_race_for_an_extension_leaves_no_money_held(world: World, up: MachineRow):
    """The extension commits between a bill's reading and its writing; afterwards nothing is held."""
    world.clock.pass_(40)
    assert world.store.write(lambda db: billing.extend_funding(db, up.id, world.timeouts))
    assert not world.store.write(lambda db: billing.extend_funding(db, up.id, world.timeouts))
    stale = update(MachineRow).where(MachineRow.id == up.id, MachineRow.funded_until == up.funded_until)
    assert world.store.write(lambda db: db.execute(stale.values(funded_until=up.funded_until + 60 * S))) == 0
    world.train(up.job, 10)
    assert world.commit(up.id, 1, 10, "final")
    leave(world, up.job)
    with world.store.read() as db:
        assert db.sql.scalars(select(AccountRow.held).where(AccountRow.kind == "org")).one() == 0
