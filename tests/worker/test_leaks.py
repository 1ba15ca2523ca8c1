# SPDX-License-Identifier: Apache-2.0
"""No machine runs on unseen and no money is lost on the way: what is called, billed and held, not only how it ends."""

from __future__ import annotations

from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S
from shoestring_core.store import jobs, ledger
from shoestring_core.store.fleet import gangs, planning
from shoestring_core.store.tables import HoldRow, TransferRow
from shoestring_worker.providers.base import OutcomeUnknown
from sqlalchemy import func, select

from tests.worker.conftest import World
from tests.worker.test_control_loop import leave

pytestmark = pytest.mark.any_database


def ends(world: World) -> list[UUID]:
    """The machines whose end the provider has in its journal."""
    return [UUID(entry.token) for entry in world.provider.journal if entry.event == "end"]


def launch_calls(world: World) -> list[str]:
    """The calls that the provider gets from now on, by token."""
    calls: list[str] = []
    fault = world.provider.fault

    def note(token: str) -> str | None:
        calls.append(token)
        return fault(token)

    world.provider.fault = note
    return calls


def billed(world: World, machine: UUID) -> int:
    with world.store.read() as db:
        return db.sql.scalar(select(func.sum(TransferRow.amount)).where(TransferRow.machine == machine)) or 0


def owed(world: World, machine: UUID) -> int:
    """What a machine that has ended costs according to the provider's journal."""
    begun, ended = (entry for entry in world.provider.journal if entry.token == str(machine))
    return money.cost(begun.price, ended.at - begun.at)


def forget(world: World, machine: UUID) -> None:
    """The provider lists the machine no more."""
    listing = world.provider.list
    world.provider.list = lambda deployment: [one for one in listing(deployment) if one.token != str(machine)]


def open_holds(world: World) -> set[UUID]:
    with world.store.read() as db:
        assert ledger.find_discrepancies(db) == []
        return set(db.sql.scalars(select(HoldRow.machine).where(HoldRow.state == "open")))


def test_a_machine_that_reports_keeps_no_other_alive(world: World):
    talking, silent = world.submit(), world.submit()
    world.tick()
    world.form(talking)
    world.form(silent)
    (lost,) = world.machines(silent)
    begun = world.clock.now
    for _ in range(8):
        world.report(talking)
        world.tick(4)
    assert world.clock.now - begun == 32 * S
    assert ends(world) == [lost.id]
    world.tick()
    assert billed(world, lost.id) == owed(world, lost.id) == money.cost("0.158", 32 * S)
    assert [machine.state for machine in world.machines(talking)] == [world.alive(talking)[0].state]


def test_a_terminate_call_that_fails_is_made_again(world: World):
    failed: list[object] = []
    terminate = world.provider.terminate

    def fail(*machine: object) -> None:
        failed.append(machine)
        raise OutcomeUnknown("the request was lost")

    world.provider.terminate = fail
    job = world.submit()
    world.tick()
    world.form(job)
    (machine,) = world.machines(job)
    world.tick(31)
    assert (failed != [], ends(world)) == (True, [])
    assert open_holds(world) == {machine.id}
    world.provider.terminate = terminate
    world.tick(2)
    assert ends(world) == [machine.id]
    world.tick()
    assert billed(world, machine.id) == owed(world, machine.id) == money.cost("0.158", 33 * S)
    assert machine.id not in open_holds(world)


def test_a_terminate_call_whose_answer_is_lost_is_made_until_the_machine_is_seen_to_have_ended(world: World):
    job = world.submit()
    world.tick()
    world.form(job)
    (machine,) = world.machines(job)
    calls: list[object] = []
    world.provider.terminate = lambda *ref: calls.append(ref)  # accepted, and nothing happens for a while
    world.tick(31)
    for _ in range(3):
        world.tick(1)
    assert len(calls) >= 4
    assert open_holds(world) == {machine.id}
    world.provider.end(machine.provider_id, "requested")
    made = len(calls)
    world.tick(1)
    world.tick(1)
    assert len(calls) == made
    assert billed(world, machine.id) == owed(world, machine.id) == money.cost("0.158", 34 * S)


def test_a_launch_call_without_an_answer_is_made_once_more(world: World):
    job, faults = world.submit(), ["lost_request"]
    world.provider.fault = lambda _: faults.pop() if faults else None
    calls = launch_calls(world)
    world.tick()
    (machine,) = world.machines(job)
    assert calls == [str(machine.id)]
    world.tick(1)
    assert calls == [str(machine.id)] * 2
    world.tick(1)
    world.tick(20)
    assert calls == [str(machine.id)] * 2


def test_a_call_that_a_killed_worker_had_begun_is_not_made_before_its_deadline(world: World):
    class Killed(BaseException):
        """kill -9: nothing after it happens."""

    def kill(_: str) -> None:
        raise Killed

    world.provider.fault = kill
    job = world.submit()
    with pytest.raises(Killed):
        world.tick()
    (machine,) = world.machines(job)
    world.provider.fault = lambda _: None
    calls = launch_calls(world)
    world.control_loop = world.another_control_loop()
    world.tick(1)
    world.tick(8)
    assert calls == []
    assert open_holds(world) == {machine.id}
    world.tick(1)
    assert calls == [str(machine.id)]


def test_a_forgotten_machine_is_billed_until_it_was_presumed_terminated_and_no_longer(world: World):
    job = world.submit()
    world.tick()
    world.form(job)
    (machine,) = world.machines(job)
    forget(world, machine.id)
    missing_since = None
    for _ in range(20):
        world.tick(30)
        missing_since = missing_since or world.clock.now
        (row,) = (one for one in world.machines(job) if one.id == machine.id)
        if row.ended_at is not None:
            break
    assert (row.state, row.end_evidence) == ("terminated", "inferred")
    assert row.ended_at == world.clock.now == missing_since + 300 * S
    world.tick(1)
    assert billed(world, machine.id) == money.cost("0.158", row.ended_at - machine.launched_at)
    assert machine.id not in open_holds(world)


def test_a_forgotten_machine_that_nobody_wants_any_more_is_billed_until_its_funding_ended(world: World):
    job = world.submit()
    world.tick()
    world.form(job)
    (machine,) = world.machines(job)
    forget(world, machine.id)
    world.store.write(lambda db: jobs.stop(db, job, "ann"))
    for _ in range(12):
        world.tick(30)
    (row,) = world.machines(job)
    assert (row.state, row.ended_at) == ("terminated", machine.funded_until)
    assert billed(world, machine.id) == money.cost("0.158", machine.funded_until - machine.launched_at)
    assert open_holds(world) == set()
    assert world.job(job).settled_at is not None


def test_a_job_that_is_stopped_while_a_slot_is_refilled_buys_no_machine(world: World):
    world.provider.fault = lambda _: RefusalKind.CAPACITY
    job = world.submit()
    world.tick()
    world.provider.fault = lambda _: None
    calls, refill = launch_calls(world), planning.refill_slot

    def stopped_first(db, *args, **kwargs):
        jobs.stop(db, job, "ann")
        return refill(db, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "refill_slot", stopped_first)
        world.tick(1)
    assert world.job(job).state in ("stopping", "ended")
    world.tick(1)
    assert calls == []
    assert [machine.state for machine in world.machines(job)] == ["never_launched"]
    assert open_holds(world) == set()
    assert world.job(job).end_reason == "user_stop"


def test_holds_of_machines_are_never_released_while_they_may_run(world: World):
    """A gang of two: one launch is refused, one answer is lost, one machine vanishes from the list for a while."""
    faults = ["lost_reply", RefusalKind.CAPACITY]
    world.provider.fault = lambda _: faults.pop() if faults else None
    world.provider.hidden = 3 * S
    job = world.submit(nodes=2)
    for _ in range(8):
        world.tick(1)
        running = {UUID(one.token) for one in world.provider.alive()}
        assert running <= open_holds(world)
    assert len(running) == 2
    assert open_holds(world) == running
    world.form(job)
    world.store.write(lambda db: jobs.stop(db, job, "ann"))
    world.tick()
    for machine in world.alive(job):
        world.exits(machine.id, 1, "drained")
    assert open_holds(world) == running
    leave(world, job)
    assert open_holds(world) == set()
    assert all(billed(world, machine) == owed(world, machine) > 0 for machine in running)


def test_a_decision_about_a_generation_that_is_over_touches_no_machine(world: World):
    """Two workers decide about the same failed generation; the second is late."""
    job = world.submit(nodes=2)
    world.tick()
    world.form(job)
    world.exits(world.alive(job)[0].id, 1, "signal")
    applied: list[bool] = []
    apply = gangs.apply_action

    def applied_twice(db, *args):
        applied.append(apply(db, *args))
        applied.append(apply(db, *args))
        return applied[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gangs, "apply_action", applied_twice)
        world.tick(1)
    assert applied == [True, False]
    assert world.job(job).generation == 2
    assert ends(world) == []
