# SPDX-License-Identifier: Apache-2.0
"""What the schedule will be, if jobs take as long as expected and nobody submits, stops or grants anything.

The scheduler's own function decides on a virtual clock: whenever a job is expected to end, its machines and what was
held for it are free, what it cost is spent, and the queue is scheduled again. What isn't known isn't guessed: a job
whose time no run predicts keeps its machines, and what would have to wait for it has no expected start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from shoestring_core.decide.conditions import unmet_conditions
from shoestring_core.decide.deadlines import requirements_for
from shoestring_core.decide.funding import rate_of
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import gpus_of, is_stale
from shoestring_core.decide.queue import AccountBalance, QueuedJob, QueueSnapshot
from shoestring_core.decide.quotas import Product
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.start import Start, Wait
from shoestring_core.decide.timeouts import S, Timeouts

MAX_ROUNDS = 60
"""Times at which a schedule is made. What would start after the last one has no expected start."""

SETTLING = 30 * S
"""Machines of no running job, which are being terminated, are taken to be gone after this time."""


@dataclass(frozen=True)
class Expectation:
    """How long a job takes from the launch of its machines, µs, and what it costs, micro-dollars."""

    time: int
    cost: int


Expect = Callable[[UUID, Offer, int], Expectation | None]
"""Of a job on so many machines of an offer; None: no run predicts it."""


@dataclass(frozen=True)
class CurrentRun:
    """A job that has machines. Times in µs UTC, micro-dollars.

    account_path  its accounts, its own first
    product       what its `nodes` machines are, and `gpus` how many they have
    began_at      since when `cost` accrues
    ends_at       when it is expected to end; None: unknown
    held          for its machines, until it ends
    cost          that it will be charged until then, beyond what is posted
    """

    job: UUID
    account_path: tuple[UUID, ...]
    product: Product
    nodes: int
    began_at: int
    ends_at: int | None
    held: int
    cost: int
    gpus: int = 0


@dataclass(frozen=True)
class ProjectedStart:
    """When a queued job is expected to start, on which offer, and to end. `ends_at` and `cost`, in micro-dollars, are
    None if unknown."""

    job: UUID
    at: int
    offer: Offer
    nodes: int
    ends_at: int | None
    cost: int | None


@dataclass(frozen=True)
class SpentBy:
    """What accounts are expected to have spent by a time (µs UTC), micro-dollars."""

    at: int
    spent: Mapping[UUID, int]


@dataclass(frozen=True)
class Projection:
    """
    order   the queued jobs in the order of service now
    waits   why those that don't start now wait now
    starts  by job, of those whose start can be told
    points  rising in time; the first is now
    whole   nothing else can start: no job runs whose end isn't known, and the clock went as far as it matters
    """

    order: tuple[UUID, ...]
    waits: Mapping[UUID, Wait]
    starts: Mapping[UUID, ProjectedStart]
    points: tuple[SpentBy, ...]
    whole: bool


def project(
    snapshot: QueueSnapshot,
    runs: Sequence[CurrentRun],
    offers: Iterable[Offer],
    now: int,
    timeouts: Mapping[str, Timeouts],
    expect: Expect,
) -> Projection:
    """The schedule of a snapshot and the ones that follow from it. `offers`: as for `schedule_jobs`."""
    course = _Course(snapshot, runs, tuple(offers), now, timeouts, expect)
    order, waits = course.schedule()
    course.expect_no_spot()
    points = [SpentBy(now, course.spent())]
    goes_on = True
    for _ in range(MAX_ROUNDS):
        if not (goes_on := course.advance()):
            break
        course.schedule()
        points.append(SpentBy(course.now, course.spent()))
    return Projection(order, waits, course.starts, tuple(points), whole=not goes_on and course.knows_all_ends)


def find_alternative(
    snapshot: QueueSnapshot,
    queued: QueuedJob,
    offers: Iterable[Offer],
    now: int,
    timeouts: Mapping[str, Timeouts],
) -> Offer | None:
    """The offer on which a waiting job would start now if it took any market, place and type of machine.

    Machines with GPUs stand in for such alone, if they have as many with no less memory; real machines for real ones.
    """
    suitable = list(offers)
    own = [one for one in suitable if set(unmet_conditions(one, queued.requirements)) <= {"market", "region", "zone"}]
    alike = [one for one in suitable if any(_stands_in(one, other) for other in own)]
    wider = replace(queued, requirements=relaxed(queued.requirements))
    queue = tuple(wider if one.job == queued.job else one for one in snapshot.queue)
    decided = schedule_jobs(replace(snapshot, queue=queue), alike, now, timeouts)
    return next((start.offer for start in decided.starts if start.job == queued.job), None)


def relaxed(requirements: Requirements) -> Requirements:
    """Those of a job that takes any market, place and type of machine."""
    return replace(requirements, provider=None, regions=(), zones=(), type=None, gpus=(), spot="prefer")


def _stands_in(offer: Offer, other: Offer) -> bool:
    if offer.simulated != other.simulated:
        return False
    gpus, memory = (offer.hardware.gpus, offer.hardware.gpu_memory_mib) if offer.hardware else (0, 0)
    least, least_memory = (other.hardware.gpus, other.hardware.gpu_memory_mib) if other.hardware else (0, 0)
    return gpus == least and memory >= least_memory


class _Course:
    """What changes on the virtual clock."""

    def __init__(
        self,
        snapshot: QueueSnapshot,
        runs: Sequence[CurrentRun],
        offers: tuple[Offer, ...],
        now: int,
        timeouts: Mapping[str, Timeouts],
        expect: Expect,
    ) -> None:
        self.now = now
        self.starts: dict[UUID, ProjectedStart] = {}
        self._begun_at = now
        self._snapshot, self._runs = snapshot, list(runs)
        # A provider that answers now is assumed to keep answering.
        self._offers = tuple(one if is_stale(one, now) else replace(one, fetched_at=None) for one in offers)
        self._timeouts, self._expect = timeouts, expect
        self._settled = False
        self._rates = {one.job: one.rate for one in snapshot.running}

    def schedule(self) -> tuple[tuple[UUID, ...], dict[UUID, Wait]]:
        """Start what starts now. Returns the jobs in the order of service, and why those wait that do."""
        decided = schedule_jobs(self._snapshot, self._offers, self.now, self._timeouts)
        for start in decided.starts:
            self._start(start)
        self._evict({eviction.job for eviction in decided.evictions})
        order = [*(start.job for start in decided.starts), *(wait.job for wait in decided.waits)]
        return tuple(order), {wait.job: wait for wait in decided.waits}

    def expect_no_spot(self) -> None:
        """Jobs that wait for spot machines start on on-demand ones when their deadlines need it."""
        queue = tuple(_at_the_latest(job) for job in self._snapshot.queue)
        self._snapshot = replace(self._snapshot, queue=queue)

    def advance(self) -> bool:
        """Move the clock to the next moment at which the schedule may change; False: there is none."""
        moments = [run.ends_at for run in self._runs if run.ends_at is not None]
        moments += [job.not_before for job in self._snapshot.queue]
        moments += [refusal.at + refusal.kind.memory for refusal in self._snapshot.refusals]
        if not self._settled:
            moments.append(self._begun_at + SETTLING)
        later = [moment for moment in moments if moment > self.now]
        if not later or not (self._snapshot.queue or self._runs):
            return False
        self.now = min(later)
        if not self._settled and self.now >= self._begun_at + SETTLING:
            self._settle()
        for run in [one for one in self._runs if one.ends_at is not None and one.ends_at <= self.now]:
            self._end(run)
        return True

    @property
    def knows_all_ends(self) -> bool:
        return all(run.ends_at is not None for run in self._runs)

    def spent(self) -> dict[UUID, int]:
        """By account, with what running jobs have accrued."""
        spent = {account: balance.posted for account, balance in self._snapshot.balances.items()}
        for run in self._runs:
            accrued = _accrued(run, self.now)
            for account in run.account_path:
                if account in spent:
                    spent[account] += accrued
        return spent

    def _start(self, start: Start) -> None:
        queued = start.inputs.queued
        expected = self._expect(start.job, start.offer, start.nodes)
        ends_at = None if expected is None else self.now + max(expected.time, S)
        cost = None if expected is None else expected.cost
        self.starts[start.job] = ProjectedStart(start.job, self.now, start.offer, start.nodes, ends_at, cost)
        offer = start.offer
        product = (offer.provider, offer.region, offer.type, offer.market)
        hold = max(start.hold * start.nodes, queued.committed)
        run = CurrentRun(
            start.job,
            queued.account_path,
            product,
            start.nodes,
            self.now,
            ends_at,
            hold,
            hold if cost is None else cost,
            gpus_of(offer, start.nodes),
        )
        self._runs.append(run)
        rate = self._rates[start.job] = rate_of(offer, start.nodes)
        self._change_balances(run, lambda balance: balance.holding(hold - queued.committed, rate, 1, run.gpus))
        self._change_machines(product, start.nodes)
        self._snapshot = replace(
            self._snapshot, queue=tuple(one for one in self._snapshot.queue if one.job != start.job)
        )

    def _evict(self, jobs: set[UUID]) -> None:
        """They end after a checkpoint. When they would continue isn't simulated."""
        if not jobs:
            return
        soon = self.now + SETTLING
        self._runs = [
            replace(run, ends_at=min(soon, run.ends_at or soon), cost=min(run.cost, run.held))
            if run.job in jobs
            else run
            for run in self._runs
        ]
        self._snapshot = replace(
            self._snapshot, running=tuple(one for one in self._snapshot.running if one.job not in jobs)
        )

    def _end(self, run: CurrentRun) -> None:
        self._runs.remove(run)
        rate = self._rates.pop(run.job, 0)
        self._snapshot = replace(
            self._snapshot, running=tuple(one for one in self._snapshot.running if one.job != run.job)
        )
        self._change_balances(
            run,
            lambda balance: replace(
                balance,
                held=max(0, balance.held - run.held),
                posted=balance.posted + run.cost,
                recent=balance.recent + run.cost,
                rate=max(0, balance.rate - rate),
                jobs=max(0, balance.jobs - 1),
                gpus=max(0, balance.gpus - run.gpus),
            ),
        )
        self._change_machines(run.product, -run.nodes)

    def _settle(self) -> None:
        """What is being terminated is gone, and its jobs may start again."""
        self._settled = True
        products: dict[Product, int] = {}
        for run in self._runs:
            products[run.product] = products.get(run.product, 0) + run.nodes
        queue = tuple(replace(job, terminating_machines=0, closing=False) for job in self._snapshot.queue)
        jobs, gpus = self._in_use()
        balances = {
            account: replace(balance, jobs=jobs[account], gpus=gpus[account])
            for account, balance in self._snapshot.balances.items()
        }
        self._snapshot = replace(
            self._snapshot, queue=queue, balances=balances, products=products, machines_in_use=_by_provider(products)
        )

    def _in_use(self) -> tuple[Counter[UUID], Counter[UUID]]:
        """Jobs and GPUs of each account."""
        jobs, gpus = Counter[UUID](), Counter[UUID]()
        for run in self._runs:
            for account in run.account_path:
                jobs[account] += 1
                gpus[account] += run.gpus
        return jobs, gpus

    def _change_balances(self, run: CurrentRun, change: Callable[[AccountBalance], AccountBalance]) -> None:
        balances = dict(self._snapshot.balances)
        for account in run.account_path:
            if account in balances:
                balances[account] = change(balances[account])
        self._snapshot = replace(self._snapshot, balances=balances)

    def _change_machines(self, product: Product, nodes: int) -> None:
        products = dict(self._snapshot.products)
        products[product] = max(0, products.get(product, 0) + nodes)
        in_use = dict(self._snapshot.machines_in_use)
        in_use[product[0]] = max(0, in_use.get(product[0], 0) + nodes)
        self._snapshot = replace(self._snapshot, products=products, machines_in_use=in_use)


def _at_the_latest(job: QueuedJob) -> QueuedJob:
    turn = job.deadline
    if turn is None or turn.case is None or turn.market != "wait":
        return job
    requirements = requirements_for(job.requirements, turn.case.plan, "on_demand", "")
    not_before = max(job.not_before, turn.case.on_demand_at)
    return replace(job, requirements=requirements, not_before=not_before, deadline=replace(turn, market="on_demand"))


def _accrued(run: CurrentRun, now: int) -> int:
    """Of its cost, in even parts over its time."""
    if run.ends_at is None or run.ends_at <= run.began_at:
        return 0
    return round(run.cost * min(1.0, max(0.0, (now - run.began_at) / (run.ends_at - run.began_at))))


def _by_provider(products: Mapping[Product, int]) -> dict[str, int]:
    in_use: dict[str, int] = {}
    for (provider, *_), nodes in products.items():
        in_use[provider] = in_use.get(provider, 0) + nodes
    return in_use
