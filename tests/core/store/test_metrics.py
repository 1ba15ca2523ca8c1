# SPDX-License-Identifier: Apache-2.0
"""Points from sources that are no machine: another tool's run, an imported file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from uuid import UUID

import pytest
from shoestring_core import wire
from shoestring_core.store import metrics
from shoestring_core.store.tables import GenerationRow, JobRow
from shoestring_core.store.uuid7 import uuid7

from tests.core.world import World


@pytest.fixture
def job(world: World) -> JobRow:
    """A job whose second generation resumed from step 10."""
    job = world.job()
    world.machine(job)

    def form(db):
        for number, start in ((1, 0), (2, 10)):
            db.insert_new(
                GenerationRow, job=job.id, number=number, attempt=1, state="ended" if number == 1 else "formed",
                world_size=1, start_step=start, opened_at=number,
            )  # fmt: skip

    world.store.write(form)
    return job


def append(
    world: World, job: JobRow, source: UUID, seq: int, points: Sequence[tuple[int, float]],
    *, generation: int = 1, name: str = "val/acc",
) -> bool:  # fmt: skip
    steps, values = [step for step, _ in points], [value for _, value in points]
    series = wire.MetricSeries(name=name, steps=steps, times=[float(step) for step in steps], values=values)
    columns = metrics.columns_by_name([series])
    return world.store.write(lambda db: metrics.append(db, job, columns, generation=generation, source=source, seq=seq))


def curve(world: World, job: JobRow, name: str = "val/acc") -> dict[int, float]:
    """The merged curve."""
    with world.store.read() as db:
        curves = metrics.load_curves(db, job.id, [name])
    return {step: value for part in curves for step, value in zip(part.steps, part.values, strict=True)}


def test_a_job_has_at_most_so_many_series(world: World, job: JobRow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 2)
    source = uuid7()
    for seq, name in enumerate(("a", "b", "c", "b"), start=1):
        assert append(world, job, source, seq, [(seq, 1.0)], name=name) == (name != "c")
    assert (curve(world, job, "a"), curve(world, job, "b"), curve(world, job, "c")) == ({1: 1.0}, {2: 1.0, 4: 1.0}, {})


def test_batches_that_come_twice_and_in_any_order_make_one_curve(world: World, job: JobRow, seed: int) -> None:
    rng = random.Random(seed)
    run, file = uuid7(), uuid7()
    batches = [(run, seq, [(seq, seq / 10)]) for seq in range(1, 8)]
    batches += [(file, seq, [(step, step / 10) for step in range(7 + seq, 9 + seq)]) for seq in (1, 3, 2)]
    arrivals = batches * 2
    rng.shuffle(arrivals)
    new = [append(world, job, *batch) for batch in arrivals]
    assert sum(new) == len(batches)
    assert curve(world, job) == {step: step / 10 for step in range(1, 11)}
    with world.store.read() as db:
        stored = metrics.load_curves(db, job.id, merged=False)
    assert sum(len(part.steps) for part in stored) == 11  # step 11 is after the next generation's start


def test_of_two_values_for_a_step_that_of_the_later_batch_counts_whichever_came_first(
    world: World, job: JobRow
) -> None:  # fmt: skip
    for name, order in (("a", (1, 2)), ("b", (2, 1))):
        source = uuid7()
        for seq in order:
            append(world, job, source, seq, [(5, float(seq))], name=name)
        assert curve(world, job, name) == {5: 2.0}


def test_two_sources_number_their_batches_independently(world: World, job: JobRow) -> None:
    assert append(world, job, uuid7(), 1, [(1, 0.1)])
    assert append(world, job, uuid7(), 1, [(2, 0.2)])
    assert curve(world, job) == {1: 0.1, 2: 0.2}


def test_points_belong_to_the_steps_of_their_generation(world: World, job: JobRow) -> None:
    """As those of machines do: what a later generation recomputed is kept apart from the merged curve."""
    source = uuid7()
    append(world, job, source, 1, [(9, 0.9), (11, 1.1)], generation=1)
    append(world, job, source, 2, [(11, 2.2)], generation=2)
    assert curve(world, job) == {9: 0.9, 11: 2.2}


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(("last", "latest"), [
    (8, {}), (9, {"val/acc": 0.9}), (10, {"val/acc": 0.9}), (11, {"val/acc": 2.2, "lr": 0.1}),
    (99, {"val/acc": 2.5, "lr": 0.1}),
])  # fmt: skip
def test_the_latest_values_up_to_a_step_are_those_of_the_merged_curve(
    world: World, job: JobRow, last: int, latest: dict[str, float]
) -> None:
    source = uuid7()
    append(world, job, source, 1, [(9, 0.9)], generation=1)
    append(world, job, source, 2, [(11, 1.1), (12, 1.2)], generation=1)
    append(world, job, source, 3, [(11, 2.2), (14, 2.5)], generation=2)
    append(world, job, source, 4, [(11, 0.1)], generation=2, name="lr")
    append(world, job, source, 5, [(3, 50.0)], generation=0, name="system/cpu_percent")
    with world.store.read() as db:
        assert metrics.load_latest(db, job.id, last) == latest


def test_a_batch_is_one_event_for_live_streams_and_none_when_it_comes_again(world: World, job: JobRow) -> None:
    source = uuid7()
    for _ in range(2):
        append(world, job, source, 4, [(1, 0.5)])
    (event,) = world.events("batch")
    assert (event.job, event.generation) == (job.id, 1)
    with world.store.read() as db:
        (streamed,) = metrics.load_batch_curves(db, UUID(event.data["source"]), event.data["seq"])
    assert (streamed.steps, streamed.values) == ([1], [0.5])


def test_points_of_another_source_do_not_move_the_jobs_progress(world: World, job: JobRow) -> None:
    append(world, job, uuid7(), 1, [(10**6, 0.5)], generation=2)
    with world.store.read() as db:
        after, generation = db.sql.get_one(JobRow, job.id), db.sql.get_one(GenerationRow, (job.id, 2))
    assert (after.last_step, after.latest, generation.last_step) == (0, {}, None)
