# SPDX-License-Identifier: Apache-2.0
"""A day of a service in which every failpoint of the worker is reached, and what can go wrong at one of them.

The agents' part is acted, as in the storms, but by a script: machines are refused, not answered for, lost, silent and
forgotten, jobs reach their time limit, are stopped, resume and finish. The witness is the provider's journal.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

from shoestring_core import money
from shoestring_core.decide.billing import BillingRules
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG, ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.sweeps import Leftover
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import AgentRefused, InvalidRequest, StaleTransition
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.store import checkpoints, jobs, ledger
from shoestring_core.store.fleet import agents
from shoestring_core.store.tables import AccountRow, HoldRow, MachineRow, TransferRow
from shoestring_core.wire import BootData
from shoestring_worker import failpoints
from shoestring_worker.providers.sim import REGION, SimulatedProvider
from sqlalchemy import case, func, select
from sqlalchemy.orm import aliased

from tests.servers import until
from tests.worker.conftest import World
from tests.worker.saboteur import DELAY_S, Fault, Killed, Saboteur

GOAL = 60
"""Steps of a job."""
LONGEST_S = 4_000
NOTICE = 12 * S
"""How long before a notice comes true: less than T_drain, after which the worker ends the machine."""


class Regions(SimulatedProvider):
    """A provider with regions, one of them, in which a machine of earlier times has left a volume."""

    leftovers: dict[str, Leftover]

    @property
    def configured_regions(self) -> Collection[str]:
        return (REGION,)

    def enabled_regions(self) -> Collection[str]:
        return (REGION,)

    def list_region(self, deployment: str, region: str) -> list[ProviderMachine]:
        assert region == REGION
        return self.list(deployment)

    def list_leftovers(self, deployment: str, region: str) -> list[Leftover]:
        return list(self.leftovers.values())

    def delete(self, leftover: Leftover) -> None:
        self.leftovers.pop(leftover.id, None)


class Day:
    """`world`: of the providers "sim" and "far"."""

    def __init__(self, world: World, fault: Fault | None = None) -> None:
        self.world, self.saboteur = world, Saboteur(fault, self._pass_time)
        self.far = Regions(lambda: world.clock.now, name="far")
        world.providers["far"] = self.far
        world.control_loop.close()
        world.control_loop = world.another_control_loop()
        self.sim = world.providers["sim"]
        self.sim.slots, self.far.slots = 8, 1
        free_hour = BillingRules(free_if_interrupted_within=3600 * S)
        offers = self.sim.offers
        self.sim.offers = lambda wanted: [replace(one, billing=free_hour) for one in offers(wanted)]
        self.steps: Counter[UUID] = Counter()
        self.running: dict[UUID, int] = {}
        self.exited: set[tuple[UUID, int]] = set()
        self.silent: set[UUID] = set()
        self.forgotten: set[str] = set()
        self.left: dict[str, int] = {}
        """Machines whose work is over after a notice, and when their provider interrupts them."""
        self.interrupted: set[str] = set()
        self.overlapping: set[str] = set()
        """Those of `left` beside which the next machine of their slot was alive."""
        self.done: set[str] = set()
        """What happens once."""

    def play(self, *, must_strike: bool = True) -> Day:
        with failpoints.plant(self.saboteur):
            self._begin()
            began = self.world.clock.now
            while not self._is_over():
                late = self.world.clock.now - began
                assert late < LONGEST_S * S, [self.told(job) for job in self.jobs]
                self._moment(4 if late < 88 * S else 28)
            for _ in range(2):
                self._moment(30)
        assert self.saboteur.struck or not must_strike, f"{self.saboteur.fault} was never reached"
        self._check_the_end()
        return self

    # What happens

    def _begin(self) -> None:
        world, deployment = self.world, self.world.control_loop.deployment
        for name, provider in (("sim", self.sim), ("far", self.far)):
            tags = {DEPLOYMENT_TAG: deployment, PROVIDER_TAG: name}
            boot = BootData(server_url="", machine=UUID(int=1))
            provider.launch(LaunchRequest(f"stray-{name}", "sim", "", tags, "sim", "spot", "0.158", boot))
        tags = {DEPLOYMENT_TAG: deployment, PROVIDER_TAG: "far"}
        self.far.leftovers = {"vol-1": Leftover("volume", "far", REGION, "vol-1", tags, None, world.clock.now)}
        faults: list[Any] = ["lost_reply", "lost_request", RefusalKind.CAPACITY]
        self.sim.fault = lambda _: faults.pop() if faults else None
        self.far.fault = self._far_fault
        listed = self.sim.list
        self.sim.list = lambda of: [one for one in listed(of) if one.token not in self.forgotten]
        self.gang = world.submit(nodes=2, provider="sim")
        self.limited = world.submit(provider="far", limits={"time": 30})
        self.unheard = world.submit(provider="sim")
        self.lost = world.submit(provider="sim")
        self.unwanted = world.submit(provider="far")
        self.jobs = [self.gang, self.limited, self.unheard, self.lost, self.unwanted]

    def _far_fault(self, token: str) -> str | None:
        """No launch for the job that nobody wants any more is ever answered."""
        unwanted = any(str(machine.id) == token for machine in self.world.machines(self.unwanted))
        return "lost_request" if unwanted else None

    def _happen(self) -> None:
        world = self.world
        if self._once("stop", bool(world.machines(self.unwanted)) and self.steps[self.limited] > 0):
            world.store.write(lambda db: jobs.stop(db, self.unwanted, "ann"))
        if self._once("silence", self.steps[self.unheard] >= 20):
            self.silent |= {machine.id for machine in world.alive(self.unheard)}
        if self._once("notice", self.steps[self.lost] >= 10):
            for machine in world.alive(self.lost):
                self.left[str(machine.id)] = world.clock.now + NOTICE
                world.store.write(lambda db, m=machine.id: agents.record_notice(db, m, self.left[str(m)]))
                self._drain(machine, world.job(self.lost).generation)
        for one in self.sim.alive():
            if world.clock.now >= self.left.get(one.token, world.clock.now + 1):
                self._interrupt(one)
        if self._once("forget", self.steps[self.lost] >= 20):
            for machine in [one for one in world.alive(self.lost) if str(one.id) not in self.left]:
                self.sim.end(machine.provider_id, "crashed")
                self.forgotten.add(str(machine.id))
        if self._once("strand", self.steps[self.gang] >= 20):
            self._strand_upload(self.gang)
            for machine in [one for one in self.sim.alive() if one.tags.get("job") == str(self.gang)]:
                self._interrupt(machine)

    def _interrupt(self, machine: ProviderMachine) -> None:
        self.sim.end(machine.id, "preempted")
        self.interrupted.add(machine.token)

    def _once(self, what: str, due: bool) -> bool:
        if not due or what in self.done:
            return False
        self.done.add(what)
        return True

    def _strand_upload(self, job: UUID) -> None:
        """A checkpoint that is uploaded and never reported, as its machine ends."""
        world, data = self.world, b"weights"
        generation, step = world.job(job).generation, self.steps[job]
        described = {
            "format": 1, "job": str(job), "generation": generation, "step": step, "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(), "parts": [],
        }  # fmt: skip
        with world.store.read() as db:
            place = checkpoints.next_upload_target(db, world.alive(job)[0].id)
        assert place is not None
        key = checkpoints.object_key(job, generation, place.nonce)
        for name, content in (("data", data), ("manifest.json", json.dumps(described).encode())):
            with world.objects.writer(f"{key}/{name}", 10**8) as writer:
                writer.write(content)
                writer.finish()

    # Time passes

    def _moment(self, seconds: float) -> None:
        try:
            self.world.tick(seconds)
        except Killed:
            self._start_another_worker()
        self._act()
        self._happen()
        self._check_now()

    def _start_another_worker(self) -> None:
        self.world.control_loop.close()
        names = ("poll-", "launch-", "regions-")
        until(lambda: not any(thread.name.startswith(names) for thread in threading.enumerate()))
        self.saboteur.dead = False
        self.world.control_loop = self.world.another_control_loop()

    def _pass_time(self) -> None:
        """While a call is on its way, agents report as ever."""
        self.world.clock.pass_(DELAY_S)
        for machine in self._agents():
            self.world.store.write(lambda db, m=machine.id: agents.renew_lease(db, m, self.world.timeouts))

    def _agents(self) -> list[MachineRow]:
        """The machines whose agents run."""
        alive = [one.token for provider in self.world.providers.values() for one in provider.alive()]
        tokens = [UUID(token) for token in alive if not token.startswith("stray")]
        with self.world.store.read() as db:
            rows = list(db.sql.scalars(select(MachineRow).where(MachineRow.id.in_(tokens)).order_by(MachineRow.id)))
        return [row for row in rows if row.id not in self.silent]

    def _act(self) -> None:
        world, running = self.world, self._agents()
        for machine in running:
            if machine.session_hash is None:
                world.register(machine.job)
                continue
            world.store.write(lambda db, m=machine.id: agents.renew_lease(db, m, world.timeouts))
            order = world.order(machine.id)
            if order.kind == "shutdown" and (machine.left_until or 0) <= world.clock.now:
                self._end(machine)
            elif order.kind == "prepare":
                world.say(machine.id, "ready", order.generation, port=29500)
            elif order.kind == "run" and (machine.id, order.generation) not in self.exited:
                if self.running.get(machine.id) != order.generation:
                    self.running[machine.id] = order.generation
                    self.steps[machine.job] = order.run.resume.step if order.run.resume else 0
            elif order.kind == "drain":
                self._drain(machine, order.generation)
        for job in self.jobs:
            members = [machine for machine in running if machine.job == job and str(machine.id) not in self.left]
            if len(members) == (2 if job == self.gang else 1):
                self._train(job, members)

    def _train(self, job: UUID, members: list[MachineRow]) -> None:
        generation = self.world.job(job).generation
        if any(self._steps_in(one.id) != generation for one in members):
            return
        self.steps[job] = min(GOAL, self.steps[job] + 5)
        self.world.train(job, self.steps[job])
        if self.steps[job] == GOAL:
            self._commit(members, generation, "final")

    def _steps_in(self, machine: UUID) -> int | None:
        """The generation that its ranks run; None: they have exited, or never ran."""
        generation = self.running.get(machine)
        return None if generation is None or (machine, generation) in self.exited else generation

    def _drain(self, machine: MachineRow, generation: int) -> None:
        if self._steps_in(machine.id) != generation:
            return
        self._commit([machine], generation, "order")
        self.exited.add((machine.id, generation))
        self.world.exits(machine.id, generation, "drained")

    def _commit(self, members: list[MachineRow], generation: int, reason: str) -> None:
        first = min(members, key=lambda machine: machine.slot)
        with suppress(AgentRefused, InvalidRequest, StaleTransition):  # it is no longer its turn
            self.world.commit(first.id, generation, self.steps[first.job], reason)

    def _end(self, machine: MachineRow) -> None:
        provider = self.world.providers[machine.provider]
        for one in provider.alive():
            if one.token == str(machine.id):
                provider.end(one.id, "exited")

    # What must hold

    def _is_over(self) -> bool:
        ended = all(self.world.job(job).settled_at for job in self.jobs)
        return ended and not self._alive() and not self.far.leftovers

    def _alive(self) -> list[ProviderMachine]:
        return [one for provider in self.world.providers.values() for one in provider.alive()]

    def _check_now(self) -> None:
        at_work = [one for one in self._alive() if "job" in one.tags and one.token not in self.left]
        places = Counter(map(_place, at_work))
        assert all(count == 1 for count in places.values()), f"two machines are billed for a slot: {places}"
        self.overlapping |= {one.token for one in self._alive() if one.token in self.left and _place(one) in places}

    def _check_the_end(self) -> None:
        world = self.world
        assert self._alive() == [], "something runs without a job"
        ends = [(world.job(job).state, world.job(job).end_reason) for job in self.jobs]
        finished = ("ended", "succeeded")
        assert ends == [finished, ("ended", "time_limit"), finished, finished, ("ended", "user_stop")], [
            self.told(job) for job in self.jobs
        ]
        with world.store.read() as db:
            assert ledger.find_discrepancies(db) == []
            top = db.sql.scalars(select(AccountRow).where(AccountRow.kind == "org")).one()
            assert db.sql.scalars(select(HoldRow.machine).where(HoldRow.state == "open")).all() == []
            paid_to = aliased(AccountRow)
            signed = case((paid_to.kind.in_(("cash", "overrun")), TransferRow.amount), else_=-TransferRow.amount)
            sums = (
                select(TransferRow.machine, func.sum(signed))
                .join(paid_to, paid_to.id == TransferRow.credit_account)
                .group_by(TransferRow.machine)
            )
            billed = dict(db.sql.execute(sums).all())
            rows = {str(row.id): row for row in db.sql.scalars(select(MachineRow))}
        assert (top.posted, top.held) == (sum(billed.values()), 0)
        for provider in world.providers.values():
            ended = {entry.token: entry.at for entry in provider.journal if entry.event == "end"}
            for entry in provider.journal:
                if entry.event == "launch" and entry.token in rows and entry.token not in self.forgotten:
                    free = entry.token in self.interrupted and rows[entry.token].market == "spot"
                    due = 0 if free else money.cost(entry.price, ended[entry.token] - entry.at)
                    assert billed.get(UUID(entry.token), 0) == due, f"machine {entry.token}"

    def told(self, job: UUID) -> tuple[str, ...]:
        row = self.world.job(job)
        machines = [(one.attempt, one.slot, one.state, one.refusal, one.end_cause) for one in self.world.machines(job)]
        told = (row.state, row.wait_detail, row.end_reason, row.end_detail, self.steps[job], row.generation, machines)
        return tuple(map(str, told))


def _place(machine: ProviderMachine) -> tuple[str, str]:
    return machine.tags["job"], machine.tags["slot"]
