# SPDX-License-Identifier: Apache-2.0
"""A job that makes room for a team below its guaranteed rate: it saves a checkpoint, waits in its place and resumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from shoestring_core import wording
from shoestring_core.decide import preemption
from shoestring_core.decide.preemption import EvictionInputs, decide_evictions
from shoestring_core.decide.start import StartInputs
from shoestring_core.decide.timeouts import S
from shoestring_core.store import identity, jobs, ledger
from shoestring_core.store.fleet import rows
from shoestring_core.store.tables import AttemptRow, EventRow
from shoestring_worker import failpoints
from sqlalchemy import select

from tests.core.decide.recompute import recompute_start
from tests.worker.conftest import World

STEP = 40
MIN_RUN_S = 20
"""Here; machines that are looked after for ten minutes would take many ticks."""


class Shared:
    """Vision trains on the only machine; speech, which is guaranteed one, asks for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.provider.slots = 1
        self.speech = world.store.write(lambda db: identity.ensure_admin(db, "org", "speech", "bob"))
        self.guarantee("10.00")
        self.borrower = world.submit(retry={"max": 0})
        world.tick()
        self.train(STEP)

    def guarantee(self, dollars: str) -> None:
        def work(db):
            team = ledger.team_account(db, self.speech.team).id
            ledger.set_guaranteed_rate(db, team, int(float(dollars) * 1e6), actor="bob", reason="")

        self.world.store.write(work)

    def train(self, step: int) -> int:
        generation = self.world.form(self.borrower)
        self.world.train(self.borrower, step)
        return generation

    def go_on(self, seconds: int) -> None:
        """The borrower trains."""
        for _ in range(seconds // 5):
            self.world.report(self.borrower)
            self.world.tick(5)

    def attempt(self, number: int) -> AttemptRow:
        with self.world.store.read() as db:
            return rows.load_attempt(db, self.borrower, number)

    def drain(self) -> None:
        """Ranks save a checkpoint and exit, and the machine ends."""
        world, generation = self.world, self.world.job(self.borrower).generation
        (machine,) = world.alive(self.borrower)
        assert world.order(machine.id).kind == "drain"
        assert world.commit(machine.id, generation, STEP, "order")
        world.exits(machine.id, generation, "drained")
        world.tick()
        world.provider.end(world.provider.alive()[0].id, "exited")

    def interrupt(self) -> dict[str, int]:
        """The borrower's machine is preempted, for which it ends: retry.max is 0. Returns what is said of that."""
        self.world.provider.end(self.world.provider.alive()[0].id, "preempted")
        for _ in range(3):
            self.world.tick(1)
        ended = self.world.job(self.borrower)
        assert ended.state == "ended"
        return ended.end_detail["facts"]

    def moves(self, job: UUID) -> list[tuple[str, str]]:
        """The job's states, each with the sentence for it."""
        with self.world.store.read() as db:
            moves = select(EventRow).where(EventRow.job == job, EventRow.kind == "job")
            told = db.sql.scalars(moves.order_by(EventRow.seq))
            return [(event.data["to"], wording.render(**event.reason)) for event in told]


@pytest.fixture
def shared(world: World, monkeypatch: pytest.MonkeyPatch) -> Shared:
    monkeypatch.setattr(preemption, "MIN_RUN_TIME", MIN_RUN_S * S)
    return Shared(world)


@pytest.mark.any_database
def test_a_borrower_saves_a_checkpoint_for_a_team_below_its_guaranteed_rate_and_resumes_without_a_retry(shared: Shared):
    world = shared.world
    place = world.job(shared.borrower).queued_at
    wanted = world.submit(principal=shared.speech)
    shared.go_on(MIN_RUN_S - 5)
    assert world.job(shared.borrower).state == "running"
    shared.go_on(10)
    assert (world.job(shared.borrower).state, world.job(shared.borrower).stop_reason) == ("stopping", "eviction")
    shared.drain()
    world.tick()
    assert world.job(wanted).state == "launching"
    evicted = world.job(shared.borrower)
    assert (evicted.state, evicted.desired_state, evicted.stop_reason) == ("queued", "run", "")
    assert (evicted.queued_at, evicted.wait_reason) == (place, "slots")
    moved = shared.moves(shared.borrower)
    assert [to for to, _ in moved] == ["queued", "launching", "running", "stopping", "queued"]
    assert moved[3][1].startswith("It makes room for a job of team")
    assert "which is guaranteed $10.00 an hour and used $0.00" in moved[3][1]

    stored = EvictionInputs.from_json(shared.attempt(1).eviction)
    (eviction,) = decide_evictions(stored)
    assert (eviction.job, eviction.attempt, stored.claimant) == (shared.borrower, 1, wanted)
    assert shared.attempt(1).reason == "eviction"

    world.store.write(lambda db: jobs.stop(db, wanted, "bob"))
    for _ in range(3):
        world.tick()
        for machine in world.provider.alive():
            if str(machine.tags["job"]) == str(wanted):
                world.provider.end(machine.id, "exited")
    assert world.job(shared.borrower).state == "launching"
    shared.train(STEP + 10)
    (machine,) = world.alive(shared.borrower)
    assert world.order(machine.id).run.resume.step == STEP
    assert shared.interrupt() == {"interruptions": 1, "retry_max": 0}


def test_a_start_that_is_stored_recomputes_to_itself_with_guaranteed_rates(shared: Shared):
    inputs = StartInputs.from_json(shared.attempt(1).plan)
    start = recompute_start(inputs)
    assert (start.job, start.attempt) == (shared.borrower, 1)


def test_a_user_who_pauses_a_job_while_it_makes_room_has_it_paused(shared: Shared):
    shared.world.submit(principal=shared.speech)
    shared.go_on(MIN_RUN_S + 5)
    shared.world.store.write(lambda db: jobs.stop(db, shared.borrower, "ann", "pause"))
    shared.drain()
    shared.world.tick()
    assert shared.world.job(shared.borrower).state == "paused"


def test_a_pause_is_no_interruption_either(shared: Shared):
    shared.world.store.write(lambda db: jobs.stop(db, shared.borrower, "ann", "pause"))
    shared.world.tick()
    shared.drain()
    shared.world.tick()
    shared.world.store.write(lambda db: jobs.resume(db, shared.borrower, "ann"))
    shared.world.tick()
    shared.train(STEP + 10)
    assert shared.interrupt() == {"interruptions": 1, "retry_max": 0}


@pytest.mark.parametrize("when", ["after", "twice"])
def test_a_worker_that_dies_at_an_eviction_or_makes_it_twice_evicts_once(shared: Shared, when: str):
    world, struck = shared.world, []
    world.submit(principal=shared.speech)
    shared.go_on(MIN_RUN_S - 5)

    class Killed(BaseException):
        pass

    def fault(name: str, call: Callable[[], Any]) -> Any:
        if name != "record_eviction" or struck:
            return call()
        struck.append(name)
        result = call()
        if when == "after":
            raise Killed
        assert call() is False, "another plan came first"
        return result

    with failpoints.plant(fault):
        while world.job(shared.borrower).state == "running":
            try:
                shared.go_on(5)
            except Killed:
                world.control_loop.close()
                world.control_loop = world.another_control_loop()
    assert struck
    assert [to for to, _ in shared.moves(shared.borrower)].count("stopping") == 1
    shared.drain()
    world.tick()
    assert world.job(shared.borrower).state == "queued"
