# SPDX-License-Identifier: Apache-2.0
"""How long a machine stays whose work is over, on a clock of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from shoestring_trainer.agent import generations, shutdown
from shoestring_trainer.agent.generations import GenerationRunner
from shoestring_trainer.agent.shutdown import Shutdown

NOTICE_S = 120.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def boottime(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        for at, action in [one for one in self.due if one[0] <= self.now]:
            self.due.remove((at, action))
            action()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shutdown, "boottime", clock.boottime)
    monkeypatch.setattr(shutdown, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": clock.sleep}))
    return clock


def lasts(clock: Clock, script: Callable[[Shutdown], Awaitable[object]], funded_s: float = 900.0) -> float:
    """How many seconds a script takes."""

    async def run() -> None:
        await script(Shutdown(SimpleNamespace(exit_deadline=clock.now + funded_s)))

    began = clock.now
    asyncio.run(run())
    return clock.now - began


async def after_a_notice(leaving: Shutdown, left_s: float = NOTICE_S + 60.0) -> None:
    leaving.begin("the provider preempts this machine", work_by=shutdown.boottime() + NOTICE_S)
    leaving.left_until = shutdown.boottime() + left_s
    await leaving.leave_to_provider()


def test_it_waits_for_its_provider_beyond_the_time_that_its_work_had(clock: Clock):
    assert lasts(clock, after_a_notice) == pytest.approx(180, abs=0.1)


def test_it_ends_at_once_where_nothing_is_free(clock: Clock):
    assert lasts(clock, lambda leaving: after_a_notice(leaving, left_s=0)) == 0


def test_it_stays_no_longer_than_it_is_paid_for(clock: Clock):
    assert lasts(clock, after_a_notice, funded_s=70) == pytest.approx(70, abs=0.1)


@pytest.mark.parametrize("before", [True, False])
def test_it_ends_at_once_if_it_is_told_to(clock: Clock, before: bool):
    async def told(leaving: Shutdown) -> None:
        if before:
            leaving.begin("SIGTERM", by=clock.now + 4.5)
        else:
            clock.due.append((clock.now + 30, lambda: leaving.begin("SIGTERM", by=clock.now + 4.5)))
        await after_a_notice(leaving)

    assert lasts(clock, told) == pytest.approx(0 if before else 30, abs=0.1)


@pytest.mark.parametrize(("by", "expected"), [({"by": 20}, 20), ({"work_by": 20}, 20), ({}, 900)])
def test_its_work_has_as_long_as_the_machine_lives(clock: Clock, by: dict[str, float], expected: float):
    async def never_done(leaving: Shutdown) -> None:
        leaving.begin("a reason", **{name: clock.now + seconds for name, seconds in by.items()})
        assert not await leaving.wait_until(lambda: False)

        assert leaving.has_deadline is bool(by)

    assert lasts(clock, never_done) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("save_s", "by", "expected"),
    [
        (0, {}, 60),  # nothing is measured
        (45, {}, 60),
        (130, {}, 130),
        (130, {"by": 90}, 90),
        (0, {"work_by": 400}, 400),  # it is to end then anyway
    ],
)
def test_its_last_upload_has_as_long_as_the_one_before_took(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, save_s: float, by: dict[str, float], expected: float
):
    """Where only the machine's price says when to give up: a store that never answers."""

    async def no_ranks_are_left(*_: object) -> None:
        pass

    monkeypatch.setattr(generations, "boottime", clock.boottime)
    monkeypatch.setattr(generations, "terminate_ranks", no_ranks_are_left)
    runner: Any = SimpleNamespace(
        ranks=SimpleNamespace(ended=True, generation=1), _watcher=SimpleNamespace(done=lambda: False),
        uploader=SimpleNamespace(save_s=save_s), read_files=lambda **_: None, _machine="machine",
    )  # fmt: skip

    async def end(leaving: Shutdown) -> None:
        leaving.begin("a reason", **{name: clock.now + seconds for name, seconds in by.items()})
        runner._shutdown = leaving
        await GenerationRunner.end(runner)

    assert lasts(clock, end) == pytest.approx(expected, abs=0.1)
