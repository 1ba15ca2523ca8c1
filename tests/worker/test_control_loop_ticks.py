# SPDX-License-Identifier: Apache-2.0
"""What a tick does and what it leaves for later: intervals, polls, rounds, and what has failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from shoestring_core.store import budget_periods, ledger
from shoestring_core.store.fleet.launches import PlannedMachine
from shoestring_core.store.transactions import CommitInfo
from shoestring_worker import control_loop as module
from shoestring_worker.control_loop import MAX_ROUNDS

from tests.worker.conftest import World


@pytest.fixture
def ran(world: World, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often ticks ran each item, and "rounds"."""
    counted = Counter[str]()
    items, run, steps = world.control_loop._items, world.control_loop._items.run, world.control_loop._run_steps

    def run_counted(item: str, *args: Any, **more: Any) -> Any:
        counted[item] += 1
        return run(item, *args, **more)

    def count_round(**more: bool) -> None:
        counted["rounds"] += 1
        steps(**more)

    monkeypatch.setattr(items, "run", run_counted)
    monkeypatch.setattr(world.control_loop, "_run_steps", count_round)
    return counted


@pytest.mark.parametrize(
    ("item", "interval_s"),
    [
        ("the heartbeat", module.HEARTBEAT_S),
        ("the audit of the ledger", module.AUDIT_S),
        ("the old responses", module.DELETE_EXPIRED_S),
        ("the borders of budgets", module.BORDERS_S),
        ("the forecasts of budgets", module.FORECASTS_S),
        ("the seals of audit logs", module.SEALS_S),
    ],
)
def test_what_is_due_now_and_then_is_done_at_start_and_keeps_its_interval(
    world: World, ran: Counter[str], item: str, interval_s: float
):
    for seconds, times in ((0, 1), (interval_s - 1, 1), (1, 2), (1, 2)):
        world.tick(seconds)
        assert ran[item] == times


def test_a_tick_with_nothing_to_do_looks_once_and_does_nothing(world: World, ran: Counter[str]):
    world.tick()
    ran.clear()
    world.tick(1)
    assert ran == {"rounds": 1}


@pytest.mark.parametrize("why", ["nothing", "due", "queued", "running"])
def test_a_provider_is_asked_when_it_has_machines_jobs_wait_or_ten_seconds_have_passed(world: World, why: str):
    asked, listing = Counter[str](), world.provider.list

    def counting(deployment: str) -> list[Any]:
        asked["list"] += 1
        return listing(deployment)

    world.tick()
    world.provider.list = counting
    if why == "queued":
        world.submit(nodes=world.provider.slots + 1)
    elif why == "running":
        world.submit()
        world.tick()
    asked.clear()
    world.tick(10 if why == "due" else 1)
    assert bool(asked["list"]) == (why != "nothing")


def test_a_tick_that_always_finds_more_work_makes_a_schedule_in_its_last_round(world: World, ran: Counter[str]):
    offers = world.provider.offers

    def more_work(*args: Any) -> Any:
        world.control_loop._more_work.set()
        return offers(*args)

    world.provider.offers = more_work
    job = world.submit()
    world.tick()
    assert (ran["rounds"], ran["the schedule"]) == (MAX_ROUNDS, 1)
    assert world.job(job).state == "launching"


@pytest.mark.parametrize("requested", [True, False])
def test_a_commit_makes_work_for_a_tick_only_if_it_says_so(world: World, requested: bool):
    world.tick()
    for listener in world.store.on_commit:
        listener(CommitInfo({world.admin.team}, set(), tick_requested=requested))
    assert world.control_loop._more_work.is_set() == requested


def test_of_two_ticks_at_once_in_a_process_one_is_left_to_the_other(world: World, ran: Counter[str]):
    with world.control_loop._ticking:
        assert world.control_loop.tick() is False
    assert ran == {}
    assert world.control_loop.tick() is True


def test_slots_that_cannot_be_looked_at_keep_no_machine_from_its_launch(world: World, monkeypatch: pytest.MonkeyPatch):
    world.submit()
    world.tick()

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(world.control_loop._attempts, "refill_slots", fail)
    second = world.submit()
    world.tick()
    assert [machine.state for machine in world.machines(second)] == ["running"]


def test_borders_are_rolled_over_until_none_is_due_and_one_that_fails_waits_for_a_later_tick(
    world: World, ran: Counter[str], monkeypatch: pytest.MonkeyPatch
):
    answers: list[bool | Exception] = [True, True, False, RuntimeError("a mistake")]
    rolled = 0

    def roll_over(*_: object) -> bool:
        nonlocal rolled
        rolled += 1
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ledger, "due_borders", lambda _: [(UUID(int=1), 1)])
    monkeypatch.setattr(budget_periods, "roll_over", roll_over)
    for seconds, times in ((0, 3), (1, 3), (module.BORDERS_S, 4)):
        world.tick(seconds)
        assert rolled == times
    assert ran["the borders of budgets"] == 4


def test_each_machine_is_launched_at_its_own_provider(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
):
    loop = make_world("local", "sim").control_loop
    launched: dict[str, list[UUID]] = {}
    for name, lane in loop._lanes.items():
        monkeypatch.setattr(lane, "begin_launches", lambda ids, name=name: launched.update({name: ids}) or [])
    one, other = UUID(int=1), UUID(int=2)
    loop._launch_machines([PlannedMachine("sim", one), PlannedMachine("local", other)])
    assert launched == {"sim": [one], "local": [other]}


def test_a_machine_of_a_provider_that_this_worker_does_not_serve_is_left_to_others(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
):
    world = make_world("local", "sim")
    job = world.submit(provider="sim")
    world.tick()
    (machine,) = world.machines(job)
    del world.providers["sim"]
    world.another_control_loop().launch(machine.id)
    assert [one.state for one in world.machines(job)] == [machine.state]
