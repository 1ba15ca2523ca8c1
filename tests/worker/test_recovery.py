# SPDX-License-Identifier: Apache-2.0
"""A job whose numbers break goes back to before that, on the machines it has, and passes over the batches."""

from __future__ import annotations

from uuid import UUID

import pytest
from shoestring_core import wire
from shoestring_core.store import jobs, metrics
from shoestring_core.store.tables import GenerationRow
from sqlalchemy import select

from tests.worker.conftest import World
from tests.worker.test_control_loop import finish, leave

pytestmark = pytest.mark.any_database


def running(world: World, **resources: object) -> UUID:
    job = world.submit(**resources)
    world.tick()
    world.form(job)
    return job


def save(world: World, job: UUID, *steps: int) -> None:
    generation = world.job(job).generation
    world.train(job, steps[-1])
    for step in steps:
        assert world.commit(world.alive(job)[0].id, generation, step)


def break_at(world: World, job: UUID, since: int) -> wire.LaunchConfig | None:
    """Report a NaN at a step; return what the first machine is ordered to run then."""
    generation = world.job(job).generation
    world.train(job, since)
    first, second = world.alive(job)
    world.exits(first.id, generation, "error", kind="nan", since=since)
    world.exits(second.id, generation, "error", kind="infrastructure", rank=1)
    world.tick(1)
    world.form(job)
    return world.order(first.id).run


@pytest.mark.parametrize("nodes", [2, "1..2"])
def test_each_recovery_rolls_back_further_and_skips_more_steps_until_the_limit(world: World, nodes: int | str):
    job = running(world, nodes=nodes)
    machines = {machine.id for machine in world.alive(job)}
    save(world, job, 10, 20, 30, 40)
    run = break_at(world, job, 45)
    assert run is not None
    assert (run.resume.step, run.task.skip) == (40, ((45, 45),))
    save(world, job, 44)
    run = break_at(world, job, 47)
    assert (run.resume.step, run.task.skip) == (40, ((45, 45), (44, 47)))
    run = break_at(world, job, 48)
    assert (run.resume.step, run.task.skip) == (30, ((45, 45), (44, 47), (33, 48)))
    assert {machine.id for machine in world.alive(job)} == machines
    assert world.job(job).attempt == 1
    with world.store.read() as db:
        course = metrics.owned_steps(db.sql.scalars(select(GenerationRow).where(GenerationRow.job == job)))
    assert [(one.start, one.last) for _, one in sorted(course.items())] == [
        (0, 30), (40, 30), (40, 30), (30, None)
    ]  # fmt: skip
    assert [no for no, one in course.items() if 45 in one] == [4]
    break_at(world, job, 49)
    done = world.job(job)
    assert (done.state, done.end_reason) == ("ended", "nan")
    assert done.end_detail["code"] == "nan_persisted"
    assert done.end_detail["facts"]["skipped"] == [[45, 45], [44, 47], [33, 48]]


def test_a_recovered_job_saves_checkpoints_and_succeeds(world: World):
    job = running(world, nodes=2)
    save(world, job, 10, 20)
    break_at(world, job, 12)  # reported only at step 20, say: later checkpoints are not used
    assert world.job(job).generation == 2
    save(world, job, 15)
    with world.store.read() as db:
        assert [row.start_step for row in db.sql.scalars(select(GenerationRow).order_by(GenerationRow.number))] == [
            0,
            10,
        ]
    world.exits(world.alive(job)[0].id, 2, "signal")
    world.tick(1)
    world.form(job)
    run = world.order(world.alive(job)[0].id).run
    assert (run.resume.step, run.task.skip) == (15, ((12, 12),))  # whatever happens to it later
    finish(world, job)
    assert world.job(job).end_reason == "succeeded"


def test_without_an_earlier_checkpoint_the_job_starts_from_the_beginning(world: World):
    job = running(world, nodes=2)
    run = break_at(world, job, 7)
    assert (run.resume, run.task.skip) == (None, ((7, 7),))
    assert world.job(job).checkpoint is None


def test_a_retry_skips_the_same_steps(world: World):
    job = running(world, nodes=2)
    save(world, job, 10, 20)
    break_at(world, job, 25)
    who = world.admin
    world.store.write(lambda db: jobs.stop(db, job, "ann"))
    world.tick(1)
    for machine in world.alive(job):
        world.exits(machine.id, 2, "drained")
    leave(world, job)
    again = world.store.write(lambda db: jobs.retry(db, who, job, min_hold=0)).job.id
    world.tick(1)
    world.form(again)
    run = world.order(world.alive(again)[0].id).run
    assert (run.resume.step, run.task.skip) == (20, ((25, 25),))
    save(world, again, 24)
    run = break_at(world, again, 30)
    assert (run.resume.step, run.task.skip) == (24, ((25, 25), (27, 30)))
    run = break_at(world, again, 31)  # further back than the retry's own start lies nothing of its own
    assert (run.resume.step, run.task.skip[-1]) == (20, (16, 31))
