# SPDX-License-Identifier: Apache-2.0
"""A gang that may lose machines: it shrinks, trains on, and grows back, in one attempt and one bill per machine."""

from __future__ import annotations

from uuid import UUID

import pytest
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet import agents
from shoestring_core.store.tables import GenerationRow, MachineRow
from shoestring_core.wording.attempts import MachineLost
from shoestring_worker.providers.sim import REGION
from sqlalchemy import select

from tests.worker.conftest import World
from tests.worker.test_control_loop import finish, independent_bill, spent

pytestmark = pytest.mark.any_database


def running(world: World, nodes: str = "2..4") -> UUID:
    job = world.submit(nodes=nodes)
    world.tick()
    world.form(job)
    world.train(job, 10)
    return job


def lose(world: World, job: UUID, slot: int) -> MachineRow:
    machine = next(one for one in world.alive(job) if one.slot == slot)
    world.provider.end(machine.provider_id, "crashed")
    return machine


def members(world: World, job: UUID) -> list[int]:
    """The slots that have a part in the current generation, by rank."""
    parts = {}
    for machine in world.alive(job):
        order = world.order(machine.id)
        if order.run:
            parts[order.run.node_rank] = machine.slot
    return [parts[rank] for rank in sorted(parts)]


def test_survivors_form_the_next_generation_and_the_lost_machine_is_replaced(world: World):
    job = running(world)
    world.commit(world.alive(job)[0].id, 1, 10)
    lose(world, job, 2)
    world.tick(3)
    assert (world.job(job).state, world.job(job).attempt, world.job(job).generation) == ("running", 1, 2)
    survivors = [one for one in world.alive(job) if one.slot != 2]
    assert {world.order(one.id).kind for one in survivors} == {"prepare"}
    for one in survivors:
        world.say(one.id, "ready", 2, port=29501)
    assert members(world, job) == [0, 1, 3]
    run = world.order(survivors[2].id).run
    assert (run.node_rank, run.nnodes, run.resume.step) == (2, 3, 10)
    newcomer = next(one for one in world.alive(job) if one.slot == 2)
    assert (newcomer.ordinal, newcomer.attempt) == (4, 1)


def test_a_newcomer_joins_after_a_step_and_a_checkpoint(world: World):
    job = running(world)
    lose(world, job, 0)
    world.tick(3)
    world.form(job)
    assert world.job(job).generation == 2
    assert members(world, job) == [1, 2, 3]
    newcomer = next(one for one in world.alive(job) if one.slot == 0)
    assert world.order(newcomer.id).kind == "wait"  # the others have not done a step yet
    world.train(job, 20)
    trainers = [one for one in world.alive(job) if one.slot != 0]
    assert {world.order(one.id).kind for one in trainers} == {"drain"}
    assert world.order(newcomer.id).kind == "wait"
    assert world.commit(trainers[0].id, 2, 20, "order")
    for one in trainers:
        world.exits(one.id, 2, "drained")
        assert world.order(one.id).kind == "wait"
    world.tick(1)
    assert world.form(job) == 3
    assert members(world, job) == [0, 1, 2, 3]
    assert {world.order(one.id).run.resume.step for one in world.alive(job)} == {20}
    finish(world, job)
    assert world.job(job).end_reason == "succeeded"
    assert world.job(job).attempt == 1
    assert spent(world) == independent_bill(world)


def test_a_machine_with_a_preemption_notice_leaves_after_the_checkpoint_and_the_others_continue(world: World):
    job = running(world)
    first, *others = world.alive(job)
    world.store.write(lambda db: agents.record_notice(db, first.id, world.clock.now + 10 * S))
    world.commit(first.id, 1, 12, "order")
    for one in (first, *others):
        world.exits(one.id, 1, "drained")
    world.tick(1)
    for one in others:
        world.say(one.id, "ready", 2, port=29501)
    assert members(world, job) == [1, 2, 3]
    assert world.order(others[0].id).run.resume.step == 12
    assert world.order(first.id).kind == "wait"


def test_with_fewer_machines_than_the_minimum_the_attempt_ends(world: World):
    job = running(world)
    for slot in (0, 1, 3):
        lose(world, job, slot)
    world.tick(3)
    assert world.job(job).state == "queued"
    assert {world.order(one.id).kind for one in world.alive(job)} == {"shutdown"}


def test_without_a_minimum_the_loss_of_one_machine_ends_the_attempt(world: World):
    job = running(world, nodes="4..4")
    lose(world, job, 2)
    world.tick(3)
    assert world.job(job).state == "queued"


def test_a_survivor_that_does_not_get_ready_is_terminated_and_left_out(world: World):
    job = running(world)
    lose(world, job, 3)
    world.tick(3)
    silent = world.alive(job)[1]
    for one in world.alive(job):
        if one.slot in (0, 2):
            world.say(one.id, "ready", 2, port=29501)
    for _ in range(8):
        world.report(job)
        world.tick(4)
    assert world.job(job).generation == 3
    assert next(one.state for one in world.machines(job) if one.id == silent.id) in ("terminating", "terminated")
    world.form(job)
    assert [slot for slot in members(world, job) if slot in (0, 2)] == [0, 2]


def test_a_gang_starts_with_the_machines_that_registered_in_time(world: World):
    world.provider.fault = lambda token: RefusalKind.CAPACITY if len(world.provider.alive()) >= 3 else None
    job = world.submit(nodes="2..4")
    for _ in range(61):
        world.register(job)
        world.report(job)
        world.tick(1)
    assert world.job(job).generation == 1
    world.form(job)
    assert len(members(world, job)) == 3
    world.provider.fault = lambda _: None
    world.train(job, 10)
    for _ in range(62):
        world.report(job)
        world.tick(1)
        world.register(job)
    assert len(world.alive(job)) == 4
    assert "drain" in {world.order(one.id).kind for one in world.alive(job)}


def test_generations_record_how_the_gang_changed(world: World):
    job = running(world)
    lose(world, job, 1)
    world.tick(3)
    with world.store.read() as db:
        rows = db.sql.scalars(
            select(GenerationRow).where(GenerationRow.job == job).order_by(GenerationRow.number)
        ).all()
    assert [(one.world_size, one.state) for one in rows] == [(4, "ended"), (3, "forming")]
    assert rows[0].end_reason == MachineLost(1, "crashed").as_json()


@pytest.mark.parametrize(("limit", "types"), [("4.00", ["first", "other"]), ("3.99", ["first"])])
def test_a_replacement_costs_no_more_than_the_others_leave_of_the_hourly_limit(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: str, types: list[str]
):
    """The machine that trains on costs $1.99 an hour; now there are only such for $2.01."""

    def offer(type_: str, price: str) -> Offer:
        return Offer(world.provider.name, REGION, "", type_, "spot", price, "9", 9, "sim", True)

    monkeypatch.setattr(world.provider, "offers", lambda _: [offer("first", "1.99")])
    job = world.submit(nodes="1..2", limits={"rate": limit})
    world.tick()
    world.form(job)
    world.train(job, 10)
    monkeypatch.setattr(world.provider, "offers", lambda _: [offer("other", "2.01")])
    lose(world, job, 1)
    world.tick(3)
    world.tick(3)
    assert [machine.type for machine in world.alive(job)] == types


def test_a_replacement_has_as_many_gpus_as_the_machines_that_it_joins(world: World, monkeypatch: pytest.MonkeyPatch):
    def offer(type_: str, price: str, gpus: int) -> Offer:
        hardware = Hardware(8, 32_768, "T4", gpus, 16_384)
        return Offer(world.provider.name, REGION, "", type_, "spot", price, "9", 9, "sim", True, hardware)

    four, eight, one = offer("four", "3", 4), offer("eight", "2", 8), offer("one", "1", 1)
    monkeypatch.setattr(world.provider, "offers", lambda _: [four])
    job = world.submit(resources={"nodes": "1..2", "gpu": "T4"})
    world.tick()
    world.form(job)
    world.train(job, 10)
    monkeypatch.setattr(world.provider, "offers", lambda _: [four, eight, one])
    lose(world, job, 1)
    world.tick(3)
    world.tick(3)
    assert [machine.type for machine in world.alive(job)] == ["four", "four"]
    assert world.order(world.alive(job)[0].id).kind == "prepare"
    world.form(job)
    run = world.order(world.alive(job)[0].id).run
    assert (run.nproc_per_node, run.task.device) == (4, "cuda")
