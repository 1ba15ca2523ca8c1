# SPDX-License-Identifier: Apache-2.0
"""Credentials that nobody renews: machines go on as long as what they store still reaches the bucket, and no longer."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import Unavailable
from shoestring_core.store import ledger

from tests.worker.conftest import World
from tests.worker.test_faults import launches

pytestmark = pytest.mark.any_database

LIFE_S, OUTAGE_S, EVERY_S, TICK_S = 900, 3600, 100, 20
"""Of the credentials; until others come; between checkpoints; between ticks."""


class Credentials:
    """They end and are not renewed until an hour is over: no call is answered, no URL is signed any more."""

    def __init__(self, world: World) -> None:
        self.world, self.began = world, world.clock.now
        self.ends = self.began + LIFE_S * S

    @property
    def valid(self) -> bool:
        return self.world.clock.now < self.ends or self.world.clock.now >= self.began + OUTAGE_S * S

    def urls_end_by(self) -> int:
        if not self.valid:
            raise Unavailable("The credentials have ended and can't be renewed.")
        renewed = self.world.clock.now >= self.ends
        return (self.world.clock.now // S + LIFE_S) if renewed else self.ends // S


def outage(
    world: World, monkeypatch: pytest.MonkeyPatch, store_last: Callable[[UUID, int], object]
) -> tuple[UUID, int]:
    """An hour without new credentials. Returns the job and the last step it trained; a second is a step.

    store_last  what the agent does when its funding ends, with its machine and step
    """
    job = world.submit()
    world.tick()
    generation = world.form(job)
    credentials = Credentials(world)
    monkeypatch.setattr(world.objects, "urls_end_by", credentials.urls_end_by)
    step, (machine,) = 0, world.alive(job)
    running = True
    while world.clock.now < credentials.began + OUTAGE_S * S:
        if running:
            step += TICK_S
            world.train(job, step)
            funded = world.machines(job)[0].funded_until
            assert funded is not None
            assert funded <= credentials.ends - world.timeouts.drain
            if step % EVERY_S == 0:
                assert world.commit(machine.id, generation, step)
            if world.clock.now >= funded - TICK_S * S:
                running = False
                store_last(machine.id, step)
                world.provider.end(machine.provider_id, "exited")
        world.provider.silent = not running or world.clock.now + TICK_S * S >= credentials.ends
        world.tick(TICK_S if running else 300)
    world.provider.silent = False
    return job, step


def resumed_at(world: World, job: UUID) -> int:
    for _ in range(4):
        world.tick(5)
    world.form(job)
    (machine,) = world.alive(job)
    resume = world.order(machine.id).run.resume
    return resume.step if resume else 0


def test_machines_train_while_their_urls_last_and_resume_an_hour_later_from_what_they_uploaded_at_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    job, trained = outage(world, monkeypatch, lambda machine, step: world.commit(machine, 1, step, "order"))
    assert LIFE_S - 80 <= trained <= LIFE_S, "it ends for want of URLs, and not long before"
    assert launches(world) == 1, "nothing is bought that nobody can list"
    assert resumed_at(world, job) == trained
    with world.store.read() as db:
        assert ledger.find_discrepancies(db) == []


def test_what_a_machine_can_not_upload_at_the_end_is_less_than_the_interval(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    job, trained = outage(world, monkeypatch, lambda machine, step: None)
    assert 0 <= trained - resumed_at(world, job) < EVERY_S
