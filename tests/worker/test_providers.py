# SPDX-License-Identifier: Apache-2.0
"""Several providers at once: each is served by itself, whatever another one does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

import pytest
from shoestring_core import money, wording
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG, MachineRef, ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import S
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.store.fleet.offers import load_offers
from shoestring_core.store.tables import EventRow, HoldRow
from shoestring_core.wording.units import moment
from shoestring_core.wording.waits import ProviderUnanswered
from shoestring_worker.control_loop import ControlLoop
from shoestring_worker.providers import registry
from shoestring_worker.providers.base import ManagedProvider, OutcomeUnknown
from shoestring_worker.providers.sim import SimulatedProvider
from shoestring_worker.settings import WorkerSettings
from sqlalchemy import select

from tests.servers import PATIENCE_S, until
from tests.worker.conftest import SECRET, Clock, World

pytestmark = pytest.mark.any_database

HOUR_S = 3600


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world("local", "sim")


def running(world: World, provider: str | None, nodes: int = 1) -> UUID:
    job = world.submit(nodes, provider=provider)
    world.tick()
    world.form(job)
    assert world.job(job).state == "running"
    return job


def finish(world: World, job: UUID) -> None:
    """The job's last checkpoint is stored, its agents leave, and the tick after that settles it."""
    (first, *_) = machines = world.alive(job)
    world.train(job, 100)
    assert world.commit(first.id, world.job(job).generation, 100, "final")
    for machine in machines:
        world.providers[machine.provider].end(machine.provider_id, "exited")
    world.tick()


def open_holds(world: World) -> set[UUID]:
    with world.store.read() as db:
        return set(db.sql.scalars(select(HoldRow.machine).where(HoldRow.state == "open")))


def states(world: World, job: UUID) -> list[str]:
    return [machine.state for machine in world.machines(job)]


def test_while_a_provider_answers_nothing_for_an_hour_the_other_is_served_in_the_same_ticks(world: World):
    silent, other = world.providers
    waiting = running(world, silent)
    (kept,) = world.alive(waiting)
    long = running(world, other)
    world.providers[silent].silent = True
    for second in range(0, HOUR_S, 25):
        for job in (waiting, long):
            world.train(job, 10)
        world.tick(25)
        if second % 500 == 0:
            short = running(world, other)  # starts and forms within one tick
            world.clock.pass_(1)
            finish(world, short)
            assert world.job(short).settled_at is not None
        (machine,) = world.alive(long)
        assert machine.funded_until >= world.clock.now + 30 * S
        assert states(world, waiting) == ["running"]
        assert kept.id in open_holds(world)
    world.providers[silent].silent = False
    world.tick(1)
    assert [machine.id for machine in world.alive(waiting)] == [kept.id]
    for job in (waiting, long):
        finish(world, job)
        assert world.job(job).settled_at is not None
    journal = world.providers[silent].journal
    assert [entry.event for entry in journal] == ["launch", "end"]
    posted = sum(transfer.amount for transfer in world.transfers() if transfer.machine == kept.id)
    assert posted == money.cost("0.158", journal[1].at - journal[0].at)


def test_a_provider_without_machines_in_its_list_says_nothing_about_those_of_another(world: World):
    jobs = [running(world, "local"), running(world, "sim")]
    for _ in range(60):
        for job in jobs:
            world.report(job)
        world.tick(10)
    assert [states(world, job) for job in jobs] == [["running"], ["running"]]


def test_machines_of_another_provider_or_deployment_are_never_touched(world: World):
    job = running(world, "local")
    local, sim = world.providers["local"], world.providers["sim"]
    foreign = LaunchRequest("x", "sim", "", {DEPLOYMENT_TAG: "another"}, "sim", "spot", "0.158", {})
    sim.launch(foreign)
    machines = sim.list
    (own,) = local.alive()
    sim.list = lambda deployment: [*machines(deployment), own, replace(own, provider="sim"), *sim.alive()]
    for _ in range(60):
        world.report(job)
        world.tick(10)
    assert states(world, job) == ["running"]
    assert len(local.alive()) == len(sim.alive()) == 1


def test_a_stray_machine_is_terminated_at_the_provider_that_launched_it(world: World):
    deployment = world.control_loop.deployment
    for name, provider in world.providers.items():
        tags = {DEPLOYMENT_TAG: deployment, PROVIDER_TAG: name}
        provider.launch(LaunchRequest("stray", "sim", "", tags, "sim", "spot", "0.158", {}))
    world.providers["local"].silent = True
    world.tick()
    assert [len(provider.alive()) for provider in world.providers.values()] == [1, 0]


def test_a_provider_that_lists_late_and_one_that_loses_launch_requests_launch_one_machine_each(world: World):
    local, sim = world.providers["local"], world.providers["sim"]
    local.hidden = 2 * S
    faults = ["lost_reply", "lost_request"]
    sim.fault = lambda _: faults.pop() if faults else None
    jobs = [world.submit(provider="local"), world.submit(provider="sim")]
    for _ in range(5):
        world.tick(1)
    assert [states(world, job) for job in jobs] == [["running"], ["running"]]
    assert [len(provider.journal) for provider in (local, sim)] == [1, 1]


def test_a_provider_that_forgets_a_machine_for_good_ends_its_own_job_only(world: World):
    forgotten, other = running(world, "sim"), running(world, "local")
    world.providers["sim"].list = lambda _: []
    for second in range(0, 300, 10):
        assert states(world, forgotten) == ["running"], second
        world.report(other)
        world.tick(10)
    world.tick(10)
    (machine, *_) = world.machines(forgotten)
    assert (machine.state, machine.end_evidence) == ("terminated", "inferred")
    assert machine.billed_at is not None
    assert states(world, other) == ["running"]


@dataclass
class BlockedProvider:
    """Passes everything on once `answers` is set: until then its calls hang."""

    provider: SimulatedProvider
    answers: threading.Event = field(default_factory=threading.Event)

    def _wait(self) -> SimulatedProvider:
        if not self.answers.wait(PATIENCE_S):
            raise OutcomeUnknown("it never answered")
        return self.provider

    def offers(self, requirements: Collection[Requirements]) -> list[Offer]:
        return self._wait().offers(requirements)

    def launch(self, request: LaunchRequest) -> ProviderMachine:
        return self._wait().launch(request)

    def list(self, deployment: str) -> list[ProviderMachine]:
        return self._wait().list(deployment)

    def terminate(self, ref: MachineRef) -> None:
        self._wait().terminate(ref)


def test_a_tick_does_not_wait_for_a_provider_whose_calls_hang(world: World):
    held = running(world, "sim")
    blocked = BlockedProvider(world.providers["sim"])
    world.control_loop = world.another_control_loop(answer_wait_s=1, sim=blocked)
    world.control_loop.tick()  # waits for a second, once
    jobs = [world.submit(provider="local") for _ in range(3)]
    for job in jobs:
        until(lambda job=job: world.tick() or states(world, job) == ["running"])  # nor for the other, if it is slow
        world.form(job)
        assert world.job(job).state == "running"
        finish(world, job)
        assert world.job(job).settled_at is not None
    assert states(world, held) == ["running"]
    blocked.answers.set()
    finish(world, held)
    until(lambda: world.tick(1) or world.job(held).settled_at is not None)  # its answers are recorded as they come
    world.control_loop.close()


def test_a_job_without_a_provider_runs_where_it_is_cheapest(world: World):
    world.providers["sim"].price = "0.100"
    (machine,) = world.alive(running(world, None))
    assert machine.provider == "sim"


def test_a_job_without_a_provider_goes_where_slots_are_free(world: World):
    world.providers["sim"].price, world.providers["sim"].slots = "0.100", 2
    first, second, third = (world.submit(nodes) for nodes in (2, 2, 3))
    world.tick()
    assert [{machine.provider for machine in world.machines(job)} for job in (first, second)] == [{"sim"}, {"local"}]
    assert (world.job(third).state, world.job(third).wait_reason) == ("queued", "slots")


def test_a_job_that_waits_for_slots_of_one_provider_is_overtaken_only_on_the_other(world: World):
    running(world, "local", nodes=3)
    blocked, behind, elsewhere = world.submit(2, provider="local"), world.submit(1), world.submit(1, provider="local")
    world.tick()
    assert world.job(blocked).wait_reason == "slots"
    assert [machine.provider for machine in world.machines(behind)] == ["sim"]
    assert world.job(elsewhere).wait_reason == "slots"


def test_a_provider_that_has_not_answered_for_a_minute_gets_no_new_machines(world: World):
    world.providers["sim"].price = "0.100"
    world.tick()
    world.providers["sim"].silent = True
    world.tick(61)
    named, free = world.submit(provider="sim"), world.submit()
    world.tick()
    assert (world.job(named).state, world.job(named).wait_reason) == ("queued", "capacity")
    assert world.job(named).wait_detail == ProviderUnanswered("sim").as_json()
    assert [machine.provider for machine in world.machines(free)] == ["local"]
    with world.store.read() as db:
        ages = {offer.provider: db.now - offer.fetched_at for offer in load_offers(db)}
    assert (ages["local"], ages["sim"]) == (0, 61 * S)  # what it offered is still shown, with its age
    world.providers["sim"].silent = False
    world.tick(1)
    assert [machine.provider for machine in world.machines(named)] == ["sim"]


def test_a_slot_is_refilled_at_the_provider_of_its_attempt(world: World):
    refused = [RefusalKind.CAPACITY]
    world.providers["local"].fault = lambda _: refused.pop() if refused else None
    job = world.submit(nodes=2)  # of equally cheap ones the first
    world.tick()
    world.providers["sim"].price = "0.001"
    world.tick(1)
    assert {machine.provider for machine in world.machines(job)} == {"local"}
    assert sorted(states(world, job)) == ["never_launched", "running", "running"]


def test_each_provider_has_its_own_timeouts(world: World):
    slow = world.timeouts.model_copy(update={"drain": 120 * S, "boot": 300 * S})
    providers = {
        name: ManagedProvider(adapter, slow if name == "sim" else world.timeouts)
        for name, adapter in world.providers.items()
    }
    world.control_loop = ControlLoop(
        world.store, providers, world.objects, world.timeouts, SECRET, "http://127.0.0.1:1",
        monotonic=lambda: world.clock.now / S, answer_wait_s=PATIENCE_S,
    )  # fmt: skip
    jobs = {name: world.submit(provider=name) for name in providers}
    world.tick()
    held = {}
    with world.store.read() as db:
        for name, job in jobs.items():
            (machine,) = world.machines(job)
            held[name] = db.sql.scalars(select(HoldRow.amount).where(HoldRow.machine == machine.id)).one()
            assert machine.alive_until == world.clock.now + providers[name].timeouts.boot
    assert held == {
        name: money.cost_ceiling("0.526", 60 * S + provider.timeouts.drain) for name, provider in providers.items()
    }
    world.control_loop.close()


def test_machines_of_a_provider_that_is_no_longer_served_are_kept_and_reported(
    world: World, caplog: pytest.LogCaptureFixture
):
    orphan, other = running(world, "sim"), running(world, "local")
    del world.providers["sim"]
    world.control_loop = world.another_control_loop()
    for _ in range(40):
        world.report(other)
        world.tick(10)
    assert (states(world, orphan), states(world, other)) == (["running"], ["running"])
    assert "provider sim: it has machines, and this worker does not serve it" in caplog.text
    world.control_loop.close()


def test_a_job_that_names_a_provider_which_was_removed_says_since_when_no_worker_serves_it(world: World):
    world.tick(10)
    answered = world.clock.now
    del world.providers["sim"]
    world.control_loop = world.another_control_loop()
    world.clock.pass_(2 * HOUR_S)
    waiting = world.submit(provider="sim")
    world.tick(1)
    detail = world.job(waiting).wait_detail
    assert detail["code"] == "provider_unserved"
    assert answered - 60 * S <= detail["facts"]["since"] <= answered
    assert f"has served sim since {moment(detail['facts']['since'])}" in wording.render(**detail)
    assert "(shoestring stop)" in wording.render(**detail)


def test_a_worker_that_does_not_serve_a_provider_leaves_its_jobs_to_one_that_does(world: World):
    """During an upgrade that adds a provider, workers with and without it run side by side."""
    serves_both, sim = world.control_loop, world.providers["sim"]
    sim.fault = lambda _: RefusalKind.CAPACITY
    pinned, nowhere = world.submit(provider="sim"), world.submit(resources={"provider": "sim", "gpu": "H100"})
    serves_both.tick()
    del world.providers["sim"]
    serves_one = world.another_control_loop()
    later = world.submit(provider="sim")
    for _ in range(12):
        serves_one.tick()
        world.clock.pass_(5)
        serves_both.tick()
    told = {event.reason["code"] for job in (pinned, nowhere, later) for event in events(world, job) if event.reason}
    assert "provider_unserved" not in told
    assert world.job(nowhere).wait_detail["code"] == "no_offer"
    assert len([event for event in events(world, nowhere) if event.kind == "wait"]) == 1, "neither takes it back"
    sim.fault = lambda _: None
    for _ in range(3):
        serves_one.tick()
        world.clock.pass_(60)
        serves_both.tick()
    assert {machine.provider for machine in world.machines(later) if machine.launched_at} == {"sim"}


def test_a_job_for_a_provider_that_a_worker_served_a_moment_ago_says_that_it_does_not_answer(world: World):
    world.tick(10)
    del world.providers["sim"]
    world.control_loop = world.another_control_loop()
    world.clock.pass_(120)
    waiting = world.submit(provider="sim")
    world.tick(1)
    assert world.job(waiting).wait_detail["code"] == "provider_unanswered"
    world.tick(HOUR_S)
    world.tick(1)
    assert world.job(waiting).wait_detail["code"] == "provider_unserved"


def events(world: World, job: UUID) -> list[EventRow]:
    with world.store.read() as db:
        return list(db.sql.scalars(select(EventRow).where(EventRow.job == job).order_by(EventRow.seq)))


# A third provider: this class and one line of registration.


class ThirdProvider(SimulatedProvider):
    """What a provider of another kind could be."""


def open_third(name: str, settings: WorkerSettings) -> ManagedProvider:
    timeouts = settings.timeouts.model_copy(update={"funding_lease": 60 * S})
    return ManagedProvider(ThirdProvider(Clock(), name=name), timeouts)


def test_a_third_provider_takes_one_file_and_one_line(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setitem(registry.PROVIDERS, "third", open_third)
    settings = WorkerSettings(
        database_url="unused", object_store="unused", machinehost_file=tmp_path / "none", providers="third"
    )
    opened = registry.open_providers(settings)
    assert list(opened) == ["third"]
    world = make_world("sim")
    adapter = opened["third"].adapter
    adapter.clock = world.clock
    world.providers["third"] = adapter
    world.control_loop = world.another_control_loop()
    job = running(world, "third")
    assert [machine.provider for machine in world.machines(job)] == ["third"]
    world.clock.pass_(10)
    finish(world, job)
    assert (world.job(job).end_reason, world.job(job).settled_at is not None) == ("succeeded", True)
    world.control_loop.close()


def test_an_unknown_provider_in_the_settings_is_named_at_start(tmp_path: Path):
    settings = WorkerSettings(
        database_url="unused", object_store="unused", machinehost_file=tmp_path / "none", providers="local, azure"
    )
    with pytest.raises(ValueError, match="azure"):
        registry.open_providers(settings)
