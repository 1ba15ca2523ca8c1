# SPDX-License-Identifier: Apache-2.0
"""Credentials that nobody renews: machines go on as long as what they store still reaches the bucket, and no longer."""

from __future__ import annotations

import pytest
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import Unavailable
from shoestring_core.store import ledger

from tests.worker.conftest import World
from tests.worker.test_faults import launches

pytestmark = pytest.mark.any_database

LIFE_S, OUTAGE_S, TICK_S = 900, 3600, 25
"""Of the credentials; until others come; between ticks."""


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


def test_machines_train_while_their_urls_last_and_resume_an_hour_later_from_what_they_uploaded_at_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    job = world.submit()
    world.tick()
    generation = world.form(job)
    credentials, trained, told = Credentials(world), 0, []
    monkeypatch.setattr(world.objects, "urls_end_by", credentials.urls_end_by)
    while machines := world.provider.alive():  # until its funding ends; a second is a step
        trained += TICK_S
        world.train(job, trained)
        (machine,) = world.alive(job)
        assert machine.funded_until is not None
        assert machine.funded_until <= credentials.ends - world.timeouts.drain
        if world.clock.now >= machine.funded_until - TICK_S * S:  # the agent saves a checkpoint, and powers off
            assert world.commit(machine.id, generation, trained, "order")
            world.provider.silent = True
            world.provider.end(machines[0].id, "exited")
        world.tick(TICK_S)
        if (trouble := world.job(job).wait_detail) and trouble["code"] == "storage_lost" and not told:
            told.append(trouble["facts"])
    assert LIFE_S - 4 * TICK_S <= trained <= LIFE_S, "it ends for want of URLs, and not long before"
    assert told == [{"problem": "", "until": credentials.ends - world.timeouts.drain}], "once, while it trains"
    while not credentials.valid:
        world.tick(300)
    assert launches(world) == 1, "nothing is bought that nobody can list"
    world.provider.silent = False
    for _ in range(3):
        world.tick(5)
    world.form(job)
    resume = world.order(world.alive(job)[0].id).run.resume
    assert resume is not None
    assert resume.step == trained
    with world.store.read() as db:
        assert ledger.find_discrepancies(db) == []
