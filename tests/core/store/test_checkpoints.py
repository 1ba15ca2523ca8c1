# SPDX-License-Identifier: Apache-2.0
"""Only the present generation moves its job's checkpoint, only forwards, and only with all points before it stored."""

from __future__ import annotations

import hashlib
from uuid import UUID

import pytest
from shoestring_core import wire
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.errors import AgentRefused, CheckpointAheadOfBatches, InvalidRequest, InvalidSpec, NotFound
from shoestring_core.events import CheckpointStored
from shoestring_core.states import JobState, StopReason
from shoestring_core.store import checkpoints, jobs
from shoestring_core.store.fleet import gangs
from shoestring_core.store.fleet.observations import load_tracked_machines
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.objects import ObjectInfo
from shoestring_core.store.tables import GenerationRow, JobRow, MachineRow, MemberRow
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import attempts
from shoestring_core.wording.agents import CheckpointSaved
from shoestring_core.wording.jobs import FinishedAtStep
from shoestring_core.wording.notices import CheckpointOutlastsNotice
from sqlalchemy import update

from tests.core.world import OFFER, Fleet, World, about, meanwhile


@pytest.fixture
def running(fleet: Fleet) -> tuple[UUID, UUID]:
    """A job that trains at step 100, and its machine; another job does as much beside it."""
    other, (theirs,) = fleet.running()
    fleet.train(other, 1000)
    fleet.commit(theirs, 1, 900)
    job, (machine,) = fleet.running()
    fleet.train(job, 100)
    return job, machine


def newest_step(fleet: Fleet, job: UUID) -> int | None:
    """The step from which the job would resume."""
    newest = fleet.read(checkpoints.load_newest, job)
    return newest and newest.step


def steps(fleet: Fleet, job: UUID) -> list[tuple[int, int]]:
    return [(row.generation, row.step) for row in fleet.checkpoint_rows(job)]


# The job's pointer


def test_a_checkpoint_becomes_the_jobs_newest(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    fleet.clock.pass_(3)
    assert fleet.commit(machine, 1, 40)
    (row,) = fleet.checkpoint_rows(job)
    assert fleet.job_row(job).checkpoint == row.id
    assert (row.step, row.generation, row.final, row.object_key) == (40, 1, False, f"jobs/{job}/g/1/final/000001")
    assert (row.bytes, row.manifest_sha, row.stored_at) == (50, f"{40:064d}", fleet.clock.now)
    (told,) = [one for one in fleet.events("checkpoint") if one.job == job]
    assert wire.from_stored(CheckpointStored, told.data) == CheckpointStored(
        checkpoint=row.id, step=40, bytes=50, promoted=True, final=False
    )
    assert (told.attempt, told.generation) == (1, 1)
    assert told.reason == CheckpointSaved("periodic", 40).as_json()


def test_the_first_checkpoint_of_a_generation_tells_that_a_notice_is_too_short_for_it(
    fleet: Fleet, running: tuple[UUID, UUID]
) -> None:
    job, machine = running
    fleet.write(save_offers, "local", [OFFER], Timeouts(notice=115 * S))
    fleet.commit(machine, 1, 20, save_s=115.5)
    fleet.commit(machine, 1, 40, save_s=500.0)
    fleet.train(job, 200)
    fleet.restart(job)
    fleet.commit(machine, 2, 60)  # by an agent that doesn't measure
    fleet.restart(job)
    fleet.commit(machine, 3, 80, "final", save_s=500.0)  # nothing is left to lose
    told = [one.reason["facts"]["outlasts_notice"] for one in fleet.events("checkpoint") if one.job == job]
    assert told == [CheckpointOutlastsNotice("this_run", "local.cpu", 30, 115.5, 115.0).as_json(), None, None, None]
    assert [row.save_ms for row in fleet.checkpoint_rows(job)] == [115_500, 500_000, None, 500_000]


def test_a_machine_whose_job_stops_may_take_as_long_as_its_newest_checkpoint_took(
    fleet: Fleet, running: tuple[UUID, UUID]
) -> None:
    job, machine = running

    def save_time() -> int:
        (tracked,) = [one for one in fleet.read(load_tracked_machines, OFFER.provider) if one.id == machine]
        return tracked.save_time

    fleet.commit(machine, 1, 20, save_s=500.0)
    fleet.commit(machine, 1, 40, save_s=115.5)
    assert save_time() == 0
    fleet.write(jobs.stop, job, "fleet", "pause", stop_reason=StopReason.BUDGET, reason=FinishedAtStep(40))
    fleet.write(gangs.begin_stopping, job)
    assert fleet.job_row(job).state == JobState.STOPPING
    assert save_time() == 115.5 * S


def test_the_pointer_never_goes_backwards(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    assert fleet.commit(machine, 1, 40)
    assert not fleet.commit(machine, 1, 39)
    assert newest_step(fleet, job) == 40
    assert steps(fleet, job) == [(1, 39), (1, 40)], "kept as history"
    assert fleet.commit(machine, 1, 40, "order")
    assert fleet.commit(machine, 1, 41)
    assert newest_step(fleet, job) == 41


def test_a_checkpoint_before_the_first_step_is_the_jobs_and_is_not_adopted(
    fleet: Fleet, running: tuple[UUID, UUID]
) -> None:
    """It has nothing that a run from the beginning hasn't."""
    job, machine = running
    place = stranded(fleet, job)
    assert not fleet.write(checkpoints.adopt_upload, place, manifest(place, 0), "a" * 64)
    assert fleet.commit(machine, 1, 0)
    assert newest_step(fleet, job) == 0


def test_an_older_generation_does_not_move_the_pointer(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    fleet.commit(machine, 1, 40)
    fleet.restart(job)
    assert not fleet.commit(machine, 1, 90, nonce="000002")
    assert newest_step(fleet, job) == 40
    assert fleet.commit(machine, 2, 41)
    assert newest_step(fleet, job) == 41


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("state", ["forming", "ended"])
def test_a_generation_that_does_not_run_does_not_move_the_pointer(
    fleet: Fleet, running: tuple[UUID, UUID], state: str
) -> None:
    job, machine = running
    fleet.alter(GenerationRow, GenerationRow.job == job, state=state)
    assert not fleet.commit(machine, 1, 40)
    assert (newest_step(fleet, job), steps(fleet, job)) == (None, [(1, 40)])
    assert not fleet.commit(machine, 1, 50, "final", nonce="000002")
    assert fleet.job_row(job).state == "running"


def test_a_generation_that_its_job_has_left_does_not_move_the_pointer(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    """Even if nothing has ended it."""
    job, machine = running
    fleet.alter(JobRow, JobRow.id == job, generation=2)
    assert not fleet.commit(machine, 1, 40, "final")
    assert (newest_step(fleet, job), fleet.job_row(job).state) == (None, "running")


def test_a_checkpoint_of_a_job_that_has_ended_is_history(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    fleet.commit(machine, 1, 40, "final")
    assert not fleet.commit(machine, 1, 50)
    assert newest_step(fleet, job) == 40


def test_jobs_that_store_the_same_steps_have_checkpoints_of_their_own(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    other, (theirs,) = fleet.running()
    for step, reason in ((40, "periodic"), (50, "periodic"), (50, "order")):
        for one in (theirs, machine):
            assert fleet.commit(one, 1, step, reason)
    assert steps(fleet, job) == steps(fleet, other) == [(1, 40), (1, 50)]
    assert [fleet.read(checkpoints.load_newest, one).job for one in (job, other)] == [job, other]


def test_a_generation_that_opens_meanwhile_keeps_its_start(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    opens = update(JobRow).where(JobRow.id == job).values(generation=2)
    with meanwhile(fleet.store, "jobs", opens, skip=1):
        fleet.commit(machine, 1, 40)
    assert fleet.job_row(job).checkpoint is None


# What is committed


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(("through", "stored"), [(3, 2), (1, 0)])
def test_points_come_before_their_checkpoint(
    fleet: Fleet, running: tuple[UUID, UUID], through: int, stored: int
) -> None:
    job, machine = running
    fleet.alter(MachineRow, MachineRow.id == machine, acked_seq=stored)
    with pytest.raises(CheckpointAheadOfBatches) as refused:
        fleet.commit(machine, 1, 40, through_seq=through)
    assert refused.value.fields["expected"] == stored + 1
    assert newest_step(fleet, job) is None
    fleet.alter(MachineRow, MachineRow.id == machine, acked_seq=through)
    assert fleet.commit(machine, 1, 40, through_seq=through)


def test_only_members_of_a_generation_commit_for_it(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    _, (stranger,) = fleet.running()
    for outsider, generation in ((machine, 2), (machine, 0)):
        with pytest.raises(AgentRefused):
            fleet.commit(outsider, generation, 40)
    fleet.restart(job)
    with pytest.raises(AgentRefused):
        fleet.commit(stranger, 2, 40)
    with pytest.raises(AgentRefused):
        fleet.commit(uuid7(), 1, 40)


def test_only_the_upload_that_was_offered_is_committed(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    for nonce in ("000000", "000002", "1", "00001", "0000001"):
        if nonce == "000000":
            assert not fleet.commit(machine, 1, 40, nonce=nonce), "as if it had been replaced"
            continue
        with pytest.raises(InvalidRequest):
            fleet.commit(machine, 1, 40, nonce=nonce)
    assert steps(fleet, job) == []
    for step in range(1, 12):
        assert fleet.commit(machine, 1, step)
    assert fleet.read(checkpoints.next_upload_target, machine) == checkpoints.Upload(
        1, "000012", f"jobs/{job}/g/1/final/000012"
    )


def test_the_same_commit_again_answers_the_same(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    for _ in range(2):
        assert fleet.commit(machine, 1, 40, nonce="000001")
    fleet.commit(machine, 1, 50)
    assert not fleet.commit(machine, 1, 40, nonce="000001"), "another is the newest now"
    assert steps(fleet, job) == [(1, 40), (1, 50)]
    assert len([one for one in fleet.events("checkpoint") if one.job == job]) == 2


def test_a_second_upload_of_a_step_replaces_the_first(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    fleet.commit(machine, 1, 40)
    (first,) = fleet.checkpoint_rows(job)
    fleet.clock.pass_(5)
    assert fleet.commit(machine, 1, 40, "final", manifest_sha256="f" * 64, bytes=77)
    (second,) = fleet.checkpoint_rows(job)
    assert (second.id, second.final, second.bytes, second.manifest_sha) == (first.id, True, 77, "f" * 64)
    assert (second.object_key, second.stored_at) == (f"jobs/{job}/g/1/final/000002", fleet.clock.now)
    assert not fleet.commit(machine, 1, 40, nonce="000001"), "long replaced"
    fleet.commit(machine, 1, 40, nonce="000003")
    assert fleet.checkpoint_rows(job)[0].final, "its artifacts stay"


# The end of a run


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    ("result", "end"),
    [
        ({"val/acc": 0.98, "goal_reached": True}, "goal_reached"),
        ({"val/acc": 0.98, "goal_reached": False}, "succeeded"),
        ({"goal_reached": "yes"}, "succeeded"),
        ({"val/acc": 0.98}, "succeeded"),
        (None, "succeeded"),
    ],
)
def test_a_final_checkpoint_ends_the_job_with_its_result(
    fleet: Fleet, running: tuple[UUID, UUID], result: dict[str, object] | None, end: str
) -> None:
    job, machine = running
    fleet.clock.pass_(7)
    assert fleet.requests_tick(lambda: fleet.commit(machine, 1, 60, "final", result=result))
    row, attempt = fleet.job_row(job), fleet.attempt_row(job)
    assert (row.state, row.end_reason, row.result, row.ended_at) == ("ended", end, result, fleet.clock.now)
    assert row.last_step == (60 if result else 0)
    assert (attempt.state, attempt.reason, attempt.closed_at, attempt.trained) == (
        "closing", "finished", fleet.clock.now, True,
    )  # fmt: skip
    assert fleet.checkpoint_rows(job)[0].final
    assert [one.reason for one in fleet.events("job") if one.job == job][-1] == FinishedAtStep(60).as_json()
    (told,) = [one for one in fleet.events("checkpoint") if one.job == job]
    assert told.data["final"]


def test_only_a_final_checkpoint_has_a_result(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    assert fleet.commit(machine, 1, 40, "periodic", result={"val/acc": 0.1})
    row = fleet.job_row(job)
    assert (row.state, row.result, row.last_step) == ("running", None, 0)


def test_the_end_of_one_job_closes_no_other_attempt(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    bystander, _ = fleet.running()
    fleet.commit(running[1], 1, 60, "final")
    assert fleet.attempt_row(bystander).state == "open"


def test_an_attempt_that_is_closing_already_keeps_its_reason(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    fleet.write(jobs.stop, job, "ann")
    fleet.write(gangs.begin_stopping, job)
    assert fleet.commit(machine, 1, 60, "final")
    assert (fleet.attempt_row(job).reason, fleet.job_row(job).end_reason) == ("stop", "succeeded")


# Where the next one goes


def test_rank_0_of_the_generation_that_runs_uploads(fleet: Fleet) -> None:
    job = fleet.start(nodes=2)
    first, second = fleet.launch(job)
    assert fleet.read(checkpoints.next_upload_target, first) is None
    fleet.form(job)
    assert fleet.read(checkpoints.next_upload_target, first) == checkpoints.Upload(
        1, "000001", f"jobs/{job}/g/1/final/000001"
    )
    assert fleet.read(checkpoints.next_upload_target, second) is None
    fleet.train(job, 10)
    fleet.commit(first, 1, 10)
    fleet.write(gangs.open_generation, job, 1, attempts.RankKilled(0))
    assert fleet.read(checkpoints.next_upload_target, first) is None, "no generation has formed"
    fleet.form(job)
    assert fleet.read(checkpoints.next_upload_target, first) == checkpoints.Upload(
        2, "000001", f"jobs/{job}/g/2/final/000001"
    )


def test_a_machine_that_is_a_member_no_longer_or_not_yet_uploads_nothing(
    fleet: Fleet, running: tuple[UUID, UUID]
) -> None:
    job, (first, _) = fleet.running(nodes=2)
    fleet.restart(job)
    replaced = (MemberRow.job == job, MemberRow.generation == 2, MemberRow.machine == first)
    fleet.alter(MemberRow, *replaced, machine=running[1])
    assert fleet.read(checkpoints.next_upload_target, first) is None, "rank 0 of an earlier generation"
    with pytest.raises(AgentRefused):
        fleet.commit(first, 2, 40)
    forming = fleet.start()
    (soon,) = fleet.launch(forming)
    fleet.register(soon)
    assert fleet.generation_row(forming).state == "forming"
    assert fleet.read(checkpoints.next_upload_target, soon) is None


# Which one is used


def test_artifacts_come_from_the_newest_generation(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    _, (others,) = fleet.running()
    assert fleet.commit(others, 1, 95, "final")
    assert fleet.read(checkpoints.newest_final, job) is None
    fleet.alter(GenerationRow, GenerationRow.job == job, state="ended")
    fleet.commit(machine, 1, 90, "final")
    fleet.restart(job)
    assert fleet.read(checkpoints.newest_final, job).step == 90
    fleet.alter(GenerationRow, GenerationRow.number == 2, state="ended")
    for number, (step, reason) in enumerate([(50, "final"), (60, "final"), (95, "periodic")], start=1):
        fleet.commit(machine, 2, step, reason, nonce=f"{number:06d}")
    found = fleet.read(checkpoints.newest_final, job)
    assert (found.generation, found.step) == (2, 60)


def test_rolling_back_uses_the_newest_checkpoint_of_the_present_course(
    fleet: Fleet, running: tuple[UUID, UUID]
) -> None:
    job, machine = running

    def before(step: int) -> tuple[int, int] | None:
        found = fleet.read(lambda db: checkpoints.newest_before(db, fleet.job_row(job), step))
        return found and (found.generation, found.step)

    assert before(100) is None
    _, (others,) = fleet.running()
    fleet.commit(others, 1, 5)
    for step in (10, 20, 30):
        fleet.commit(machine, 1, step)
    assert [before(step) for step in (10, 11, 20, 21, 31)] == [None, (1, 10), (1, 10), (1, 20), (1, 30)]
    third = fleet.checkpoint_rows(job)[2]
    fleet.alter(JobRow, JobRow.id == job, checkpoint=fleet.checkpoint_rows(job)[0].id)
    fleet.restart(job)
    fleet.train(job, 40)
    assert before(100) == (1, 10), "20 and 30 are not part of the curve any more"
    fleet.commit(machine, 2, 20)
    assert before(21) == (2, 20)
    fleet.alter(GenerationRow, GenerationRow.job == job, GenerationRow.number == 1, start_checkpoint=third.id)
    assert before(10) == (1, 30), "what the first generation started from"


def test_a_job_without_a_checkpoint_initializes_no_other(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    with pytest.raises(InvalidSpec) as refused:
        fleet.read(checkpoints.load_for_init, fleet.team, job)
    assert str(job) in str(refused.value)
    fleet.commit(machine, 1, 40)
    assert fleet.read(checkpoints.load_for_init, fleet.team, job).step == 40
    with pytest.raises(NotFound):
        fleet.read(checkpoints.load_for_init, World(fleet.store).team, job)


# Uploads whose machine died before it could commit them


def manifest(place: checkpoints.StrandedUpload, step: int, **fields: object) -> checkpoints.Manifest:
    content = {
        "format": 1, "job": place.job, "generation": place.generation, "step": step, "bytes": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(), "parts": [],
    }  # fmt: skip
    return checkpoints.Manifest(**content | fields)


@pytest.mark.parametrize(
    ("size", "checksum", "described"),
    [(7, "sha256:s", True), (7, "crc64nvme:c", True), (8, "sha256:s", False), (7, "sha256:c", False)],
)
def test_a_manifest_describes_data_of_its_size_and_its_checksum(size: int, checksum: str, described: bool) -> None:
    place = checkpoints.StrandedUpload(uuid7(), 1, "key", 100)
    one = manifest(place, 40, sha256="s", crc64nvme="c")
    assert one.describes(ObjectInfo(size, checksum)) is described


def test_a_part_of_a_manifest_may_end_with_the_data_and_not_after_it() -> None:
    place = checkpoints.StrandedUpload(uuid7(), 1, "key", 100)
    part = {"name": "weights", "offset": 3, "bytes": 4, "sha256": "0" * 64}
    assert manifest(place, 40, parts=[part]).parts == [checkpoints.Part(**part)]
    with pytest.raises(ValueError, match="part weights ends after the data"):
        manifest(place, 40, parts=[part | {"offset": 4}])


def test_no_two_parts_of_a_manifest_have_the_same_name() -> None:
    place = checkpoints.StrandedUpload(uuid7(), 1, "key", 100)
    part = {"name": "weights", "offset": 0, "bytes": 3, "sha256": "0" * 64}
    assert len(manifest(place, 40, parts=[part, part | {"name": "state"}]).parts) == 2
    with pytest.raises(ValueError, match="two parts have the same name"):
        manifest(place, 40, parts=[part, part | {"offset": 3}])


@pytest.mark.parametrize("value", [-1, 0])
@pytest.mark.parametrize("field", ["step", "bytes"])
def test_a_manifest_counts_steps_and_bytes_from_zero(field: str, value: int) -> None:
    place = checkpoints.StrandedUpload(uuid7(), 1, "key", 100)
    if value == 0:
        assert getattr(manifest(place, **{"step": 40, field: value}), field) == 0
    else:
        with pytest.raises(ValueError, match="greater than or equal to 0"):
            manifest(place, **{"step": 40, field: value})


@pytest.mark.parametrize("value", [-1, 0])
@pytest.mark.parametrize("field", ["offset", "bytes"])
def test_a_part_of_a_manifest_counts_bytes_from_zero(field: str, value: int) -> None:
    part = {"name": "weights", "offset": 3, "bytes": 4, "sha256": "0" * 64, field: value}
    if value == 0:
        assert getattr(checkpoints.Part(**part), field) == 0
    else:
        with pytest.raises(ValueError, match="greater than or equal to 0"):
            checkpoints.Part(**part)


def stranded(fleet: Fleet, job: UUID, attempt: int = 1) -> checkpoints.StrandedUpload | None:
    return fleet.read(checkpoints.find_stranded_upload, job, attempt)


def test_an_upload_is_looked_for_where_the_last_generation_left_it(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    place = checkpoints.StrandedUpload(job, 1, f"jobs/{job}/g/1/final/000001", 100)
    assert stranded(fleet, job) == place
    assert stranded(fleet, job, 2) is None
    fleet.commit(machine, 1, 40)
    assert stranded(fleet, job).key == f"jobs/{job}/g/1/final/000002"
    fleet.alter(GenerationRow, GenerationRow.job == job, last_step=None)
    assert stranded(fleet, job) is None, "no point is stored"
    fleet.train(job, 0)
    assert stranded(fleet, job).last_step == 0
    for state in ("forming", "ended"):
        fleet.alter(GenerationRow, GenerationRow.job == job, state=state)
        assert stranded(fleet, job) is None


def test_no_upload_is_looked_for_once_the_job_has_ended(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    fleet.commit(machine, 1, 60, "final")
    assert stranded(fleet, job) is None
    never_formed = fleet.start()
    assert stranded(fleet, never_formed) is None


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("step", [41, 100])
def test_an_upload_that_is_complete_is_adopted(fleet: Fleet, running: tuple[UUID, UUID], step: int) -> None:
    job, machine = running
    fleet.commit(machine, 1, 40)
    place = stranded(fleet, job)
    fleet.clock.pass_(9)
    assert fleet.write(checkpoints.adopt_upload, place, manifest(place, step), "a" * 64)
    _, row = fleet.checkpoint_rows(job)
    assert fleet.job_row(job).checkpoint == row.id
    assert (row.step, row.generation, row.final, row.object_key) == (step, 1, False, place.key)
    assert (row.bytes, row.manifest_sha, row.stored_at) == (7, "a" * 64, fleet.clock.now)
    told = [one for one in fleet.events("checkpoint") if one.job == job][-1]
    assert {"step": step, "bytes": 7, "promoted": True}.items() <= told.data.items()
    assert (told.attempt, told.generation, about(told)) == (1, 1, str(row.id))
    assert told.reason == CheckpointSaved("adopted", step).as_json()
    assert (fleet.job_row(job).result, fleet.job_row(job).last_step) == (None, 0)
    assert not fleet.write(checkpoints.adopt_upload, place, manifest(place, step), "a" * 64)


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("step", [39, 40, 101])
def test_an_upload_without_its_points_or_older_than_the_newest_is_not_adopted(
    fleet: Fleet, running: tuple[UUID, UUID], step: int
) -> None:
    job, machine = running
    fleet.commit(machine, 1, 40)
    place = stranded(fleet, job)
    assert not fleet.write(checkpoints.adopt_upload, place, manifest(place, step), "a" * 64)
    assert steps(fleet, job) == [(1, 40)]
    assert newest_step(fleet, job) == 40


def test_an_upload_of_a_step_that_is_history_is_not_adopted(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    fleet.commit(machine, 1, 60)
    fleet.alter(JobRow, JobRow.id == job, checkpoint=None)
    place = stranded(fleet, job)
    assert not fleet.write(checkpoints.adopt_upload, place, manifest(place, 60), "a" * 64)
    assert fleet.write(checkpoints.adopt_upload, place, manifest(place, 50), "a" * 64)


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize("fields", [{"job": UUID(int=1)}, {"generation": 2}])
def test_an_upload_that_belongs_elsewhere_is_not_adopted(
    fleet: Fleet, running: tuple[UUID, UUID], fields: dict[str, object]
) -> None:
    place = stranded(fleet, running[0])
    assert not fleet.write(checkpoints.adopt_upload, place, manifest(place, 50, **fields), "a" * 64)
    assert steps(fleet, running[0]) == []


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    "since", ["the generation ended", "another generation runs", "the job left it", "the job ended"]
)
def test_an_upload_that_was_found_too_late_is_not_adopted(fleet: Fleet, running: tuple[UUID, UUID], since: str) -> None:
    job, machine = running
    place = stranded(fleet, job)
    if since == "the generation ended":
        fleet.alter(GenerationRow, GenerationRow.job == job, state="ended")
    elif since == "another generation runs":
        fleet.restart(job)
    elif since == "the job left it":
        fleet.alter(JobRow, JobRow.id == job, generation=2)
    else:
        fleet.commit(machine, 1, 20, "final")
    before = fleet.job_row(job).checkpoint
    assert not fleet.write(checkpoints.adopt_upload, place, manifest(place, 50), "a" * 64)
    assert fleet.job_row(job).checkpoint == before
