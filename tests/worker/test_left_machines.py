# SPDX-License-Identifier: Apache-2.0
"""A spot machine whose work is over after a notice is left to its provider, which makes it free in its first hour.

Its job goes on meanwhile, and pays for both until one has ended. The provider is simulated, and bills as EC2 does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide.billing import INTERRUPTION_GRACE, BillingRules
from shoestring_core.decide.timeouts import S
from shoestring_core.store import jobs, ledger
from shoestring_core.store.fleet import agents
from shoestring_core.store.projection_inputs import load_projection_inputs
from shoestring_core.store.tables import AccountRow, AttemptRow, EventRow, HoldRow, MachineRow, TransferRow
from sqlalchemy import select

from tests.worker.conftest import World

pytestmark = pytest.mark.any_database

EC2 = BillingRules(
    minimum=60 * S, increment=S, pending_is_free=True, free_if_interrupted_within=3600 * S, spot_price_moves=True
)
NOTICE = 12 * S
"""From a notice to the interruption: with its grace it is longer than `drain`, as on EC2."""


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    world = make_world("sim")
    bill_by(world, EC2)
    return world


def bill_by(world: World, rules: BillingRules) -> None:
    offers = world.provider.offers
    world.provider.offers = lambda wanted: [replace(offer, billing=rules) for offer in offers(wanted)]


def train(world: World, nodes: int = 1, seconds: float = 0, **fields: object) -> tuple[UUID, list[MachineRow]]:
    job = world.submit(nodes=nodes, **fields)
    world.tick()
    world.form(job)
    for _ in range(int(seconds // 20)):
        world.tick(20)
        world.report(job)
    world.train(job, 40)
    return job, world.alive(job)


def give_notice(world: World, machine: MachineRow) -> int:
    """Until when it is left to its provider, if it is."""
    world.store.write(lambda db: agents.record_notice(db, machine.id, world.clock.now + NOTICE))
    return world.clock.now + NOTICE + INTERRUPTION_GRACE


def save_and_exit(world: World, *machines: MachineRow) -> None:
    generation = world.job(machines[0].job).generation
    assert world.commit(machines[0].id, generation, 40, "order")
    for rank, machine in enumerate(machines):
        world.exits(machine.id, generation, "drained", rank=rank)


def alive(world: World) -> set[str]:
    return {one.token for one in world.provider.alive()}


def state(world: World, machine: MachineRow) -> MachineRow:
    return next(row for row in world.machines(machine.job) if row.id == machine.id)


def held(world: World) -> dict[UUID, int]:
    with world.store.read() as db:
        return {row.machine: row.amount for row in db.sql.scalars(select(HoldRow).where(HoldRow.state == "open"))}


def paid(world: World, machine: MachineRow) -> int:
    with world.store.read() as db:
        assert ledger.find_discrepancies(db) == []
        assert not db.sql.scalars(select(AccountRow).where(AccountRow.overdraft > 0)).all()
        transfers = select(AccountRow.kind, TransferRow.amount).where(TransferRow.machine == machine.id)
        lines = db.sql.execute(transfers.join(AccountRow, TransferRow.credit_account == AccountRow.id)).all()
        return sum(amount if kind == "cash" else -amount for kind, amount in lines)


def attempts(world: World, job: UUID) -> list[str]:
    with world.store.read() as db:
        of_job = select(AttemptRow.state).where(AttemptRow.job == job)
        return list(db.sql.scalars(of_job.order_by(AttemptRow.number)))


def told(world: World, machine: MachineRow) -> list[str]:
    """What the feed tells about the bill of a machine."""
    with world.store.read() as db:
        events = db.sql.scalars(select(EventRow).where(EventRow.kind == "cost").order_by(EventRow.seq))
        return [one.reason["code"] for one in events if one.reason and one.data.get("machine") == str(machine.id)]


def test_a_noticed_machine_of_the_first_hour_lives_on_for_nothing_while_its_job_resumes(world: World):
    job, (machine,) = train(world, seconds=60)
    until = give_notice(world, machine)
    save_and_exit(world, machine)
    world.tick()
    (fresh,) = [row for row in world.machines(job) if row.attempt == 2]
    assert alive(world) == {str(machine.id), str(fresh.id)}, "the next one was launched while the last still lives"
    assert state(world, machine).left_until == until
    assert attempts(world, job) == ["closed", "open"]
    assert held(world).keys() == {machine.id, fresh.id}, "both are paid for"
    with world.store.read() as db:
        (run,) = load_projection_inputs(db, world.timeouts).runs
    assert run.nodes == 1, "the queue expects one to be free when the job ends"
    assert world.form(job) == 2
    assert world.order(fresh.id).run.resume.step == 40
    world.tick(NOTICE / S)
    assert str(machine.id) in alive(world)
    world.provider.end(machine.provider_id, "preempted")
    world.tick(1)
    assert held(world).keys() == {fresh.id}
    assert (paid(world, machine), told(world, machine)) == (0, ["free_interruption"])
    world.train(job, 100)
    world.commit(fresh.id, 2, 100, "final")
    world.provider.end(fresh.provider_id, "exited")
    world.tick(1)
    assert (world.job(job).end_reason, held(world)) == ("succeeded", {})
    assert world.job(job).settled_at is not None
    assert paid(world, fresh) == money.cost("0.158", 60 * S), "the least that EC2 bills"


@pytest.mark.parametrize("who", ["agent", "worker"])
def test_a_machine_that_is_not_interrupted_after_all_ends_and_is_billed(world: World, who: str):
    job, (machine,) = train(world, seconds=60)
    give_notice(world, machine)
    save_and_exit(world, machine)
    ran_from = machine.launched_at or 0
    world.tick()
    for _ in range(int(world.timeouts.drain // S)):
        assert str(machine.id) in alive(world)
        world.tick(1)
    if who == "agent":
        world.provider.end(machine.provider_id, "exited")
    world.tick(1)
    ended = next(entry.at for entry in world.provider.journal if (entry.event, entry.token) == ("end", str(machine.id)))
    world.tick(1)
    assert str(machine.id) not in alive(world)
    assert paid(world, machine) == money.cost("0.158", -(-(ended - ran_from) // S) * S)
    assert attempts(world, job) == ["closed", "open"]


def after_the_free_time(world: World) -> tuple[UUID, MachineRow]:
    bill_by(world, replace(EC2, free_if_interrupted_within=60 * S))
    job, (machine,) = train(world, seconds=60)
    return job, machine


def on_demand(world: World) -> tuple[UUID, MachineRow]:
    job, (machine,) = train(world, resources={"nodes": 1, "spot": "never"})
    return job, machine


def without_the_rule(world: World) -> tuple[UUID, MachineRow]:
    bill_by(world, replace(EC2, free_if_interrupted_within=0))
    job, (machine,) = train(world)
    return job, machine


@pytest.mark.parametrize("case", [after_the_free_time, on_demand, without_the_rule])
def test_a_machine_that_is_billed_anyway_ends_itself_at_once_and_is_waited_for(
    world: World, case: Callable[[World], tuple[UUID, MachineRow]]
):
    job, machine = case(world)
    give_notice(world, machine)
    save_and_exit(world, machine)
    world.tick()
    assert state(world, machine).left_until is None
    assert alive(world) == {str(machine.id)}
    assert (world.job(job).wait_reason, attempts(world, job)) == ("terminating", ["closing"])
    world.provider.end(machine.provider_id, "exited")
    world.tick(1)
    assert attempts(world, job) == ["closed", "open"]
    assert paid(world, machine) > 0


def no_checkpoint(world: World, machine: MachineRow) -> None:
    world.exits(machine.id, 1, "error", kind="infrastructure")


def no_ranks(world: World, machine: MachineRow) -> None:
    world.say(machine.id, "exited", 1)


def silence(world: World, machine: MachineRow) -> None:
    pass


@pytest.mark.parametrize("said", [no_checkpoint, no_ranks, silence])
def test_only_an_agents_word_that_its_work_is_saved_lets_the_job_go_on_before_the_machine_has_ended(
    world: World, said: Callable[[World, MachineRow], None]
):
    job, (machine,) = train(world)
    give_notice(world, machine)
    said(world, machine)
    world.tick(1)
    assert state(world, machine).left_until is None
    assert len(attempts(world, job)) == 1
    assert alive(world) == {str(machine.id)}


def test_the_machines_of_a_gang_that_are_not_left_are_waited_for(world: World):
    job, (first, second) = train(world, nodes=2)
    give_notice(world, second)
    save_and_exit(world, first, second)
    world.tick()
    assert [state(world, one).left_until is None for one in (first, second)] == [True, False]
    assert attempts(world, job) == ["closing"]
    world.provider.end(first.provider_id, "exited")
    world.tick(1)
    assert attempts(world, job) == ["closed", "open"]
    assert str(second.id) in alive(world)
    assert len(alive(world)) == 3


def test_a_machine_is_left_by_the_word_of_its_own_agent_not_of_a_peers(world: World):
    _, (first, second) = train(world, nodes=2, seconds=60)
    save_and_exit(world, first)
    give_notice(world, second)
    assert state(world, second).left_until is None, "its ranks may still be saving"


def test_a_machine_that_gets_its_notice_after_its_ranks_have_exited_is_left_as_well(world: World):
    job, (first, second) = train(world, nodes=2)
    give_notice(world, second)
    save_and_exit(world, first, second)
    give_notice(world, first)
    world.tick()
    assert all(state(world, one).left_until for one in (first, second))
    assert attempts(world, job) == ["closed", "open"]
    assert len(alive(world)) == 4


def test_peers_whose_ranks_do_not_exit_wait_no_longer_than_for_a_machine_that_is_not_ready(world: World):
    job, (first, second) = train(world, nodes=2)
    world.store.write(lambda db: agents.record_notice(db, second.id, world.clock.now + 300 * S))
    world.exits(second.id, 1, "drained", rank=1)
    for _ in range(29):
        world.tick(1)
        world.report(job)
    assert attempts(world, job) == ["open"]
    world.tick(1)
    assert (attempts(world, job), world.order(first.id).kind) == (["closing"], "shutdown")


def test_the_slots_of_an_elastic_gang_are_filled_in_its_attempt_so_its_machines_are_not_left(world: World):
    _, (first, second) = train(world, nodes=2, resources={"nodes": 2, "min": 1})
    give_notice(world, second)
    save_and_exit(world, first, second)
    assert state(world, second).left_until is None


@pytest.mark.parametrize("limit", ["team", "job"])
def test_where_the_budget_does_not_pay_for_both_the_next_attempt_waits_for_the_release(world: World, limit: str):
    job, (machine,) = train(world)
    (hold,) = held(world).values()
    if limit == "team":
        world.budget(hold * 3 // 2)
    else:
        with world.store.read() as db:
            account = ledger.job_account(db, job).id
        world.store.write(lambda db: ledger.set_limit(db, account, hold * 3 // 2, actor="ann", reason="test"))
    give_notice(world, machine)
    save_and_exit(world, machine)
    world.tick()
    assert (attempts(world, job), world.job(job).wait_reason) == (["closed"], "budget")
    assert alive(world) == {str(machine.id)}
    world.tick(5)
    world.provider.end(machine.provider_id, "preempted")
    world.tick(1)
    assert attempts(world, job) == ["closed", "open"]
    assert paid(world, machine) == 0


def test_a_job_that_may_have_one_gpu_or_run_alone_is_not_held_up_by_its_own_machine(world: World):
    job, (machine,) = train(world)
    with world.store.read() as db:
        account = ledger.team_account(db, world.admin.team).id
    world.store.write(lambda db: ledger.set_concurrency(db, account, 1, 1, actor="ann", reason="test"))
    give_notice(world, machine)
    save_and_exit(world, machine)
    world.tick()
    assert attempts(world, job) == ["closed", "open"]


def test_a_job_that_was_stopped_ends_without_its_machine_and_is_settled_with_its_bill(world: World):
    job, (machine,) = train(world)
    give_notice(world, machine)
    world.store.write(lambda db: jobs.stop(db, job, "ann"))
    world.tick()
    save_and_exit(world, machine)
    world.tick()
    assert (world.job(job).end_reason, world.job(job).settled_at) == ("user_stop", None)
    assert alive(world) == {str(machine.id)}
    world.provider.end(machine.provider_id, "preempted")
    world.tick(1)
    assert world.job(job).settled_at is not None
    assert (held(world), paid(world, machine)) == ({}, 0)
