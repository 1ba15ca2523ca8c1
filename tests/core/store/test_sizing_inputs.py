# SPDX-License-Identifier: Apache-2.0
"""What earlier runs took, read from rows: each generation under its own number of machines, on each database."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest
from shoestring_core import results, spec, wire
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.scaling import Measurement
from shoestring_core.decide.sizing import choose_machines
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.store import reports, sizing_inputs
from shoestring_core.store.fleet.offers import load_offers, load_timeouts, save_offers
from shoestring_core.store.tables import AttemptRow, GenerationRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.uuid7 import uuid7
from sqlalchemy import update

from tests.core.world import World

BEGIN = 1_700_000_000
STEPS = 10  # in an epoch
QUICK = {"recipe": "digits/quickstart", "params": {"epochs": 8, "width": 8}}


def train(
    world: World,
    job: JobRow,
    machines: Sequence[str] = ("small",),
    *,
    number: int = 1,
    steps: tuple[int, int] = (0, 80),
    step_s: float = 0.5,
    evaluation_s: float = 2.0,
    end: str | None = "succeeded",
) -> None:
    """A generation: launched at BEGIN + 1000·number, its ranks start 5 s later and do the first step 4 s after that. It
    scores after each epoch; its end, if it is one, comes 6 s after the last score, and its machines leave 2 s later."""
    launched = (BEGIN + 1000 * number) * S
    first, last = steps
    times, scores, now = [], [], launched / S + 9
    for step in range(first + 1, last + 1):
        now += step_s if step > first + 1 else 0
        if step % STEPS == 0 and evaluation_s:
            now += evaluation_s
            scores.append((step, now))
        times.append(now)
    over = round((now + 6) * S)
    ids = [uuid7() for _ in machines]

    def work(db):
        db.insert_new(
            AttemptRow, job=job.id, number=1, state="open", plan={}, plan_version=0, opened_at=launched, trained=True
        )
        for slot, (machine, type_) in enumerate(zip(ids, machines, strict=True)):
            db.insert_new(
                MachineRow, id=machine, job=job.id, attempt=1, ordinal=machine.int % 2**60, slot=machine.int % 2**60,
                provider="local", region="local", zone="", type=type_, market="spot", price="1", on_demand_price="2",
                simulated=True, billing={}, launch_request={}, state="terminated", acked_seq=0, created_at=launched,
                launched_at=launched + slot * S,
                ended_at=over + 2 * S,
            )  # fmt: skip
        db.insert_new(
            GenerationRow, job=job.id, number=number, attempt=1, state="ended", world_size=len(ids), start_step=first,
            opened_at=launched, formed_at=launched + 5 * S, ended_at=over,
        )  # fmt: skip
        for rank, machine in enumerate(ids):
            db.insert_new(MemberRow, job=job.id, generation=number, node_rank=rank, machine=machine, nproc=1)
        points = [
            wire.MetricSeries(
                name="epoch", steps=list(range(first + 1, last + 1)), times=times,
                values=[step / STEPS for step in range(first + 1, last + 1)],
            )
        ]  # fmt: skip
        if scores:
            points.append(
                wire.MetricSeries(
                    name=results.EVALUATION_S, steps=[step for step, _ in scores], times=[at for _, at in scores],
                    values=[evaluation_s] * len(scores),
                )
            )  # fmt: skip
        reports.accept_batch(db, ids[0], wire.ReportBatch(seq=1, generation=number, points=points[:1]), log_quota=0)
        reports.accept_batch(db, ids[0], wire.ReportBatch(seq=2, generation=number, points=points[1:]), log_quota=0)
        ended = {"state": "ended", "end_reason": end, "ended_at": over} if end else {}
        db.sql.execute(update(JobRow).where(JobRow.id == job.id).values(generation=number, **ended))

    world.store.write(work)


def submitted(world: World, **fields: object) -> JobRow:
    return world.job(**(QUICK | fields))


def found(world: World, team: UUID | None = None, **fields: object) -> tuple[Measurement, ...]:
    with world.store.read() as db:
        return sizing_inputs.load_measurements(db, team or world.team, spec.parse(QUICK | fields))


def test_a_finished_run_is_measured_without_its_evaluation(world: World):
    job = submitted(world)
    train(world, job)
    (one,) = found(world)
    assert (one.job, one.generation, one.type, one.nodes, one.complete) == (job.id, 1, "small", 1, True)
    assert one.epochs == pytest.approx(7.9)  # from its first line to its last
    assert one.epoch_s == pytest.approx(10 * 0.5)
    assert one.evaluation_s == pytest.approx(2)
    assert (one.boot_s, one.startup_s) == pytest.approx((5, 4))
    assert one.finish_s == pytest.approx(6 + 2)  # the last evaluation belongs to the end
    assert one.teardown_s == pytest.approx(2)


def test_each_number_of_machines_is_measured_by_itself(world: World):
    for nodes, step_s in ((1, 0.5), (2, 0.3), (4, 0.2)):
        train(world, submitted(world, resources={"nodes": nodes}), ["small"] * nodes, step_s=step_s)
    seconds = {one.nodes: one.epoch_s for one in found(world)}
    assert seconds == pytest.approx({1: 5, 2: 3, 4: 2})


def test_a_gang_that_shrank_and_grew_counts_each_generation_under_its_own_size(world: World):
    job = submitted(world, resources={"nodes": "2..4"})
    train(world, job, ["small"] * 4, steps=(0, 45), step_s=0.2, end=None)
    train(world, job, ["small"] * 3, number=2, steps=(40, 62), step_s=0.3, end=None)
    train(world, job, ["small"] * 4, number=3, steps=(60, 82), step_s=0.2)
    three, two, one = found(world)
    assert [(each.generation, each.nodes) for each in (one, two, three)] == [(1, 4), (2, 3), (3, 4)]
    assert [each.epoch_s for each in (one, two, three)] == pytest.approx([2, 3, 2])
    assert (one.finish_s, one.teardown_s, one.boot_s, one.complete) == (None, None, pytest.approx(5), False)
    assert (two.startup_s, two.boot_s, two.finish_s) == (None, None, None)  # it began where another had come to
    assert three.finish_s == pytest.approx(6)
    assert not three.complete


def test_an_interrupted_run_is_measured_as_far_as_it_came(world: World):
    train(world, submitted(world), steps=(0, 33), end=None)
    (one,) = found(world)
    assert (one.epoch_s, one.evaluation_s, one.finish_s) == (pytest.approx(5), pytest.approx(2), None)


def test_too_short_a_run_measures_nothing(world: World):
    train(world, submitted(world), steps=(0, 15), end=None)
    train(world, submitted(world), step_s=0.001)
    assert found(world) == ()


def test_runs_on_machines_of_several_types_are_not_measured(world: World):
    train(world, submitted(world), ["small", "big"])
    assert found(world) == ()


def test_only_the_same_work_counts(world: World):
    train(world, submitted(world))
    train(world, submitted(world, params={"epochs": 4, "width": 8, "lr": 0.2, "seed": 3}), steps=(0, 40))
    train(world, submitted(world, params={"epochs": 4, "width": 16}), steps=(0, 40))
    assert len(found(world)) == 2
    assert len(found(world, params={"width": 16})) == 1
    assert found(world, params={"width": 16, "batch_size": 64}) == ()


def test_another_teams_runs_are_ignored(world: World):
    train(world, submitted(world))
    other = World(world.store)
    assert len(found(world)) == 1
    assert found(other) == ()


def test_of_each_node_count_the_newest_runs_are_used(world: World):
    jobs = [submitted(world) for _ in range(7)]
    for job in jobs:
        train(world, job, steps=(0, 40))
    assert [one.job for one in found(world)] == [job.id for job in reversed(jobs)][:5]


def test_the_inputs_are_runs_offers_and_the_budget_left(world: World):
    for nodes, step_s in ((1, 0.5), (2, 0.3)):
        train(world, submitted(world, resources={"nodes": nodes}), ["small"] * nodes, step_s=step_s)
    offers = [Offer("local", "local", "", "small", market, "1.00", "2.00", 2, "test", True) for market in ("spot",)]
    world.store.write(lambda db: save_offers(db, "local", offers, Timeouts()))
    params = {"width": 8, "epochs": 60}
    wanted = spec.parse({"recipe": "digits/quickstart", "params": params, "limits": {"time": "6m", "cost": "9"}})
    world.limit("team", 5_000_000)
    with world.store.read() as db:
        inputs = sizing_inputs.load_sizing_inputs(db, world.team, world.me.user, wanted)
    assert list(inputs.offers) == offers
    assert (inputs.requested_nodes, inputs.epochs, inputs.evaluations) == (None, 60.0, 59)
    assert (inputs.budget_left, inputs.budget_name) == (5_000_000, f"team team {world.name}")
    choice = choose_machines(inputs)
    assert (choice.outcome, choice.nodes) == ("chosen", 2)  # one machine takes 5 · 60 + 2 · 59 + 12 s
    assert choice.option.run_s == pytest.approx(3 * 60 + 2 * 59 + 4 + 8)


def test_a_provider_s_answer_replaces_its_own_offers_and_leaves_those_of_others(world: World):
    def offer(type_: str, provider: str = "local") -> Offer:
        return Offer(provider, "local", "", type_, "spot", "1.00", "2.00", None, "test", True)

    def save(provider: str, *offers: Offer, **timeouts: int) -> None:
        world.store.write(lambda db: save_offers(db, provider, offers, Timeouts(**timeouts)))

    save("local", offer("a"), offer("b"))
    save("sim", offer("a", "sim"), drain=99)
    save("local", offer("b"), offer("c"), boot=7)
    with world.store.read() as db:
        loaded, now = load_offers(db), db.now
        timeouts = load_timeouts(db)
    assert loaded == [offer("b"), offer("c"), offer("a", "sim")]
    assert all(now - one.fetched_at >= 0 for one in loaded)
    assert timeouts == {"local": Timeouts(boot=7), "sim": Timeouts(drain=99)}
