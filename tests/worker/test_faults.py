# SPDX-License-Identifier: Apache-2.0
"""Crashes, silences and races. The witness is the provider's journal, never our rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from uuid import UUID

import pytest
from shoestring_core import money, wire
from shoestring_core.decide.placement import MAX_OFFER_AGE
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.retries import JITTER, REFUSED_DELAY
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import (
    AgentRefused,
    BudgetExceeded,
    CheckpointAheadOfBatches,
    InvalidRequest,
    StaleTransition,
)
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.store import checkpoints, jobs, ledger
from shoestring_core.store.fleet import agents, observations, planning, queue, service_heartbeats
from shoestring_core.store.tables import AccountRow, CheckpointRow, EventRow, MachineRow
from shoestring_core.wire import BootData
from shoestring_core.wording.machines import LeaseExpired
from shoestring_worker.providers.base import OutcomeUnknown
from shoestring_worker.providers.sim import Fault, SimulatedProvider
from sqlalchemy import func, select, update

from tests.worker.conftest import World


class Killed(BaseException):
    """kill -9: nothing after it happens, nothing is caught."""


class DyingProvider:
    """Passes everything on, and dies once: before the machine is bought, or after it."""

    def __init__(self, provider: SimulatedProvider, moment: str) -> None:
        self.provider, self.moment, self.name = provider, moment, provider.name
        self.offers, self.list, self.terminate = provider.offers, provider.list, provider.terminate

    def launch(self, intent: LaunchRequest) -> ProviderMachine:
        if self.moment == "after":
            self.provider.launch(intent)
        raise Killed


def launches(world: World) -> int:
    return sum(entry.event == "launch" for entry in world.provider.journal)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_killed_around_the_provider_call_launches_one_machine(world: World, moment: str):
    job = world.submit()
    provider = DyingProvider(world.provider, moment)
    world.control_loop = world.another_control_loop(sim=provider)
    with pytest.raises(Killed):
        world.tick()
    assert world.machines(job)[0].state == "launching"
    world.control_loop = world.another_control_loop()
    world.tick(1)
    world.tick(10)
    assert launches(world) == 1
    assert [machine.state for machine in world.machines(job)] == ["running"]
    world.form(job)
    assert world.job(job).state == "running"


@pytest.mark.parametrize("fault", ["lost_request", "lost_reply"])
def test_a_call_without_an_answer_is_repeated_with_the_same_request(world: World, fault: str):
    faults = [fault, fault]
    world.provider.fault = lambda _: faults.pop() if faults else None
    world.provider.hidden = 5 * S
    job = world.submit()
    for _ in range(4):
        world.tick(1)
    assert launches(world) == 1
    assert [machine.state for machine in world.machines(job)] == ["running"]


def test_a_refused_slot_is_requested_again_by_a_new_row_with_backoff(world: World):
    faults = [RefusalKind.CAPACITY] * 3
    world.provider.fault = lambda _: faults.pop() if faults else None
    job = world.submit()
    for _ in range(10):
        world.tick(1)
    machines = world.machines(job)
    assert [machine.state for machine in machines] == ["never_launched", "never_launched", "never_launched", "running"]
    assert [machine.ordinal for machine in machines] == [0, 1, 2, 3]
    waits = [after.created_at - before.created_at for before, after in pairwise(machines)]
    assert waits == sorted(waits)
    assert launches(world) == 1


def test_a_refusal_after_an_unknown_outcome_voids_the_row_only_after_the_consistency_window(world: World):
    faults = [RefusalKind.CAPACITY, "lost_request"]
    world.provider.fault = lambda _: faults.pop() if faults else None
    job = world.submit()
    world.tick()
    world.tick(0.5)
    assert [machine.state for machine in world.machines(job)] == ["launching"]
    world.tick(1)
    assert [machine.state for machine in world.machines(job)] == ["launching"]
    world.tick(1)
    assert [machine.state for machine in world.machines(job)] == ["never_launched", "running"]


def test_a_launch_that_is_never_answered_and_never_listed_is_given_up_and_the_job_goes_on(world: World):
    """As one whose token has launched by other parameters a machine that ended long ago."""
    job = world.submit()
    first: list[str] = []

    def fault(token: str) -> Fault | None:
        first[:] = first or [token]
        return "lost_request" if token == first[0] else None

    world.provider.fault = fault
    for _ in range(90):
        world.tick(1)
    assert [machine.state for machine in world.machines(job)] == ["never_launched", "running"]
    assert str(world.machines(job)[0].id) == first[0]
    assert launches(world) == 1


@pytest.mark.any_database
def test_an_attempt_that_launched_nothing_closes_and_reopens_under_its_number(world: World):
    world.provider.fault = lambda _: RefusalKind.CAPACITY
    job = world.submit()
    for _ in range(70):
        world.tick(1)
        if world.job(job).state == "queued":
            break
    world.tick(1)
    assert launches(world) == 0
    assert (world.job(job).state, world.job(job).attempt, world.job(job).wait_reason) == ("queued", 1, "capacity")
    before = len(world.machines(job))
    world.provider.fault = lambda _: None
    world.tick(REFUSED_DELAY * (1 + JITTER) / S)
    assert (world.job(job).state, world.job(job).attempt) == ("launching", 1)
    machines = world.machines(job)
    assert [machine.ordinal for machine in machines] == list(range(len(machines)))
    assert len(machines) == before + 1


@pytest.mark.any_database
@pytest.mark.parametrize("refused_slot", [0, 1])
def test_an_incomplete_gang_is_terminated_after_the_launch_window(world: World, refused_slot: int):
    job = world.submit(nodes=2)

    def fault(token: str) -> Fault | None:  # by slot, because the launch calls of a tick run in any order
        slots = {str(machine.id): machine.slot for machine in world.machines(job)}
        return RefusalKind.CAPACITY if slots[token] == refused_slot else None

    world.provider.fault = fault
    for _ in range(65):
        world.register(job)
        world.report(job)
        world.tick(1)
        if world.job(job).state == "queued":
            break
    (machine,) = (machine for machine in world.machines(job) if machine.state == "running")
    assert machine.slot != refused_slot
    assert world.clock.now - machine.created_at >= 60 * S
    assert world.order(machine.id).kind == "shutdown"
    world.tick(3)
    assert world.job(job).wait_reason == "terminating"
    world.provider.end(machine.provider_id, "exited")
    world.tick(1)
    assert world.job(job).wait_reason == "capacity"
    assert world.provider.alive() == []


@pytest.mark.any_database
def test_an_unreachable_provider_stops_no_running_job_and_hides_no_termination(world: World):
    job = world.submit()
    world.tick()
    generation = world.form(job)
    world.provider.silent = True
    for step in range(1, 20):
        world.train(job, step)
        world.tick(5)
    (machine,) = world.alive(job)
    assert machine.funded_until > world.clock.now
    assert world.commit(machine.id, generation, 19, "final")
    world.tick()
    assert world.job(job).settled_at is None
    world.provider.silent = False
    world.provider.end(machine.provider_id, "exited")
    world.tick(1)
    assert world.job(job).settled_at is not None


def test_a_job_whose_provider_has_not_answered_yet_is_told_that_it_is_asked(make_world: Callable[..., World]):
    world = make_world("sim")
    world.provider.silent = True
    job = world.submit()
    world.tick()
    told = {"provider": "sim", "problem": "", "yet": True}
    assert world.job(job).wait_detail == {"code": "provider_unanswered", "facts": told}


def test_what_a_provider_that_had_answered_cannot_do_until_somebody_acts_is_told_to_jobs(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.tick()

    def refuse(_wanted: object) -> None:
        raise OutcomeUnknown("Set the clock.", lasts=True)

    monkeypatch.setattr(world.provider, "offers", refuse)
    job = world.submit()
    world.tick(MAX_OFFER_AGE / S + 1)
    world.tick(1)
    told = {"provider": "sim", "problem": "Set the clock.", "yet": False}
    assert world.job(job).wait_detail == {"code": "provider_unanswered", "facts": told}


def test_a_machine_without_a_row_is_terminated_and_others_are_left_alone(world: World):
    tags = {"shoestring": world.control_loop.deployment}
    boot = BootData(server_url="", machine=UUID(int=1))
    stray = world.provider.launch(LaunchRequest("stray", "sim", "", tags, "sim", "spot", "0.158", boot))
    theirs = {"shoestring": "b"}
    others = world.provider.launch(LaunchRequest("other", "sim", "", theirs, "sim", "spot", "0.158", boot))
    world.tick()
    assert [one.id for one in world.provider.alive()] == [others.id]
    assert stray.id not in {one.id for one in world.provider.alive()}


def test_an_unresponsive_machine_is_terminated_through_the_provider(world: World):
    job = world.submit()
    world.tick()
    world.form(job)
    world.tick(31)
    assert world.provider.alive() == []
    world.tick()
    assert world.job(job).attempt == 2 or world.job(job).state == "queued"


def test_a_machine_that_renewed_in_time_is_not_terminated_by_a_stale_decision(world: World):
    job = world.submit()
    world.tick()
    world.form(job)
    (machine,) = world.alive(job)
    world.clock.pass_(31)
    world.report(job)  # between the reconciler's reading and its writing
    assert not world.store.write(lambda db: observations.begin_termination(db, machine.id, LeaseExpired(), lease=True))
    assert world.machines(job)[0].state == "running"


def test_missed_reports_do_not_count_while_the_service_was_down(world: World):
    job = world.submit()
    world.tick()
    world.form(job)
    world.clock.pass_(31)
    world.store.write(lambda db: service_heartbeats.record_heartbeat(db, "api", 15 * S))
    world.control_loop.tick()
    assert len(world.provider.alive()) == 1


@pytest.mark.any_database
def test_a_machine_missing_at_the_provider_is_terminated_after_two_sweeps_and_billed_until_then(world: World):
    job = world.submit()
    world.tick()
    world.form(job)
    (machine,) = world.alive(job)
    world.provider._machines.clear()
    for _ in range(11):
        world.report(job)
        world.tick(30)
    gone = world.machines(job)[0]
    assert (gone.state, gone.end_evidence) == ("terminated", "inferred")
    assert gone.ended_at >= machine.funded_until
    assert gone.billed_at is not None


# Races


def test_of_two_plans_of_the_same_version_one_is_applied(world: World):
    job = world.submit()
    with world.store.read() as db:
        snapshot = queue.load_queue(db, world.timeouts, {}).snapshot
    (start,) = schedule_jobs(snapshot, world.provider.offers(()), world.clock.now, {"sim": world.timeouts}).starts

    def apply() -> object:
        return world.store.write(
            lambda db: planning.record_start(db, start, snapshot.plan_version, agent_url="http://a", deployment="d")
        )

    assert apply() is not None
    assert apply() is None
    assert len(world.machines(job)) == 1


def test_a_plan_for_a_job_that_was_stopped_since_places_no_hold(world: World):
    job = world.submit()
    with world.store.read() as db:
        snapshot = queue.load_queue(db, world.timeouts, {}).snapshot
    (start,) = schedule_jobs(snapshot, world.provider.offers(()), world.clock.now, {"sim": world.timeouts}).starts
    world.store.write(lambda db: jobs.stop(db, job, "ann"))
    with pytest.raises(StaleTransition):
        world.store.write(
            lambda db: planning.record_start(db, start, snapshot.plan_version, agent_url="http://a", deployment="d")
        )
    with world.store.read() as db:
        assert db.sql.scalars(select(AccountRow.held).where(AccountRow.kind == "org")).one() == 0


def test_two_workers_start_exactly_one_job_when_the_budget_covers_one(world: World):
    world.budget(money.cost_ceiling("0.526", 75 * S))
    submitted = [world.submit(), world.submit()]
    loops = [world.control_loop, world.another_control_loop(), world.another_control_loop()]
    for _ in range(3):
        threads = [threading.Thread(target=loop.tick) for loop in loops]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(world.job(job).state for job in submitted) == ["launching", "queued"]
    assert launches(world) == 1
    (waiting,) = (job for job in submitted if world.job(job).state == "queued")
    assert world.job(waiting).wait_reason == "budget"


def test_many_workers_ticking_at_once_launch_one_machine_per_slot(world: World):
    submitted = [world.submit(nodes=2), world.submit(nodes=2)]
    loops = [world.another_control_loop() for _ in range(4)]
    for _ in range(4):
        threads = [threading.Thread(target=loop.tick) for loop in loops]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert launches(world) == 4
    assert all(machine.state == "running" for job in submitted for machine in world.machines(job))


def test_the_last_two_agents_to_register_at_once_open_one_generation(world: World):
    job = world.submit(nodes=4)
    world.tick()

    def register(machine: UUID) -> None:
        secret = wire.hash_session(f"session {machine}")
        world.store.write(
            lambda db: agents.register(db, machine, True, secret, "127.0.0.1", wire.Hardware(), world.timeouts)
        )

    threads = [threading.Thread(target=register, args=(machine.id,)) for machine in world.alive(job)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.job(job).generation == 1
    assert {world.order(machine.id).kind for machine in world.alive(job)} == {"prepare"}


# Agents


def test_the_first_session_is_bound_a_repeat_succeeds_and_another_is_refused_with_an_event(world: World):
    job = world.submit()
    world.tick()
    (machine,) = world.machines(job)

    def register(secret: str, token_ok: bool = True) -> MachineRow | None:
        hashed = wire.hash_session(secret)
        return world.store.write(
            lambda db: agents.register(db, machine.id, token_ok, hashed, "127.0.0.1", wire.Hardware(), world.timeouts)
        )

    assert register("forged", token_ok=False) is None
    assert register("mine") is not None
    assert register("mine") is not None
    assert register("another") is None
    with world.store.read() as db:
        assert agents.authenticate(db, machine.id, "mine").id == machine.id
        for wrong in ("another", "", "forged"):
            with pytest.raises(AgentRefused):
                agents.authenticate(db, machine.id, wrong)
        assert db.sql.scalar(select(func.count()).select_from(EventRow).where(EventRow.kind == "alarm")) == 2


def test_a_repeated_or_outdated_ready_changes_nothing(world: World):
    job = world.submit(nodes=2)
    world.tick()
    world.register(job)
    first, second = world.alive(job)
    assert not world.say(first.id, "ready", 1, port=1)
    assert not world.say(first.id, "ready", 1, port=1)
    assert world.say(second.id, "ready", 1, port=2)
    assert world.order(second.id).run.master_port == 1
    world.exits(first.id, 1, "signal")
    world.tick()
    assert world.job(job).generation == 2
    assert not world.say(first.id, "ready", 1, port=1)
    assert world.order(first.id).kind == "prepare"


# Checkpoints


@pytest.fixture
def running(world: World) -> tuple[UUID, UUID]:
    job = world.submit()
    world.tick()
    world.form(job)
    world.train(job, 100)
    return job, world.alive(job)[0].id


def test_a_repeated_checkpoint_commit_changes_nothing(world: World, running: tuple[UUID, UUID]):
    job, machine = running
    assert world.commit(machine, 1, 10, nonce="000001")
    assert world.commit(machine, 1, 10, nonce="000001")
    assert world.commit(machine, 1, 20, "final", nonce="000002")
    assert world.commit(machine, 1, 20, "final", nonce="000002")
    assert world.job(job).end_reason == "succeeded"
    with world.store.read() as db:
        assert db.sql.scalars(select(CheckpointRow.step).order_by(CheckpointRow.step)).all() == [10, 20]


def test_the_final_checkpoint_of_an_already_saved_step_adds_its_artifacts(world: World, running):
    job, machine = running
    assert world.commit(machine, 1, 20)
    assert world.commit(machine, 1, 20, "final")
    with world.store.read() as db:
        (one,) = db.sql.scalars(select(CheckpointRow))
        assert (one.final, one.object_key) == (True, checkpoints.object_key(job, 1, "000002"))
        assert checkpoints.newest_final(db, job).id == world.job(job).checkpoint == one.id
    assert world.commit(machine, 1, 20, nonce="000001") is False  # long replaced


def test_an_upload_that_was_never_offered_is_refused(world: World, running):
    with pytest.raises(InvalidRequest):
        world.commit(running[1], 1, 10, nonce="000007")


def test_a_checkpoint_is_committed_only_after_the_metrics_up_to_its_step(world: World, running):
    job, machine = running
    request = wire.CheckpointCommit(
        generation=1, step=10, nonce="000001", manifest_sha256="0" * 64, bytes=1, through_seq=3, reason="periodic"
    )
    with pytest.raises(CheckpointAheadOfBatches):
        world.store.write(lambda db: checkpoints.commit(db, machine, request))
    world.store.write(lambda db: db.execute(update(MachineRow).where(MachineRow.id == machine).values(acked_seq=3)))
    assert world.store.write(lambda db: checkpoints.commit(db, machine, request))
    assert world.job(job).checkpoint is not None


def test_reports_of_an_older_generation_change_no_state_and_are_stored(world: World, running):
    job, machine = running
    world.exits(machine, 1, "signal")
    world.tick()
    world.form(job)
    assert world.commit(machine, 1, 90, "final", nonce="000001") is False
    assert world.job(job).state == "running"
    assert world.job(job).checkpoint is None
    with world.store.read() as db:
        assert db.sql.scalars(select(CheckpointRow.generation)).all() == [1]


def test_a_machine_that_is_not_a_member_of_a_generation_commits_nothing(world: World, running):
    other = world.submit()
    world.tick()
    world.form(other)
    with pytest.raises(AgentRefused):
        world.commit(world.alive(other)[0].id, 7, 10, nonce="000001")


def test_only_the_machine_of_rank_0_uploads(world: World):
    job = world.submit(nodes=2)
    world.tick()
    world.form(job)
    with world.store.read() as db:
        places = [checkpoints.next_upload_target(db, machine.id) for machine in world.alive(job)]
    assert [place is not None for place in places] == [True, False]


# Rest


@pytest.mark.any_database
def test_an_idle_service_lists_the_providers_machines_rarely(world: World):
    asked = 0
    listing = world.provider.list

    def counting(deployment: str) -> list[ProviderMachine]:
        nonlocal asked
        asked += 1
        return listing(deployment)

    world.provider.list = counting
    for _ in range(60):
        world.tick(0.5)
    assert asked == 3


def test_a_hold_that_cannot_be_placed_leaves_nothing_behind(world: World):
    job = world.submit()
    with world.store.read() as db:
        snapshot = queue.load_queue(db, world.timeouts, {}).snapshot
    (start,) = schedule_jobs(snapshot, world.provider.offers(()), world.clock.now, {"sim": world.timeouts}).starts
    world.budget(1)
    with pytest.raises(BudgetExceeded):
        world.store.write(
            lambda db: planning.record_start(db, start, snapshot.plan_version, agent_url="http://a", deployment="d")
        )
    assert world.machines(job) == []
    assert world.job(job).state == "queued"
    with world.store.read() as db:
        assert ledger.find_discrepancies(db) == []
