# SPDX-License-Identifier: Apache-2.0
"""Teams that share machines, as values: jobs come and end, what the scheduler decides happens, and what must hold of
each decision is checked. `tests.soak.sharing` plays a million random events."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from uuid import UUID

from shoestring_core import money
from shoestring_core.decide import preemption
from shoestring_core.decide.funding import rate_of
from shoestring_core.decide.offers import Hardware, Offer, Quota
from shoestring_core.decide.queue import AccountBalance, QueuedJob, QueueSnapshot, RunningJob
from shoestring_core.decide.quotas import Product
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import SchedulingDecision, schedule_jobs
from shoestring_core.decide.start import StartInputs
from shoestring_core.decide.timeouts import S, Timeouts

from tests.core.decide.recompute import recompute_start

DOLLAR = money.MICRO
ORG = UUID(int=1)
TIMEOUTS = Timeouts(funding_lease=60 * S)
BOOT = 60 * S


def offer(provider: str = "sim", price: str = "1.00", slots: int | None = 4, quota: int | None = None) -> Offer:
    """`quota`: of the account, in vCPUs; a machine has four."""
    limited = None if quota is None else Quota("vcpus", quota, "there")
    hardware = None if quota is None else Hardware(4, 1024)
    return Offer(provider, "r", "", "gpu", "spot", price, price, slots, "test", True, hardware, quota=limited)


@dataclass
class Running:
    """A job's attempt, as it was started, and when."""

    queued: QueuedJob
    offer: Offer
    at: int

    def as_values(self, now: int) -> RunningJob:
        nodes = self.queued.requirements.nodes
        return RunningJob(
            self.queued.job, self.queued.attempt, self.queued.account_path[-2], self.offer.provider,
            ((self.product, nodes),), rate_of(self.offer, nodes), self.at + BOOT if now >= self.at + BOOT else None,
        )  # fmt: skip

    @property
    def product(self) -> Product:
        return self.offer.provider, self.offer.region, self.offer.type, self.offer.market


@dataclass
class SharedMachines:
    """`offers`: of providers, whose slots and quotas limit what runs."""

    offers: tuple[Offer, ...]
    now: int = 1_800_000_000 * S
    teams: dict[UUID, AccountBalance] = field(default_factory=dict)
    queue: dict[UUID, QueuedJob] = field(default_factory=dict)
    running: dict[UUID, Running] = field(default_factory=dict)
    draining: dict[UUID, Running] = field(default_factory=dict)
    """Attempts that were evicted, whose machines are alive."""
    evicted: Counter[UUID] = field(default_factory=Counter)
    started: list[UUID] = field(default_factory=list)
    numbers: Iterable[int] = field(default_factory=lambda: itertools.count(1000))

    def team(self, name: str, guaranteed: float = 0, weight: int = 1, recent: float = 0) -> UUID:
        """`guaranteed`: dollars an hour; `recent`: dollars."""
        account = UUID(int=len(self.teams) + 2)
        self.teams[account] = AccountBalance(
            account, f"team {name}", None, 0, 0, 0, round(recent * DOLLAR), weight, 0, round(guaranteed * DOLLAR)
        )
        return account

    def submit(self, team: UUID, nodes: int = 1, provider: str | None = None) -> UUID:
        job = UUID(int=next(iter(self.numbers)))
        path = (UUID(int=job.int + 10**9), UUID(int=team.int + 500), team, ORG)
        self.queue[job] = QueuedJob(job, Requirements(nodes, provider), path, 1, self.now + job.int)
        return job

    def end(self, job: UUID) -> None:
        """A running job succeeds."""
        ended = self.running.pop(job)
        self._spend(ended)

    def drain(self) -> None:
        """Jobs that were evicted have saved a checkpoint; their machines have ended, they are in the queue again."""
        for job, attempt in self.draining.items():
            self.queue[job] = replace(attempt.queued, attempt=attempt.queued.attempt + 1)
            self._spend(attempt)
        self.draining = {}

    def tick(self) -> SchedulingDecision:
        """Make a schedule, check it, and do what it says."""
        snapshot = self.snapshot()
        decision = schedule_jobs(snapshot, self.offers, self.now, {one.provider: TIMEOUTS for one in self.offers})
        self.check(snapshot, decision)
        for start in decision.starts:
            self.running[start.job] = Running(self.queue.pop(start.job), start.offer, self.now)
            self.started.append(start.job)
        for eviction in decision.evictions:
            self.draining[eviction.job] = self.running.pop(eviction.job)
            self.evicted[eviction.job] += 1
        return decision

    def settle(self) -> int:
        """Until the scheduler decides nothing more, nothing else happens. Returns how many it evicted."""
        evicted = 0
        for _ in range(2 * (len(self.queue) + len(self.running) + len(self.draining)) + 2):
            decision = self.tick()
            if not decision.starts and not decision.evictions and not self.draining:
                return evicted
            evicted += len(decision.evictions)
            self.drain()
        raise AssertionError("evictions and starts go on without end")

    def snapshot(self) -> QueueSnapshot:
        running = [one.as_values(self.now) for one in self.running.values()]
        rates = Counter[UUID]()
        for one in running:
            rates[one.team] += one.rate
        balances = {ORG: AccountBalance(ORG, "the organization", None, 0, 0, 0)}
        balances |= {account: replace(team, rate=rates[account]) for account, team in self.teams.items()}
        for job in self.queue.values():
            for account in job.account_path[:-2]:
                balances.setdefault(account, AccountBalance(account, f"account {account.int}", None, 0, 0, 0))
        machines: Counter[str] = Counter()
        products: Counter[Product] = Counter()
        for attempt in (*self.running.values(), *self.draining.values()):
            machines[attempt.offer.provider] += attempt.queued.requirements.nodes
            products[attempt.product] += attempt.queued.requirements.nodes
        return QueueSnapshot(
            1, tuple(self.queue.values()), balances, dict(machines), products=dict(products), running=tuple(running)
        )

    def _spend(self, attempt: Running) -> None:
        running = attempt.as_values(self.now)
        team = self.teams[running.team]
        spent = running.rate * (self.now - attempt.at) // money.HOUR
        self.teams[running.team] = replace(team, recent=team.recent + spent)

    def check(self, snapshot: QueueSnapshot, decision: SchedulingDecision) -> None:
        """What holds of every decision."""
        self._check_evictions(snapshot, decision)
        self._check_all_evictions(snapshot, decision)
        self._check_room(snapshot, decision)
        for start in decision.starts[:1]:
            stored = StartInputs.from_json(start.inputs.as_json())
            assert recompute_start(stored) == start

    def _check_evictions(self, snapshot: QueueSnapshot, decision: SchedulingDecision) -> None:
        running = {one.job: one for one in snapshot.running}
        for claimant, evictions in itertools.groupby(decision.evictions, key=lambda one: one.inputs.claimant):
            its = list(evictions)
            case = preemption.EvictionInputs.from_json(its[0].inputs.as_json())
            assert preemption.decide_evictions(case) == tuple(its), "a stored decision recomputes to itself"
            team = self.queue[claimant].account_path[-2]
            teams = {one.id: one for one in (*case.lenders, case.team)}  # as they are at the claimant's turn
            before = _potential(teams.values())
            for eviction in its:
                victim = running.pop(eviction.job)
                assert victim.team != team
                assert victim.since is not None
                assert self.now - victim.since >= preemption.MIN_RUN_TIME
                teams[victim.team] = teams[victim.team].holding(0, -victim.rate)
                assert teams[victim.team].rate >= teams[victim.team].guaranteed_rate, "evicted below the guarantee"
            teams[team] = teams[team].holding(0, case.rate)
            assert teams[team].rate <= teams[team].guaranteed_rate, "more is claimed than is guaranteed"
            assert _potential(teams.values()) < before, "the largest share falls"
            slots = sum(self.running[one.job].queued.requirements.nodes for one in its)
            assert slots >= case.slots_missing

    def _check_all_evictions(self, snapshot: QueueSnapshot, decision: SchedulingDecision) -> None:
        """Of one plan together, whatever each decision in it believes of the ones before."""
        teams = {team: snapshot.balances[team] for team in self.teams}
        for start in decision.starts:
            team = start.inputs.queued.account_path[-2]
            teams[team] = teams[team].holding(0, rate_of(start.offer, start.nodes))
        running = {one.job: one for one in snapshot.running}
        claims: dict[UUID, preemption.EvictionInputs] = {}
        for eviction in decision.evictions:
            before = _potential(teams.values())
            victim = running.pop(eviction.job)  # each once
            teams[victim.team] = teams[victim.team].holding(0, -victim.rate)
            assert _potential(teams.values()) < before, "each lowers the potential"
            claims[eviction.inputs.claimant] = eviction.inputs
        for lender in {one.team for one in snapshot.running if one.job not in running}:
            assert teams[lender].rate >= teams[lender].guaranteed_rate, "all together take no more than is borrowed"
        for team in {case.team.id for case in claims.values()}:
            claimed = sum(case.rate for case in claims.values() if case.team.id == team)
            assert snapshot.balances[team].rate + claimed <= snapshot.balances[team].guaranteed_rate

    def _check_room(self, snapshot: QueueSnapshot, decision: SchedulingDecision) -> None:
        """No job waits for what is free, unless an earlier one waits for it; nothing runs beyond the limits."""
        used = Counter(snapshot.machines_in_use)
        for start in decision.starts:
            used[start.offer.provider] += start.nodes
        slots = {one.provider: one.slots for one in self.offers}
        assert all(limit is None or used[provider] <= limit for provider, limit in slots.items())
        kept: set[str] = set()
        for wait in decision.waits:
            nodes = self.queue[wait.job].requirements.nodes
            for provider in set(wait.providers) - kept:
                limit = slots[provider]
                assert limit is not None
                assert limit - used[provider] < nodes, "a job waits for machines that are free"
            kept.update(wait.providers)


def _potential(teams: Iterable[AccountBalance]) -> list[float]:
    """The shares, largest first: of two lists the one with the smaller first difference is lower."""
    return sorted((team.share for team in teams), reverse=True)


def play(seed: int | str, events: int = 200) -> Counter[str]:
    """Random events among a few teams, others after 200; after some, nothing happens until nothing more is decided."""
    draw = random.Random(seed)
    happened: Counter[str] = Counter()
    while sum(happened.values()) < events:
        two = offer("other", draw.choice(("0.50", "3.00")), draw.choice((2, 4)), draw.choice((None, 8, 16)))
        third = offer("third", "1.00", draw.choice((2, 3)))
        shared = SharedMachines((offer(slots=draw.choice((2, 4, 8))), two, third)[: draw.choice((1, 2, 3, 3))])
        for number in range(draw.randint(2, 5)):
            shared.team(str(number), draw.choice((0, 0, 1, 2, 2.5, 4)), draw.choice((1, 1, 2, 5)), draw.random() * 9)
        for _ in range(200):
            happened[_happen(draw, shared)] += 1
            if len(shared.queue) > 12:
                for job in list(shared.queue)[:6]:
                    del shared.queue[job]
    return happened


def _happen(draw: random.Random, shared: SharedMachines) -> str:
    team = draw.choice(list(shared.teams))
    match draw.choice(("submit", "submit", "end", "time", "drain", "guarantee", "weight", "settle", "claim")):
        case "submit":
            provider = draw.choice((None, *(one.provider for one in shared.offers)))
            shared.submit(team, draw.choice((1, 1, 1, 2, 4)), provider)
        case "end" if shared.running:
            shared.end(draw.choice(list(shared.running)))
        case "time":
            shared.now += draw.choice((1, 100, 700, 10_000)) * S
        case "drain":
            shared.drain()
        case "guarantee":
            rate = draw.choice((0, 1, 2, 3, 6)) * DOLLAR
            shared.teams[team] = replace(shared.teams[team], guaranteed_rate=rate)
        case "weight":
            shared.teams[team] = replace(shared.teams[team], weight=draw.choice((1, 2, 9)))
        case "claim":  # all machines are taken, for long enough; then others ask for some of each provider at once
            shared.drain()
            for one in shared.offers:
                for _ in range(one.slots or 0):
                    shared.submit(draw.choice(list(shared.teams)), 1, one.provider)
            shared.tick()
            shared.queue.clear()
            shared.now += 700 * S
            for one in shared.offers:
                claimant = draw.choice(list(shared.teams))
                rate = shared.snapshot().balances[claimant].rate + draw.choice((1, 2)) * DOLLAR
                shared.teams[claimant] = replace(shared.teams[claimant], guaranteed_rate=rate)
                shared.submit(claimant, draw.choice((1, 2)), one.provider)
        case "settle":
            return "settle, with evictions" if shared.settle() else "settle"
    claimants = {one.inputs.claimant for one in shared.tick().evictions}
    return f"tick, with evictions for {min(2, len(claimants))}" if claimants else "tick"
