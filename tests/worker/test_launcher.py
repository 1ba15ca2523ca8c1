# SPDX-License-Identifier: Apache-2.0
"""The launch calls of one worker to one provider: at most eight at once, each made once, none too late."""

from __future__ import annotations

from collections import Counter
from concurrent import futures
from threading import Event
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet import launches
from shoestring_worker.launcher import MAX_CONCURRENT_LAUNCHES, Launcher

from tests.servers import PATIENCE_S
from tests.worker.conftest import World


def test_a_call_in_progress_is_not_begun_again_and_those_beyond_eight_are_handed_over():
    answered, calls, handed_over = Event(), Counter[UUID](), list[UUID]()

    def run(_item: str, _launch: object, machine: UUID) -> None:
        calls[machine] += 1
        assert answered.wait(PATIENCE_S)

    items: Any = SimpleNamespace(run=run)
    nothing: Any = None
    launcher = Launcher("sim", nothing, nothing, "secret", items, handed_over.append)
    machines = [UUID(int=number) for number in range(MAX_CONCURRENT_LAUNCHES + 2)]
    begun = launcher.begin(machines)
    assert (len(begun), handed_over) == (MAX_CONCURRENT_LAUNCHES, machines[MAX_CONCURRENT_LAUNCHES:])
    assert launcher.begin(machines[:2]) == []
    assert handed_over == machines[MAX_CONCURRENT_LAUNCHES:]
    answered.set()
    futures.wait(begun, PATIENCE_S)
    futures.wait(launcher.begin(machines[1:3]), PATIENCE_S)
    assert calls == Counter(machines[:MAX_CONCURRENT_LAUNCHES] + machines[1:3])
    launcher.close()


def planned(world: World) -> UUID:
    """A machine whose launch call was lost and may be made again."""
    world.provider.fault = lambda _: "lost_request"
    job = world.submit()
    world.tick()
    world.provider.fault = lambda _: None
    world.clock.pass_(world.timeouts.launch_call / S)
    (machine,) = world.machines(job)
    assert machine.state == "launching"
    return machine.id


def test_a_call_whose_commit_took_so_long_that_it_may_overlap_with_the_next_is_not_made(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """A fifth of the time for the answer is left for the commit."""
    machine, delay = planned(world), world.timeouts.launch_call / S / 5
    begin, late = launches.begin_launch, [delay + 1, delay]

    def begin_launch(*args: Any) -> object:
        begun = begin(*args)
        world.clock.pass_(late.pop(0))
        return begun

    monkeypatch.setattr(launches, "begin_launch", begin_launch)
    world.control_loop.launch(machine)
    assert world.provider.alive() == []
    world.clock.pass_(world.timeouts.launch_call / S)
    world.control_loop.launch(machine)
    assert [one.token for one in world.provider.alive()] == [str(machine)]


def test_a_machine_that_another_worker_launches_is_left_to_it(world: World, monkeypatch: pytest.MonkeyPatch):
    machine = planned(world)
    assert world.store.write(lambda db: launches.begin_launch(db, machine, world.timeouts)) is not None
    world.control_loop.launch(machine)
    assert world.provider.alive() == []
    world.control_loop.launch(UUID(int=0))  # one that the database doesn't know
