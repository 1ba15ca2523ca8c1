# SPDX-License-Identifier: Apache-2.0
"""One item of a tick that fails, an attempt, a job or a machine, keeps no other from being served in the same tick."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from uuid import UUID

import pytest
from shoestring_core import wire
from shoestring_core.errors import DatabaseUnavailable, Unavailable
from shoestring_core.store.objects.local import LocalObjects
from shoestring_core.store.tables import AttemptRow, JobRow, MachineRow, MemberRow
from sqlalchemy import select, update

from tests.worker.conftest import SECRET, World
from tests.worker.test_control_loop import leave


class FailingObjects(LocalObjects):
    """An object store that fails to read what belongs to one job."""

    def __init__(self, world: World, job: UUID, failure: Exception) -> None:
        super().__init__(world.objects.folder, SECRET, "http://objects")
        self.job, self.failure = str(job), failure

    def read(self, key: str, limit: int) -> bytes:
        if self.job in key:
            raise self.failure
        return super().read(key, limit)


def running(world: World, count: int = 2) -> list[UUID]:
    """Jobs that train, in the order in which a tick serves them."""
    submitted = [world.submit() for _ in range(count)]
    world.tick()
    for job in submitted:
        world.form(job)
        world.train(job, 50)
    return sorted(submitted)


def upload(world: World, job: UUID, *, padding: int = 0, manifest: bytes | None = None) -> None:
    """The objects of a checkpoint at step 50 whose machine dies before it commits them."""
    data = b"weights"
    described = {
        "format": 1, "job": str(job), "generation": 1, "step": 50, "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "parts": [], "padding": "x" * padding,
    }  # fmt: skip
    text = manifest if manifest is not None else json.dumps(described).encode()
    for name, content in (("data", data), ("manifest.json", text)):
        with world.objects.writer(f"jobs/{job}/g/1/final/000001/{name}", 10**8) as writer:
            writer.write(content)
            writer.finish()


def crash(world: World, *jobs_: UUID) -> None:
    for job in jobs_:
        for machine in world.alive(job):
            world.provider.end(machine.provider_id, "crashed")


def attempt_states(world: World, job: UUID) -> list[str]:
    with world.store.read() as db:
        return list(db.sql.scalars(select(AttemptRow.state).where(AttemptRow.job == job).order_by(AttemptRow.number)))


def corrupt_spec(world: World, job: UUID) -> None:
    world.store.write(
        lambda db: db.execute(update(JobRow).where(JobRow.id == job).values(spec={"resources": {"nodes": "?"}}))
    )


def corrupt_exits(world: World, job: UUID) -> None:
    broken = update(MemberRow).where(MemberRow.job == job).values(exited_at=world.clock.now, exits=[{"rank": "?"}])
    world.store.write(lambda db: db.execute(broken))


@pytest.mark.parametrize("corrupt", [corrupt_spec, corrupt_exits])
def test_an_attempt_whose_rows_cannot_be_read_keeps_no_other_from_being_served(
    world: World, corrupt: Callable[[World, UUID], None], caplog: pytest.LogCaptureFixture
):
    broken, *others = running(world, 3)
    queued = [world.submit(nodes=4)]
    corrupt(world, broken)
    for job in others:
        world.exits(world.alive(job)[0].id, 1, "signal")
    before = {job: world.alive(job)[0].funded_until for job in (broken, *others)}
    world.clock.pass_(31)
    for job in (broken, *others):
        world.report(job)
    world.tick()
    assert [world.job(job).generation for job in (broken, *others)] == [1, 2, 2]
    assert [world.job(job).wait_reason for job in queued] == ["slots"]
    assert all(world.alive(job)[0].funded_until > before[job] for job in others)
    records = [one for one in caplog.records if one.levelno == logging.ERROR and str(broken) in one.getMessage()]
    assert records
    assert all(record.exc_info is not None for record in records)


def test_a_queued_job_that_cannot_be_read_keeps_no_other_from_starting(world: World, caplog: pytest.LogCaptureFixture):
    broken, sound = world.submit(), world.submit()
    corrupt_spec(world, broken)
    world.tick()
    assert [world.job(job).state for job in (broken, sound)] == ["queued", "launching"]
    assert str(broken) in caplog.text


def test_a_start_that_fails_keeps_no_other_job_from_starting(world: World):
    first, second, third = (world.submit() for _ in range(3))
    # An attempt that its job does not know of: it can neither be opened nor reopened.
    row = {"number": 1, "state": "closed", "plan": {}, "plan_version": 0, "opened_at": 0, "closed_at": 0}
    world.store.write(lambda db: db.insert_new(AttemptRow, job=second, trained=False, **row))
    world.tick()
    assert [world.job(job).state for job in (first, second, third)] == ["launching", "queued", "launching"]


@pytest.mark.any_database
@pytest.mark.parametrize("failure", [Unavailable("the object store is down"), RuntimeError("a mistake")])
def test_an_attempt_whose_checkpoint_cannot_be_looked_for_keeps_no_other_from_closing(world: World, failure: Exception):
    stuck, other = running(world)
    for job in (stuck, other):
        upload(world, job)
    sound = world.control_loop
    world.objects = FailingObjects(world, stuck, failure)
    world.control_loop = world.another_control_loop()
    crash(world, stuck, other)
    world.tick()
    assert attempt_states(world, stuck) == ["closing"]
    assert attempt_states(world, other) == ["closed", "open"]
    world.control_loop = sound
    world.tick(1)
    assert attempt_states(world, stuck) == ["closed", "open"]
    assert world.job(stuck).checkpoint is not None


@pytest.mark.any_database
def test_a_manifest_of_2_mib_is_adopted_and_the_other_attempts_are_served_in_the_same_tick(world: World):
    large, other = running(world)
    upload(world, large, padding=2 << 20)
    crash(world, large, other)
    world.tick()
    assert attempt_states(world, large) == attempt_states(world, other) == ["closed", "open"]
    assert world.job(large).checkpoint is not None


@pytest.mark.any_database
@pytest.mark.parametrize("flaw", ["too large", "not JSON", "incomplete"])
def test_a_manifest_that_is_too_large_or_damaged_is_refused_for_good(
    world: World, flaw: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(wire, "MAX_MANIFEST_BYTES", 4096)
    refused, other = running(world)
    if flaw == "too large":
        upload(world, refused, padding=4096)
    else:
        upload(world, refused, manifest=b"\xff{" if flaw == "not JSON" else b'{"format": 1}')
    crash(world, refused, other)
    world.tick()
    assert attempt_states(world, refused) == attempt_states(world, other) == ["closed", "open"]
    assert world.job(refused).checkpoint is None
    assert sum("is not adopted" in record.getMessage() for record in caplog.records) == 1


def test_a_machine_that_cannot_be_billed_keeps_no_other_from_being_settled(world: World):
    broken, other = running(world)
    world.clock.pass_(10)
    for job in (broken, other):
        assert world.commit(world.alive(job)[0].id, 1, 50, "final")
    world.store.write(lambda db: db.execute(update(MachineRow).where(MachineRow.job == broken).values(price="?")))
    for job in (broken, other):
        leave(world, job)
    assert [world.job(job).settled_at is not None for job in (broken, other)] == [False, True]
    world.store.write(lambda db: db.execute(update(MachineRow).where(MachineRow.job == broken).values(price="0.1")))
    world.tick(1)
    assert world.job(broken).settled_at is not None


@pytest.mark.any_database
def test_a_failure_that_repeats_is_logged_once_a_minute_with_its_count(world: World, caplog: pytest.LogCaptureFixture):
    (broken,) = running(world, 1)
    corrupt_exits(world, broken)
    for _ in range(61):
        world.report(broken)
        world.tick(1)
    told = [one.getMessage() for one in caplog.records if f"failures of job {broken}" in one.getMessage()]
    assert len(told) == 2
    assert "failure 1 in a row" in told[0]
    assert "failure 61 in a row" in told[1]


def test_a_database_outage_ends_the_tick_at_once(world: World):
    first, second = running(world)
    crash(world, first, second)
    world.objects = FailingObjects(world, first, DatabaseUnavailable("the database is down"))
    world.control_loop = world.another_control_loop()
    upload(world, first)
    with pytest.raises(DatabaseUnavailable):
        world.tick()
    assert attempt_states(world, second) == ["closing"]
