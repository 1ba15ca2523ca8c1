# SPDX-License-Identifier: Apache-2.0
"""A service without processes: the real store and control loop, a simulated provider, and the agents' part by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from shoestring_core import spec, wire
from shoestring_core.decide import funding
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.store import checkpoints, identity, jobs, ledger
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import agents, gangs, service_heartbeats
from shoestring_core.store.objects.local import LocalObjects
from shoestring_core.store.tables import GenerationRow, JobRow, MachineRow, TransferRow
from shoestring_core.store.transactions import Read
from shoestring_worker.control_loop import ControlLoop
from shoestring_worker.providers.base import ManagedProvider, Provider
from shoestring_worker.providers.sim import SimulatedProvider
from sqlalchemy import func, select, update

from tests import write_order
from tests.core.world import Clock
from tests.servers import PATIENCE_S, until
from tests.shared_database import SharedDatabase

SECRET = "a secret of the tests"


@dataclass
class World:
    store: Store
    providers: dict[str, SimulatedProvider]
    clock: Clock
    control_loop: ControlLoop
    objects: LocalObjects
    admin: identity.Principal
    timeouts: Timeouts
    control_loops: list[ControlLoop]
    """All that were made, to be closed after the test."""

    @property
    def provider(self) -> SimulatedProvider:
        """The only provider, or the first."""
        return next(iter(self.providers.values()))

    def another_control_loop(self, answer_wait_s: float = PATIENCE_S, **changed: Provider) -> ControlLoop:
        """`changed`: adapters in place of those that the others use, by provider."""
        providers = self.providers | changed
        made = make_control_loop(self.store, providers, self.objects, self.timeouts, self.clock, answer_wait_s)
        self.control_loops.append(made)
        return made

    # What people do.

    def submit(
        self,
        nodes: int | str = 1,
        principal: identity.Principal | None = None,
        provider: str | None = None,
        **fields: object,
    ) -> UUID:
        who = principal or self.admin
        tree = {"recipe": "digits/quickstart", "resources": {"nodes": nodes, "provider": provider}} | fields
        wanted = spec.parse(tree)
        hold = wanted.resources.nodes * funding.initial_hold(self.provider.on_demand_price, self.timeouts)
        return self.store.write(lambda db: jobs.submit(db, who, wanted, min_hold=hold)).job.id

    def budget(self, limit: int | None) -> None:
        def grant(db):
            account = ledger.team_account(db, self.admin.team).id
            gangs.resume_jobs_paused_by_budget(db, account, "admin")
            ledger.set_limit(db, account, limit, actor="admin", reason="test")

        self.store.write(grant)

    # What the service does.

    def tick(self, seconds: float = 0) -> None:
        self.clock.pass_(seconds)
        self.store.write(lambda db: service_heartbeats.record_heartbeat(db, "api", 10**15))
        self.control_loop.tick()

    # What agents do.

    def register(self, job: UUID) -> None:
        for machine in self.machines(job):
            if machine.state in ("launching", "running") and machine.session_hash is None:
                secret = wire.hash_session(f"session {machine.id}")
                self.store.write(
                    lambda db, m=machine.id, s=secret: agents.register(
                        db, m, True, s, "127.0.0.1", wire.Hardware(), self.timeouts
                    )
                )

    def say(self, machine: UUID, state: str, generation: int, **more: object) -> bool:
        status = wire.MemberStatus(generation=generation, state=state, **more)
        return self.store.write(lambda db: agents.record_member_status(db, machine, status))

    def form(self, job: UUID) -> int:
        """All live machines register and get ready; returns the generation that formed."""
        self.register(job)
        number = self.job(job).generation
        for machine in self.alive(job):
            if self.order(machine.id).kind == "prepare":
                self.say(machine.id, "ready", number, port=29500)
        return number

    def train(self, job: UUID, step: int) -> None:
        """Points up to `step` are stored, and everybody reports."""

        def ingest(db):
            now = self.job(job)
            db.sql.execute(
                update(GenerationRow)
                .where(GenerationRow.job == job, GenerationRow.number == now.generation)
                .values(last_step=step, first_step_at=func.coalesce(GenerationRow.first_step_at, db.now))
            )

        self.store.write(ingest)
        self.report(job)

    def report(self, job: UUID) -> None:
        for machine in self.alive(job):
            self.store.write(lambda db, m=machine.id: agents.renew_lease(db, m, self.timeouts))

    def commit(self, machine: UUID, generation: int, step: int, reason: str = "periodic", nonce: str = "") -> bool:
        if not nonce:
            with self.store.read() as db:
                place = checkpoints.next_upload_target(db, machine)
            nonce = place.nonce if place else "000001"
        request = wire.CheckpointCommit(
            generation=generation,
            step=step,
            nonce=nonce,
            manifest_sha256="0" * 64,
            bytes=10,
            through_seq=0,
            reason=reason,
            result={"val/acc": 0.98} if reason == "final" else None,
        )
        return self.store.write(lambda db: checkpoints.commit(db, machine, request))

    def exits(
        self, machine: UUID, generation: int, outcome: str,
        *, rank: int = 0, kind: str | None = None, at: float = 0.0, since: int | None = None,
    ) -> None:  # fmt: skip
        end = wire.RankExit(rank=rank, outcome=outcome, at=at, kind=kind, message=f"{outcome} {kind}", since=since)
        self.say(machine, "exited", generation, exits=[end])

    # What the rows say.

    def job(self, job: UUID) -> JobRow:
        with self.store.read() as db:
            return db.sql.scalars(select(JobRow).where(JobRow.id == job)).one()

    def machines(self, job: UUID) -> list[MachineRow]:
        with self.store.read() as db:
            return list(
                db.sql.scalars(
                    select(MachineRow)
                    .where(MachineRow.job == job)
                    .order_by(MachineRow.attempt, MachineRow.slot, MachineRow.ordinal)
                )
            )

    def alive(self, job: UUID) -> list[MachineRow]:
        return [machine for machine in self.machines(job) if machine.state in ("launching", "running")]

    def order(self, machine: UUID) -> wire.Order:
        with self.store.read() as db:
            return agents.current_order(db, machine, lambda key: f"http://objects/{key}", self.timeouts)[0]

    def transfers(self) -> list[TransferRow]:
        with self.store.read() as db:
            return list(db.sql.scalars(select(TransferRow).order_by(TransferRow.at)))


def make_control_loop(
    store: Store,
    providers: Mapping[str, Provider],
    objects: LocalObjects,
    timeouts: Timeouts,
    clock: Clock,
    answer_wait_s: float = PATIENCE_S,
) -> ControlLoop:
    return ControlLoop(
        store,
        {name: ManagedProvider(adapter, timeouts) for name, adapter in providers.items()},
        objects,
        timeouts,
        SECRET,
        "http://127.0.0.1:1",
        monotonic=lambda: clock.now / S,
        answer_wait_s=answer_wait_s,
    )


@pytest.fixture
def make_world(
    migrated: SharedDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., World]]:
    """Makes the world of a test, with simulated providers of the names given."""
    clock = Clock()
    monkeypatch.setattr(Read, "now", property(lambda _: clock.now))
    store = migrated.store()
    admin = store.write(lambda db: identity.ensure_admin(db, "org", "vision", "ann"))
    store.write(lambda db: service_heartbeats.record_heartbeat(db, "api", 0))
    clock.pass_(60)
    objects, timeouts = LocalObjects(tmp_path / "objects", SECRET, "http://objects"), Timeouts(funding_lease=60 * S)
    control_loops: list[ControlLoop] = []

    def make(*names: str) -> World:
        providers = {name: SimulatedProvider(clock, name=name) for name in names}
        control_loops.append(make_control_loop(store, providers, objects, timeouts, clock))
        return World(store, providers, clock, control_loops[-1], objects, admin, timeouts, control_loops)

    with write_order.watch(store) as out_of_order:
        yield make
        assert out_of_order() == []
    for control_loop in control_loops:
        control_loop.close()
    until(lambda: not any(thread.name.startswith(("poll-", "launch-")) for thread in threading.enumerate()))


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world("sim")
