# SPDX-License-Identifier: Apache-2.0
"""What `shoestring simulate schedule` says of a list of jobs is what a service decides about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from shoestring_core.decide import preemption, simulation
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.simulation import Job, Scenario, Team
from shoestring_core.decide.timeouts import S
from shoestring_core.store import identity, ledger
from shoestring_core.store.fleet.offers import load_offers
from shoestring_core.store.tables import EventRow
from sqlalchemy import select

from tests.worker.conftest import World

EVERY_S = 5
DOLLAR = 1_000_000
DRAIN_S = 5
SLOTS = 3
TEAMS = (Team("vision"), Team("speech", guaranteed_rate=DOLLAR // 3), Team("robots", weight=2, max_jobs=1))


def job(name: str, team: str, at: int, work: int, nodes: int = 1) -> Job:
    return Job(name, team, team, at * S, work * S, Requirements(nodes))


JOBS = (
    job("a", "vision", 0, 100, nodes=2),
    job("b", "vision", 0, 60),
    job("c", "speech", 10, 40, nodes=2),
    job("d", "robots", 15, 30),
    job("e", "vision", 20, 20),
    job("f", "speech", 30, 20),
    job("g", "robots", 35, 15, nodes=3),
    job("h", "vision", 40, 10),
    job("i", "robots", 190, 10),
    job("j", "robots", 190, 10),
)


class Service:
    """Plays the jobs on a real control loop, whose agents do at once what they are told."""

    def __init__(self, world: World) -> None:
        self.world, self.began = world, 0
        self.names: dict[UUID, Job] = {}
        self.left: dict[UUID, int] = {}
        self.due: dict[UUID, int] = {}
        """When the machines of a job are done with it: its work, or its last checkpoint."""

    def play(self) -> list[tuple[int, str, str]]:
        world = self.world
        coming = list(JOBS)
        who = {team.name: self._join(team) for team in TEAMS}
        world.tick()
        self.began = world.clock.now
        while coming or self.names.keys() != self._ended():
            for ended in [one for one, at in self.due.items() if at <= world.clock.now]:
                self._finish(ended)
            while coming and self.began + coming[0].at <= world.clock.now:
                new = coming.pop(0)
                submitted = world.submit(new.requirements.nodes, who[new.team])
                self.names[submitted], self.left[submitted] = new, new.work
            world.tick()
            self._act()
            world.clock.pass_(EVERY_S)
            assert world.clock.now < self.began + 1000 * S
        return list(self._decisions())

    def _join(self, team: Team) -> identity.Principal:
        def work(db):
            admin = identity.ensure_admin(db, "org", team.name, f"admin of {team.name}")
            account = ledger.team_account(db, admin.team).id
            ledger.set_weight(db, account, team.weight, actor="ann", reason="")
            ledger.set_guaranteed_rate(db, account, team.guaranteed_rate, actor="ann", reason="")
            return admin

        def cap(db):
            account = ledger.team_account(db, joined.team).id
            ledger.set_concurrency(db, account, team.max_jobs, None, actor="ann", reason="")

        joined = self.world.store.write(work)
        self.world.store.write(cap)
        return joined

    def _act(self) -> None:
        """Machines that were launched train; those that are told to drain will have done so."""
        world, now = self.world, self.world.clock.now
        for one in self.names:
            state = world.job(one).state
            if state == "launching":
                world.form(one)
                world.train(one, 1)
                self.due[one] = now + self.left[one]
            elif state == "stopping" and self.due[one] != now + DRAIN_S * S:
                self.left[one], self.due[one] = self.due[one] - now, now + DRAIN_S * S
            elif state == "running":
                world.report(one)

    def _finish(self, one: UUID) -> None:
        world, row = self.world, self.world.job(one)
        del self.due[one]
        machines = world.alive(one)
        kind = "order" if row.state == "stopping" else "final"
        assert world.commit(machines[0].id, row.generation, row.generation, kind)
        for machine in machines:
            world.provider.end(machine.provider_id, "exited")

    def _ended(self) -> set[UUID]:
        return {one for one in self.names if self.world.job(one).state == "ended"}

    def _decisions(self) -> Iterator[tuple[int, str, str]]:
        kinds = {"launching": "start", "stopping": "evict"}
        with self.world.store.read() as db:
            for event in db.sql.scalars(select(EventRow).where(EventRow.kind == "job").order_by(EventRow.at)):
                if event.data["to"] in kinds:
                    at = (event.at - self.began) // S
                    yield at, kinds[event.data["to"]], self.names[event.job].name


@pytest.mark.any_database
def test_a_service_starts_and_evicts_the_same_jobs_at_the_same_times(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preemption, "MIN_RUN_TIME", 20 * S)
    world.provider.slots = SLOTS
    live = Service(world).play()
    with world.store.read() as db:
        offers = tuple(load_offers(db))
    scenario = Scenario(offers, TEAMS, JOBS, startup=0, drain=DRAIN_S * S, timeouts=world.timeouts)
    simulated = [
        (step.at // S, step.kind, step.job.name) for step in simulation.simulate(scenario) if step.kind != "end"
    ]
    assert sorted(live) == sorted(simulated)
    assert any(kind == "evict" for _, kind, _ in live)
    uncapped = replace(scenario, teams=tuple(replace(team, max_jobs=None) for team in TEAMS))
    assert list(simulation.simulate(uncapped)) != list(simulation.simulate(scenario)), "the cap made a difference"
