# SPDX-License-Identifier: Apache-2.0
"""Jobs with a deadline, on a virtual clock: the real store, ledger and control loop, and spot machines as recorded."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from shoestring_core import spec, wording
from shoestring_core.decide import deadlines
from shoestring_core.decide.deadlines import DeadlineCase, DeadlinePlan, cost_on_demand
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.spot.deadline_job import DeadlineJob, keep_deadline
from shoestring_core.decide.spot.live import MARKETS, decide_deadline
from shoestring_core.decide.spot.policies import Adaptive, Policy, Situation
from shoestring_core.decide.spot.simulation import simulate
from shoestring_core.decide.start import Start, StartInputs
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.store import jobs, ledger, queries
from shoestring_core.store.fleet import deadlines as fleet_deadlines
from shoestring_core.store.fleet import queue
from shoestring_core.store.tables import AttemptRow, DeadlineRow, JobRow
from shoestring_core.wording.units import moment
from shoestring_worker import failpoints
from shoestring_worker.providers.sim import SimulatedProvider
from sqlalchemy import select, update

from tests.core.decide.recompute import recompute_start
from tests.worker.conftest import World


@dataclass
class RecordedSpot(SimulatedProvider):
    """Offers spot machines in the zones that have some in this interval. On-demand ones are always to be had."""

    zones: dict[str, list[int]] = field(default_factory=dict)
    began_at: int = 0
    interval: int = 0

    def has(self, zone: str) -> bool:
        series = self.zones[zone]
        return bool(series[min((self.clock() - self.began_at) // self.interval, len(series) - 1)])

    def offers(self, requirements: Collection[Requirements]) -> list[Offer]:
        spot, on_demand = (replace(one, region="r") for one in super().offers(requirements))
        there = [replace(spot, zone=zone) for zone in self.zones if self.has(zone)]
        return [*there, replace(on_demand, zone=min(self.zones))]

    def launch(self, request: LaunchRequest) -> ProviderMachine:
        assert request.market == "on_demand" or self.has(request.zone)
        return super().launch(request)

    def interrupt(self) -> None:
        for machine in self.alive():
            request = self._requests[machine.token]
            if request.market == "spot" and not self.has(request.zone):
                self.end(machine.id, "preempted")


class Course:
    """A job whose agents do at once what takes a trainer time: a step takes a second, a start the changeover."""

    def __init__(self, world: World, job: DeadlineJob, zones: dict[str, list[int]]) -> None:
        self.world, self.job = world, job
        self.work, self.changeover, self.interval = (
            round(hours * 3600) for hours in (job.work, job.changeover, job.interval)
        )
        world.timeouts = Timeouts(**dict.fromkeys(("funding_lease", "machine_lease", "boot", "launch_window"), 900 * S))
        self.cloud = RecordedSpot(
            world.clock, price="1.0", on_demand_price=str(job.price_ratio), zones=zones,
            began_at=world.clock.now, interval=self.interval * S,
        )  # fmt: skip
        world.providers["sim"] = self.cloud
        world.control_loop = world.another_control_loop()
        self.began_at = world.clock.now
        self.step, self.attempt, self.trains_at, self.formed = 0, 0, 0, False
        self.markets: list[str] = []
        self.cases: list[DeadlineCase] = []

    @property
    def plan(self) -> DeadlinePlan:
        deadline = self.began_at + round(self.job.deadline * 3600) * S
        offer = next(one for one in self.cloud.offers([]) if one.market == "on_demand")
        work, changeover = self.work * S, self.changeover * S
        worst = cost_on_demand(offer, 1, work, changeover, self.world.timeouts)
        return DeadlinePlan(self.began_at, deadline, "sim", "sim", 1, work, changeover, 0, worst, "measured", 1)

    def submit(self) -> None:
        plan, world = self.plan, self.world
        wanted = spec.parse(
            {
                "recipe": "digits/quickstart",
                "limits": {"deadline": f"{round(self.job.deadline * 3600)}s"},
                "retry": {"max": 0},
            }
        )
        self.id = world.store.write(lambda db: jobs.submit(db, world.admin, wanted, min_hold=0, deadline=plan)).job.id
        total = update(JobRow).where(JobRow.id == self.id).values(steps_total=self.work)
        world.store.write(lambda db: db.sql.execute(total))

    def go(self, intervals: int | None = None) -> None:
        """Interval by interval, to the end or as many."""
        for _ in range(self.job.intervals if intervals is None else intervals):
            if self.world.job(self.id).state == "ended":
                return
            self.decide()
            self.train_for(self.interval)

    @property
    def now(self) -> int:
        return (self.world.clock.now - self.began_at) // S

    def decide(self) -> None:
        """An interval begins: zones take their machines back, and it is decided where the job goes on."""
        world = self.world
        self.cloud.interrupt()
        world.report(self.id)
        world.tick()
        if world.job(self.id).state == "stopping":
            self._drain()
            world.tick()
        decided = row(world, self.id)
        self.markets.append(decided.market)
        self.cases.append(DeadlineCase.from_json(decided.inputs))
        if world.job(self.id).attempt != self.attempt:
            self.attempt, self.trains_at, self.formed = world.job(self.id).attempt, self.now + self.changeover, False

    def train_for(self, seconds: int) -> None:
        world, end = self.world, self.now + seconds
        if world.alive(self.id) and self.trains_at < end:
            if not self.formed:
                world.clock.pass_(self.trains_at - self.now)
                world.form(self.id)
                world.train(self.id, self.step)
                self.formed = True
            trained = min(end - self.now, self.work - self.step)
            world.clock.pass_(trained)
            self.step += trained
            world.train(self.id, self.step)
            (machine,) = world.alive(self.id)
            is_done = self.step == self.work
            assert world.commit(
                machine.id, world.job(self.id).generation, self.step, "final" if is_done else "periodic"
            )
            if is_done:
                self.ended_at = self.now
                self.cloud.end(machine.provider_id, "exited")
                world.tick()
        world.clock.pass_(end - self.now)

    def _drain(self) -> None:
        for machine in self.world.alive(self.id):
            if self.formed:
                self.world.exits(machine.id, self.world.job(self.id).generation, "drained")
            self.cloud.end(machine.provider_id, "exited")
        self.world.tick()


def row(world: World, job: UUID) -> DeadlineRow:
    with world.store.read() as db:
        return db.sql.scalars(select(DeadlineRow).where(DeadlineRow.job == job)).one()


@dataclass
class Recorder:
    """The simulator's policy, and the modes that come of it."""

    policy: Policy = field(default_factory=Adaptive)
    modes: list[int] = field(default_factory=list)

    def choose(self, now: Situation) -> np.ndarray:
        wanted = self.policy.choose(now)
        kept = keep_deadline(now.job, now.states, wanted, now.time_left)
        if now.states.work_left[0] > 1e-6:
            self.modes.append(int(kept[0]))
        return wanted


RECORDED = {
    "us-east-1f": "000111100000000011110001110001110000111111111100",
    "us-east-1a": "100000000001110000111000111111100011111111110001",
    "us-east-1d": "001111111110000000111111000011111100011110001110",
    "us-east-1c": "001110000001110000111111000111111111111110000001",
}
"""Whether a spot p3.2xlarge could be had, tried every 195 s (github.com/skypilot-org/spot-traces, the data of "Can't Be
Late", NSDI 2024): 48 tries of each zone from the 17575th, 13251st, 3915th and 11331st on."""


def recorded(*zones: str) -> dict[str, list[int]]:
    return {zone: [int(there) for there in RECORDED[zone]] for zone in zones}


@pytest.fixture
def five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two decisions; the job's pace is known exactly."""
    monkeypatch.setattr(deadlines, "INTERVAL", 300 * S)
    monkeypatch.setattr(fleet_deadlines, "PACE_MARGIN", 1.0)


def recompute(course: Course) -> None:
    """What is stored is decided again."""
    policy = Adaptive()
    for case, market in zip(course.cases, course.markets, strict=True):
        assert decide_deadline(DeadlineCase.from_json(case.as_json()), policy).market == market
    with course.world.store.read() as db:
        attempts = db.sql.scalars(
            select(AttemptRow).where(AttemptRow.job == course.id).order_by(AttemptRow.number)
        ).all()
    for attempt in attempts:
        inputs = StartInputs.from_json(attempt.plan)
        start, turn = recompute_start(inputs), inputs.queued.deadline
        assert isinstance(start, Start)
        assert turn is not None
        assert turn.case is not None
        assert decide_deadline(turn.case, policy).market == turn.market == start.offer.market
        if attempt.market_change:
            left = DeadlineCase.from_json(attempt.market_change)
            assert decide_deadline(left, policy).market != left.market == start.offer.market


def is_settled(course: Course) -> None:
    """All that was reserved is spent or free, and no total of the ledger is wrong."""
    for _ in range(3):
        course.world.tick()
    assert course.world.job(course.id).settled_at is not None
    with course.world.store.read() as db:
        assert ledger.find_discrepancies(db) == []
        team = ledger.team_account(db, course.world.admin.team)
    assert team.held == 0
    assert 0 < team.posted <= (team.limit_micro or team.posted)


@pytest.mark.any_database
@pytest.mark.parametrize(("zones", "deadline_h"), [(["us-east-1f"], 1.25), (["us-east-1d", "us-east-1c"], 1.0)])
def test_a_job_is_decided_about_as_the_simulator_decides_within_what_was_reserved(
    make_world: Callable[..., World], zones: list[str], deadline_h: float, five_minutes: None
):
    job = DeadlineJob(work=0.75, deadline=deadline_h, changeover=1 / 60, price_ratio=3.0, interval=1 / 12)
    course = Course(make_world("sim"), job, recorded(*zones))
    course.world.budget(course.plan.worst_case)
    course.submit()
    course.go()
    simulated = Recorder()
    series = np.array([[recorded(*zones)[zone][: job.intervals] for zone in sorted(zones)]], bool).transpose(0, 2, 1)
    outcome = simulate(job, simulated, series)
    assert not outcome.missed[0]
    assert course.markets == [MARKETS[mode] for mode in simulated.modes]
    assert course.ended_at <= deadline_h * 3600
    is_settled(course)
    with course.world.store.read() as db:
        posted = ledger.job_account(db, course.id).posted
    assert posted / 2.25e6 == pytest.approx(outcome.cost[0], abs=1e-6)
    recompute(course)


@pytest.mark.any_database
def test_no_deadline_is_missed_and_no_budget_overdrawn_whatever_spot_machines_cost_and_how_long_they_last(
    make_world: Callable[..., World], five_minutes: None, seed: int
):
    generator = random.Random(seed)
    job = DeadlineJob(
        work=0.75, deadline=1.25 + generator.random(), changeover=1 / 60, price_ratio=3.0, interval=1 / 12
    )
    up = generator.random()
    zones = {name: [int(generator.random() < up) for _ in range(job.intervals + 1)] for name in ("a", "b")}
    course = Course(make_world("sim"), job, zones)
    course.world.budget(course.plan.worst_case)
    course.submit()
    while course.world.job(course.id).state != "ended":
        course.cloud.price = f"{generator.uniform(0.3, 3.3):.2f}"
        course.go(1)
    assert course.ended_at <= job.deadline * 3600
    is_settled(course)
    recompute(course)


def test_what_is_reserved_pays_though_others_spend_all_else_and_the_limit_falls(
    make_world: Callable[..., World], five_minutes: None
):
    job = DeadlineJob(work=0.5, deadline=0.75, changeover=1 / 60, price_ratio=3.0, interval=1 / 12)
    course = Course(make_world("sim"), job, {"a": [0]})
    world = course.world
    world.budget(course.plan.worst_case + 1_000_000)
    course.submit()
    other = world.submit(resources={"nodes": 1})
    course.go(1)
    assert course.markets == ["wait"]
    assert (world.job(other).state, world.job(other).wait_reason) == ("launching", None)
    world.budget(course.plan.worst_case // 2)  # below what is reserved
    course.go()
    assert world.job(other).state in ("paused", "stopping")
    assert (world.job(course.id).state, course.markets[-1]) == ("ended", "on_demand")
    assert course.ended_at <= job.deadline * 3600


@pytest.mark.any_database
def test_a_job_that_could_be_late_starts_before_all_others(make_world: Callable[..., World], five_minutes: None):
    job = DeadlineJob(work=0.5, deadline=0.6, changeover=1 / 60, price_ratio=3.0, interval=1 / 12)
    course = Course(make_world("sim"), job, {"a": [0]})
    course.cloud.slots = 1
    world = course.world
    others = [world.submit() for _ in range(3)]
    course.submit()
    world.tick()
    assert world.job(course.id).state == "launching"
    assert [world.job(other).wait_reason for other in others] == ["slots"] * 3
    assert course.world.job(course.id).wait_reason is None


@pytest.mark.any_database
def test_a_job_that_waits_or_trains_says_when_it_changes_to_on_demand(
    make_world: Callable[..., World], five_minutes: None
):
    job = DeadlineJob(work=0.5, deadline=3, changeover=1 / 60, price_ratio=3.0, interval=1 / 12)
    course = Course(make_world("sim"), job, {"a": [0, 1, 1]})
    course.submit()

    def sentences() -> tuple[str, str | None]:
        with course.world.store.read() as db:
            loaded = queries.load_job_rows(db, [course.world.job(course.id)])[0]
        detail = loaded.job.wait_detail
        assert loaded.deadline is not None
        return loaded.deadline.text(), wording.render(**detail) if detail else None

    course.go(1)
    kept, waits = sentences()
    at, by = moment(course.cases[-1].on_demand_at), moment(course.plan.deadline)
    assert kept.startswith(
        f"Waits for spot machines; changes to on-demand at the latest at {at}, to be done by {by}. $"
    )
    assert waits == (
        f"It starts when spot machines are worth it, or on on-demand machines at {at} at the latest, to be done by "
        f"{by}."
    )
    course.go(1)
    kept, waits = sentences()
    assert kept.startswith("On spot; changes to on-demand at the latest at ")
    assert waits is None


@pytest.mark.any_database
def test_a_job_that_could_be_late_is_read_however_many_of_its_owner_are_before_it(
    make_world: Callable[..., World], five_minutes: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(queue, "PAGE", 2)
    job = DeadlineJob(work=0.5, deadline=0.6, changeover=1 / 60, price_ratio=3.0, interval=1 / 12)
    course = Course(make_world("sim"), job, {"a": [0]})
    course.cloud.slots = 1
    for _ in range(5):
        course.world.submit()
    course.submit()
    course.world.tick()
    assert course.world.job(course.id).state == "launching"


@pytest.mark.any_database
def test_a_pause_keeps_what_is_reserved_and_a_job_that_goes_on_is_decided_about_at_once(
    make_world: Callable[..., World], five_minutes: None
):
    job = DeadlineJob(work=0.5, deadline=3, changeover=1 / 60, price_ratio=3.0, interval=1 / 12)
    course = Course(make_world("sim"), job, {"a": [0]})
    world = course.world
    course.submit()
    course.go(1)
    held = world.store.write(lambda db: ledger.job_account(db, course.id).held)
    world.store.write(lambda db: jobs.stop(db, course.id, "ann", "pause"))
    for _ in range(3):
        world.tick(2000)
    assert world.job(course.id).state == "paused"
    assert world.store.write(lambda db: ledger.job_account(db, course.id).held) == held
    world.store.write(lambda db: jobs.resume(db, course.id, "ann"))
    world.tick(2400)
    assert world.job(course.id).state == "launching"
    assert row(world, course.id).market == "on_demand"


@pytest.mark.any_database
def test_a_zone_that_refuses_a_launch_had_no_machines(make_world: Callable[..., World]):
    job = DeadlineJob(work=0.5, deadline=5, changeover=1 / 60, price_ratio=3.0, interval=1 / 60)
    course = Course(make_world("sim"), job, {"a": [1]})
    course.cloud.fault = lambda _: RefusalKind.CAPACITY
    course.submit()
    course.go(4)
    assert course.cloud.journal == []
    assert course.markets[0] == "spot"
    (zone,) = course.cases[-1].seen_before.zones
    assert (zone.available, zone.up_hours, zone.losses) == (False, 0.0, 0)
    assert course.cases[-1].seen_before.outage_hours == pytest.approx(2 / 60)


@pytest.mark.parametrize("when", ["after", "twice"])
def test_a_worker_that_dies_at_a_decision_or_makes_it_twice_changes_machines_once(
    make_world: Callable[..., World], five_minutes: None, when: str
):
    job = DeadlineJob(work=0.5, deadline=0.75, changeover=1 / 60, price_ratio=3.0, interval=1 / 12)
    course = Course(make_world("sim"), job, {"a": [1, 1, 0]})
    world, struck = course.world, []
    course.submit()
    course.go(1)
    course.cloud.interrupt()
    world.report(course.id)

    class Killed(BaseException):
        pass

    def fault(name: str, call: Callable[[], Any]) -> Any:
        result = call()
        if name == "record_decision" and not struck:
            struck.append(name)
            if when == "after":
                raise Killed
            assert call() is False, "it was decided already"
        return result

    with failpoints.plant(fault):
        try:
            world.tick()
        except Killed:
            world.control_loop.close()
            world.control_loop = world.another_control_loop()
    assert struck
    course.go()
    assert course.ended_at <= job.deadline * 3600
    is_settled(course)
