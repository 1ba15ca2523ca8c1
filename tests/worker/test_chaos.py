# SPDX-License-Identifier: Apache-2.0
"""Random faults of provider, machines, workers and budget: the invariants hold and the jobs finish.

A drama is drawn from its seed: simulated agents act out the agent protocol while faults strike; then the faults cease.
The witness is the provider's journal.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide.billing import BillingRules
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import AgentRefused, InvalidRequest
from shoestring_core.store import ledger
from shoestring_core.store.fleet import agents, rows, service_heartbeats
from shoestring_core.store.tables import AccountRow, AttemptRow, CheckpointRow, GenerationRow, HoldRow, MachineRow
from shoestring_worker.providers.sim import JournalEntry, SimulatedProvider
from sqlalchemy import select, update

from tests.worker.conftest import World

pytestmark = pytest.mark.any_database

STEPS = 90
STORM_S = 120
CALM_S = 1500
LIMIT = money.from_decimal("0.20")


def test_invariants_hold_under_random_faults_and_every_job_finishes_afterwards(world: World, seed: int):
    Drama(world, seed).play()


def test_invariants_hold_under_random_faults_for_elastic_gangs(world: World, seed: int):
    Drama(world, seed, ("1..2", "1..3", "2..3")).play()


def test_invariants_hold_under_random_faults_of_two_providers(make_world: Callable[..., World], seed: int):
    """Jobs name a provider or take what they get; either provider lists late, omits machines and lists the other's."""
    Drama(make_world("local", "sim"), seed, (1, 2, "1..2"), (None, "local", "sim")).play()


def bill_like_ec2(provider: SimulatedProvider) -> None:
    offers, rules = provider.offers, BillingRules(free_if_interrupted_within=3600 * S)
    provider.offers = lambda wanted: [replace(one, billing=rules) for one in offers(wanted)]


@dataclass
class Agent:
    """What a machine's agent knows."""

    id: UUID
    provider: SimulatedProvider
    provider_id: str
    job: UUID
    running: int = 0
    exited: int = 0
    notice: int | None = None
    notice_comes_true: bool = True
    saved: bool = False
    """Its ranks exited with their work saved, and it starts no others."""
    silent_until: int = 0


class UnreliableList:
    """The list of a provider, which may omit machines that it has listed before, and list machines of others."""

    def __init__(self, drama: Drama, provider: SimulatedProvider) -> None:
        self.drama, self.provider, self.listed = drama, provider, provider.list
        self.omits = self.lists_others = False
        self.seen: set[str] = set()

    def __call__(self, deployment: str) -> list[ProviderMachine]:
        machines = [one for one in self.listed(deployment) if not self.omits or one.id not in self.seen]
        self.seen |= {one.id for one in machines}
        if self.lists_others:
            others = [one for other in self.drama.providers if other is not self.provider for one in other.alive()]
            machines += others + [replace(one, provider=self.provider.name) for one in others]
            machines += [replace(one, id=f"x-{one.id}", token="x", tags={"shoestring": "others"}) for one in others]
        return machines


@dataclass
class Drama:
    world: World
    seed: int
    nodes: tuple[int | str, ...] = (1, 2)
    choices: tuple[str | None, ...] = (None, None)
    """The provider that each job names."""
    agents: dict[UUID, Agent] = field(default_factory=dict)
    steps: Counter[UUID] = field(default_factory=Counter)
    """Steps that the ranks of each job have done since their start checkpoint."""
    unrecorded_calls: list[str] = field(default_factory=list)
    """Tokens that a provider was called for without a row that says so."""

    def __post_init__(self) -> None:
        print(f"drama {self.seed}")
        self.dice = random.Random(self.seed)
        self.loops = [self.world.control_loop, self.world.another_control_loop()]
        self.world.budget(LIMIT)
        self.providers = list(self.world.providers.values())
        self.lists = [UnreliableList(self, provider) for provider in self.providers]
        for provider, listed in zip(self.providers, self.lists, strict=True):
            provider.list = listed
            if self._bills_like_ec2(provider):
                bill_like_ec2(provider)
        self.interrupted: set[str] = set()
        self.jobs = [
            self.world.submit(self.dice.choice(self.nodes), provider=provider, retry={"max": 1000})
            for provider in self.choices
        ]

    def play(self) -> None:
        start = self.world.clock.now
        for provider in self.providers:
            provider.fault = self._launch_fault
        while self.world.clock.now < start + STORM_S * S:
            self._strike()
            self._moment()
        for provider, listed in zip(self.providers, self.lists, strict=True):
            provider.fault, provider.silent, provider.hidden = (lambda _: None), False, 0
            listed.omits = listed.lists_others = False
        self.world.budget(LIMIT)
        calm = self.world.clock.now
        while not all(self.world.job(job).settled_at for job in self.jobs):
            assert self.world.clock.now < calm + CALM_S * S, [self._told(job) for job in self.jobs]
            self._moment()
        self._check_the_end()
        print(
            f"drama {self.seed}: {sum(len(provider.journal) for provider in self.providers) // 2} machines,",
            *(
                f"job {one.end_reason} in {one.attempt} attempts, {one.generation} generations;"
                for one in map(self.world.job, self.jobs)
            ),
        )

    # Faults

    def _chance(self, one_in: int) -> bool:
        return self.dice.randrange(one_in) == 0

    def _launch_fault(self, token: str) -> str | None:
        row = self._row(UUID(token))
        if row.state != "launching" or (row.call_deadline or 0) <= self.world.clock.now:
            self.unrecorded_calls.append(token)
        return self.dice.choice((RefusalKind.CAPACITY, "lost_request", "lost_reply")) if self._chance(3) else None

    def _strike(self) -> None:
        now = self.world.clock.now
        for provider, listed in zip(self.providers, self.lists, strict=True):
            if self._chance(25):
                provider.silent = not provider.silent
            if len(self.providers) > 1 and self._chance(25):
                provider.hidden = self.dice.choice((0, 1)) * S
                listed.omits, listed.lists_others = self._chance(2), self._chance(2)
        for agent in list(self.agents.values()):
            if self._chance(60):
                agent.provider.end(agent.provider_id, "crashed")
            elif self._chance(60):
                agent.notice = agent.notice or now + 10 * S
                agent.notice_comes_true = not self._chance(4)
            elif self._chance(80):
                agent.silent_until = now + self.dice.choice((5, 40)) * S
            elif agent.running and self._chance(60):
                self._exit(agent, "signal")
        if self._chance(80):
            self.world.budget(self.dice.choice((1, LIMIT)))
        if self._chance(120):
            self.loops[self.dice.randrange(2)] = self.world.another_control_loop()  # a worker was killed and started

    # Time passes: workers tick, late, twice or not at all; agents act.

    def _moment(self) -> None:
        self.world.clock.pass_(self.dice.choice((0.3, 1, 1, 2)))
        self.world.store.write(lambda db: service_heartbeats.record_heartbeat(db, "api", 10**15))
        for _ in range(self.dice.choice((0, 1, 1, 2))):
            self.dice.choice(self.loops).tick()
        self._meet_new_machines()
        for agent in sorted(self.agents.values(), key=lambda agent: agent.id):
            self._act(agent)
        for job in self.jobs:
            self._step(job)
        self._check_now()

    def _meet_new_machines(self) -> None:
        alive = {one.token: (provider, one) for provider in self.providers for one in provider.alive()}
        self.agents = {one: agent for one, agent in self.agents.items() if str(one) in alive}
        for token, (provider, one) in alive.items():
            if UUID(token) not in self.agents:
                self.agents[UUID(token)] = Agent(UUID(token), provider, one.id, UUID(one.tags["job"]))

    def _act(self, agent: Agent) -> None:
        world, now = self.world, self.world.clock.now
        if agent.notice is not None and now >= agent.notice and agent.notice_comes_true:
            self.interrupted.add(str(agent.id))
            return agent.provider.end(agent.provider_id, "preempted")
        row = self._row(agent.id)
        if row.funded_until is not None and now >= row.funded_until:
            return agent.provider.end(agent.provider_id, "exited")
        if now < agent.silent_until:
            return None
        if row.session_hash is None:
            world.register(agent.job)
            return None
        world.store.write(lambda db: agents.renew_lease(db, agent.id, world.timeouts))
        if agent.notice is not None and row.notice_at is None:
            world.store.write(lambda db: agents.record_notice(db, agent.id, agent.notice))
        order = world.order(agent.id)
        if agent.running and agent.running == order.generation and (order.kind == "drain" or agent.notice is not None):
            self._drain(agent)
        elif order.kind == "shutdown" or agent.notice is not None:
            if not agent.saved or now >= (row.left_until or 0):
                agent.provider.end(agent.provider_id, "exited")
        elif order.kind == "prepare":
            agent.running, agent.saved = 0, False
            world.say(agent.id, "ready", order.generation, port=self.dice.randrange(1024, 65535))
        elif order.kind == "run" and agent.running != order.generation and agent.exited != order.generation:
            agent.running = order.generation
            self.steps[agent.job] = order.run.resume.step if order.run.resume else 0
        return None

    def _step(self, job: UUID) -> None:
        """A gang steps when all its members run the same generation; it reports, checkpoints and finishes."""
        generation = self._stepping(job)
        if generation is None:
            return
        self.steps[job] = min(STEPS, self.steps[job] + self.dice.randrange(1, 4))
        self._store_points(job, generation)
        if self.steps[job] == STEPS or self._chance(15):
            self._checkpoint(job, generation, "final" if self.steps[job] == STEPS else "periodic")

    def _stepping(self, job: UUID) -> int | None:
        gangs = defaultdict(list)
        for agent in self.agents.values():
            if agent.job == job and agent.running:
                gangs[agent.running].append(agent)
        whole = [number for number, members in gangs.items() if len(members) == self._size(job, number)]
        assert len(whole) <= 1, f"two generations step: {whole}"
        return whole[0] if whole else None

    def _drain(self, agent: Agent) -> None:
        """All ranks agree on a step; rank 0's machine saves it; then each reports that its ranks have exited."""
        members = [one for one in self.agents.values() if one.job == agent.job and one.running == agent.running]
        if len(members) == self._size(agent.job, agent.running):
            self._checkpoint(agent.job, agent.running, "order")
            for member in members:
                self._exit(member, "drained")
                member.saved = True

    def _exit(self, agent: Agent, outcome: str) -> None:
        generation, agent.exited, agent.running = agent.running, agent.running, 0
        self.world.exits(agent.id, generation, outcome)

    def _checkpoint(self, job: UUID, generation: int, reason: str) -> None:
        with self.world.store.read() as db:
            members = rows.load_members(db, job, generation)
        if members and self.steps[job]:
            try:
                self.world.commit(members[0].machine, generation, self.steps[job], reason)
            except (AgentRefused, InvalidRequest):
                assert self.world.job(job).generation != generation

    def _store_points(self, job: UUID, number: int) -> None:
        row = update(GenerationRow).where(GenerationRow.job == job, GenerationRow.number == number)
        self.world.store.write(lambda db: db.execute(row.values(last_step=self.steps[job])))

    # What must hold

    def _check_now(self) -> None:
        alive = [one for provider in self.providers for one in provider.alive()]
        saved = {str(one.id) for one in self.agents.values() if one.saved and one.notice is not None}
        launched = [(entry, one) for one in self.providers for entry in one.journal if entry.event == "launch"]
        left = {entry.token for entry, provider in launched if entry.token in saved and self._is_free(entry, provider)}
        places = Counter((one.tags["job"], one.tags["slot"]) for one in alive if one.token not in left)
        assert all(count == 1 for count in places.values()), f"two machines alive in a slot: {places}"
        assert all(len(provider.alive()) <= provider.slots for provider in self.providers)
        with self.world.store.read() as db:
            given_up = db.sql.scalars(
                select(MachineRow.id).where(MachineRow.state.in_(("never_launched", "terminated")))
            ).all()
            holds = {str(hold.machine): hold for hold in db.sql.scalars(select(HoldRow))}
        running = {one.token for one in alive}
        assert not running & set(map(str, given_up)), "a machine that runs is held for terminated"
        assert all(holds[token].state == "open" for token in running), "the hold of a machine that runs is released"
        for token, cost in self._costs().items():
            assert token not in running or holds[token].consumed <= cost <= holds[token].amount
        assert self.unrecorded_calls == []

    def _bills_like_ec2(self, provider: SimulatedProvider) -> bool:
        return provider.name == "sim" and len(self.providers) > 1

    def _is_free(self, launched: JournalEntry, provider: SimulatedProvider) -> bool:
        """Whether nothing is billed for the machine, a spot one, if it is interrupted."""
        return self._bills_like_ec2(provider) and launched.price == provider.price

    def _costs(self) -> dict[str, int]:
        """What each machine that was launched costs, if it ran until now."""
        launched = [entry for provider in self.providers for entry in provider.journal if entry.event == "launch"]
        return {entry.token: money.cost(entry.price, self.world.clock.now - entry.at) for entry in launched}

    def _check_the_end(self) -> None:
        world = self.world
        for _ in range(5):
            world.tick(10)
        due = 0
        for provider in self.providers:
            assert provider.alive() == []
            ends = {entry.machine: entry.at for entry in provider.journal if entry.event == "end"}
            launched = [entry for entry in provider.journal if entry.event == "launch"]
            free = {entry.token for entry in launched if self._is_free(entry, provider)} & self.interrupted
            billed = [entry for entry in launched if entry.token not in free]
            due += sum(money.cost(entry.price, ends[entry.machine] - entry.at) for entry in billed)
        with world.store.read() as db:
            assert ledger.find_discrepancies(db) == []
            top = db.sql.scalars(select(AccountRow).where(AccountRow.kind == "org")).one()
            assert (top.posted, top.held) == (due, 0)
            for job in self.jobs:
                assert (
                    db.sql.scalars(
                        select(MachineRow.id).where(
                            MachineRow.job == job, MachineRow.state.not_in(("terminated", "never_launched"))
                        )
                    ).all()
                    == []
                )
                assert set(db.sql.scalars(select(AttemptRow.state).where(AttemptRow.job == job))) == {"closed"}
                done = world.job(job)
                if done.end_reason == "infrastructure":  # too many faults in a row, as its end reason says
                    assert done.end_detail["code"] in ("ranks_kept_failing", "never_trained")
                    continue
                self._check_curve(
                    db.sql.scalars(
                        select(GenerationRow).where(GenerationRow.job == job).order_by(GenerationRow.number)
                    ).all()
                )
                final = db.sql.scalars(select(CheckpointRow).where(CheckpointRow.id == done.checkpoint)).one()
                assert (done.end_reason, final.step, final.final) == ("succeeded", STEPS, True)

    def _check_curve(self, generations: list[GenerationRow]) -> None:
        """Each generation starts at a step that an earlier one has reached: the merged curve has no hole."""
        reached = 0
        for one in generations:
            assert one.start_step <= reached
            reached = max(reached, one.last_step or 0)
        assert reached == STEPS

    def _row(self, machine: UUID) -> MachineRow:
        with self.world.store.read() as db:
            return db.sql.scalars(select(MachineRow).where(MachineRow.id == machine)).one()

    def _size(self, job: UUID, generation: int) -> int:
        with self.world.store.read() as db:
            return len(rows.load_members(db, job, generation))

    def _told(self, job: UUID) -> tuple[str, ...]:
        row = self.world.job(job)
        machines = [(one.attempt, one.slot, one.state, one.refusal) for one in self.world.machines(job)[-4:]]
        return (
            row.state,
            row.desired_state,
            str(row.wait_detail),
            str(row.end_reason),
            str(row.end_detail),
            str(machines),
        )
