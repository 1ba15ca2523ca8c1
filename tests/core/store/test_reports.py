# SPDX-License-Identifier: Apache-2.0
"""Each batch is stored once, in its turn, and counts for the job as far as it is the present generation's."""

from __future__ import annotations

import base64
import math
from typing import Any
from uuid import UUID

import pytest
from shoestring_core import wire
from shoestring_core.decide.timeouts import S
from shoestring_core.errors import BatchGap, InvalidRequest, NotFound
from shoestring_core.store import logs, metrics, reports
from shoestring_core.store.fleet import gangs
from shoestring_core.store.tables import GenerationRow, JobRow, MachineRow
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import attempts
from sqlalchemy import update

from tests.core.world import Fleet, meanwhile
from tests.statements import counted

QUOTA = 1000


@pytest.fixture
def running(fleet: Fleet) -> tuple[UUID, UUID]:
    """A job that trains, and its machine; another job trains beside it."""
    fleet.running()
    job, (machine,) = fleet.running()
    return job, machine


def send(fleet: Fleet, machine: UUID, seq: int, *, generation: int = 1, **fields: Any) -> int:
    batch = wire.ReportBatch(seq=seq, generation=generation, **fields)
    return fleet.write(reports.accept_batch, machine, batch, log_quota=QUOTA)


def series(name: str, *steps: int, at: float = 0.0, value: float | None = None) -> dict[str, Any]:
    values = [step / 2 if value is None else value for step in steps]
    return {"name": name, "steps": list(steps), "times": [at + step for step in steps], "values": values}


def log(text: bytes, offset: int = 0, rank: int = 0) -> dict[str, Any]:
    return {"rank": rank, "offset": offset, "data_b64": base64.b64encode(text).decode()}


def curve(fleet: Fleet, job: UUID, name: str = "loss") -> list[int]:
    return [step for one in fleet.read(metrics.load_curves, job, [name]) for step in one.steps]


def lines(fleet: Fleet, job: UUID) -> list[str]:
    return [line.text for line in fleet.read(logs.load_lines, job)[0]]


# Numbers


def test_batches_are_stored_in_their_order_and_once(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    for seq in (2, 3):
        with pytest.raises(BatchGap) as refused:
            send(fleet, machine, seq, points=[series("loss", 7)])
        assert refused.value.fields["expected"] == 1
        assert "Batch 1 is expected" in refused.value.message
    assert send(fleet, machine, 1, points=[series("loss", 1)]) == 1
    assert send(fleet, machine, 1, points=[series("loss", 8)]) == 1
    assert send(fleet, machine, 2, points=[series("loss", 2)]) == 2
    assert send(fleet, machine, 1, points=[series("loss", 9)]) == 2
    assert curve(fleet, job) == [1, 2]
    assert fleet.machine_row(machine).acked_seq == 2
    sent = [(one.data, one.generation) for one in fleet.events("batch")]
    assert sent == [({"source": str(machine), "seq": seq}, 1) for seq in (1, 2)]


def test_a_batch_takes_as_many_statements_however_much_it_has_and_came_before(fleet: Fleet) -> None:
    _, (machine,) = fleet.running()
    send(fleet, machine, 1, points=[series("loss", 0)], logs=[log(b"begun\n")])

    def count(seq: int, points: int, offset: int) -> tuple[int, int]:
        sent = {"points": [series("loss", *range(offset, offset + points))], "logs": [log(b"line\n" * points, offset)]}
        with counted(fleet.store) as statements:
            send(fleet, machine, seq, **sent)
        return statements.reads, len(statements.writes)

    first = count(2, points=1, offset=6)
    for _ in range(5):
        fleet.running()
    assert count(3, points=40, offset=11) == first
    assert count(4, points=1, offset=211) == first
    assert fleet.machine_row(machine).acked_seq == 4


def test_the_numbers_of_one_machine_are_not_those_of_another(fleet: Fleet) -> None:
    job, (first, second) = fleet.running(nodes=2)
    send(fleet, first, 1, points=[series("loss", 1)])
    assert send(fleet, second, 1, points=[series("loss", 2)]) == 1
    assert (fleet.machine_row(first).acked_seq, fleet.machine_row(second).acked_seq) == (1, 1)
    assert curve(fleet, job) == [1, 2]


def test_a_batch_that_arrives_twice_at_once_is_stored_once(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    theirs = update(MachineRow).where(MachineRow.id == machine).values(acked_seq=1)
    with meanwhile(fleet.store, "machines", theirs), pytest.raises(BatchGap) as refused:
        send(fleet, machine, 1, points=[series("loss", 1)])
    assert refused.value.fields["expected"] == 1, "it is sent again, and then found to be stored"
    assert curve(fleet, job) == []


def test_an_unknown_machine_is_not_found(fleet: Fleet) -> None:
    with pytest.raises(NotFound):
        send(fleet, uuid7(), 1)


def test_a_batch_without_points_and_logs_is_acknowledged_in_silence(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    before = fleet.job_row(job)
    assert send(fleet, machine, 1) == 1
    assert send(fleet, machine, 2, points=[{"name": "loss", "steps": [], "times": [], "values": []}]) == 2
    assert fleet.events("batch") == []
    assert fleet.job_row(job).last_step == before.last_step


def test_a_batch_is_read_as_it_was_reported(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    _, machine = running
    send(fleet, machine, 1, points=[series("loss", 1, 2)], logs=[log(b"one\ntwo\n")])
    points, text = fleet.read(reports.load_batch, machine, 1)
    assert [(one.name, one.steps, one.values) for one in points] == [("loss", [1, 2], [0.5, 1.0])]
    assert [line.text for line in text] == ["one", "two"]
    assert fleet.read(reports.load_batch, machine, 2) == ([], [])


# Points


def test_only_members_add_to_the_curves_of_a_generation(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    _, (stranger,) = fleet.running()
    for sender, generation in ((machine, 0), (machine, 2), (stranger, 2)):
        with pytest.raises(InvalidRequest):
            send(fleet, sender, 1, generation=generation, points=[series("loss", 1)])
    fleet.restart(job)
    with pytest.raises(InvalidRequest):
        send(fleet, stranger, 1, generation=2, points=[series("loss", 1)])
    assert send(fleet, machine, 1, generation=2, points=[series("loss", 1)]) == 1
    assert send(fleet, machine, 2, generation=7, points=[series("system/cpu", 1)]) == 2, "of no generation"


def test_a_machine_that_a_generation_goes_without_adds_nothing_to_its_curves(fleet: Fleet) -> None:
    job, (machine, other) = fleet.running(nodes="1..2")
    fleet.write(gangs.open_generation, job, 1, attempts.FewerMachines(1, 2), (0,))
    with pytest.raises(InvalidRequest):
        send(fleet, other, 1, generation=2, points=[series("loss", 1)])
    assert send(fleet, other, 1, generation=1, points=[series("loss", 1)]) == 1
    assert send(fleet, machine, 1, generation=2, points=[series("loss", 1)]) == 1


def test_a_gang_member_of_another_job_is_none_of_this_one(fleet: Fleet) -> None:
    _, (machine, other) = fleet.running(nodes=2)
    lone, (own,) = fleet.running()
    fleet.restart(lone)
    with pytest.raises(InvalidRequest):
        send(fleet, other, 1, generation=2, points=[series("loss", 1)])
    assert send(fleet, own, 1, generation=1, points=[series("loss", 1)]) == 1
    assert send(fleet, machine, 1, generation=1, points=[series("loss", 1)]) == 1


def test_progress_only_grows(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    assert fleet.generation_row(job).last_step is None
    send(fleet, machine, 1, points=[series("loss", 0)])
    assert fleet.generation_row(job).last_step == 0
    send(fleet, machine, 2, points=[series("loss", 3, 5), series("val", 4)])
    send(fleet, machine, 3, points=[series("val", 2)])
    assert (fleet.generation_row(job).last_step, fleet.job_row(job).last_step) == (5, 5)
    fleet.restart(job)
    send(fleet, machine, 4, generation=2, points=[series("loss", 1)])
    assert (fleet.generation_row(job, 1).last_step, fleet.generation_row(job, 2).last_step) == (5, 1)
    assert fleet.job_row(job).last_step == 5
    (bystander,) = {row.job for row in fleet.events("job")} - {job}
    assert (fleet.job_row(bystander).last_step, fleet.generation_row(bystander).last_step) == (0, None)


def test_a_job_shows_the_latest_values_of_so_many_series(
    fleet: Fleet, running: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 2)
    job, machine = running
    send(fleet, machine, 1, points=[series("a", 1), series("b", 1)])
    send(fleet, machine, 2, points=[series("b", 2), series("c", 2)])
    assert fleet.job_row(job).latest == {"a": 0.5, "b": 1.0}


def test_the_latest_values_are_none_of_steps_that_were_rolled_back(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    send(fleet, machine, 1, points=[series("loss", 4, 2), series("val", 3)])
    assert fleet.job_row(job).latest == {"loss": 2.0, "val": 1.5}
    fleet.restart(job)
    assert fleet.job_row(job).latest == {}, "there is no checkpoint: every step is rolled back"
    send(fleet, machine, 2, generation=1, points=[series("loss", 9), series("epoch", 9, value=9.0)])
    assert fleet.job_row(job).latest == {}
    assert fleet.job_row(job).last_epoch_milli is None
    send(fleet, machine, 3, generation=2, points=[series("loss", 1)])
    assert fleet.job_row(job).latest == {"loss": 0.5}


def test_an_epoch_that_makes_no_sense_is_kept_as_a_point_alone(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    send(fleet, machine, 1, points=[series("epoch", 0, value=0.0)])
    assert fleet.job_row(job).last_epoch_milli == 0
    send(fleet, machine, 2, points=[series("epoch", 1, value=2.5)])
    for step, epoch in enumerate([-0.001, 2.0**40, math.nan, math.inf, -math.inf], start=2):
        send(fleet, machine, step + 1, points=[series("epoch", step, value=epoch)])
        assert fleet.job_row(job).last_epoch_milli == 2500
    assert curve(fleet, job, "epoch") == [1, 2, 3, 4, 5, 6]


def test_numbers_about_a_machine_are_no_progress(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    send(fleet, machine, 1, points=[series("system/cpu", 500)])
    row = fleet.job_row(job)
    assert (row.last_step, row.first_step_at, row.latest) == (0, None, {})
    assert fleet.generation_row(job).last_step is None
    assert not fleet.attempt_row(job).trained
    assert len(fleet.events("batch")) == 1


# The first step


def test_the_first_points_mark_when_training_began(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    formed_at = fleet.generation_row(job).formed_at
    fleet.clock.pass_(20)
    send(fleet, machine, 1, points=[series("loss", 2, at=formed_at / S + 4), series("val", 1, at=formed_at / S + 2)])
    first_at = formed_at + 3 * S
    assert fleet.job_row(job).first_step_at == first_at
    assert fleet.generation_row(job).first_step_at == first_at
    assert fleet.attempt_row(job).trained
    fleet.clock.pass_(20)
    send(fleet, machine, 2, points=[series("loss", 3, at=formed_at / S)])
    assert fleet.job_row(job).first_step_at == fleet.generation_row(job).first_step_at == first_at
    (bystander,) = {row.job for row in fleet.events("job")} - {job}
    assert (fleet.job_row(bystander).first_step_at, fleet.generation_row(bystander).first_step_at) == (None, None)
    assert not fleet.attempt_row(bystander).trained
    fleet.restart(job)
    fleet.clock.pass_(20)
    send(fleet, machine, 3, generation=2, points=[series("loss", 1, at=fleet.clock.now / S - 5)])
    assert fleet.generation_row(job, 2).first_step_at == fleet.clock.now - 4 * S
    assert fleet.job_row(job).first_step_at == first_at


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(("measured", "expected"), [(0.0, 0), (-1e6, 0), (1e6, 20), (19.0, 19), (21.0, 20)])
def test_a_machines_clock_is_believed_between_the_generations_begin_and_now(
    fleet: Fleet, running: tuple[UUID, UUID], measured: float, expected: int
) -> None:
    """In seconds since the generation formed."""
    job, machine = running
    formed_at = fleet.generation_row(job).formed_at
    fleet.clock.pass_(20)
    at = max(0.0, formed_at / S + measured - 1)
    send(fleet, machine, 1, points=[series("loss", 1, at=at)])
    assert fleet.job_row(job).first_step_at == formed_at + expected * S


# Events


def test_events_of_agents_are_events_of_their_job(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    send(fleet, machine, 1, events=[{"kind": "gradient_overflow", "at": 12.5, "step": 3, "data": {"scale": 2}}])
    send(fleet, machine, 2, generation=0, events=[{"kind": "warning", "at": 1.0}])
    first, second = fleet.events("agent")
    assert {"at": 12.5, "step": 3, "scale": 2, "event": "gradient_overflow"}.items() <= first.data.items()
    assert (first.job, first.attempt, first.generation, first.actor) == (job, 1, 1, "agent")
    assert (second.generation, second.data["step"]) == (None, None)


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(("length", "cut"), [(19_900, False), (20_050, True)])
def test_a_long_event_is_cut(fleet: Fleet, running: tuple[UUID, UUID], length: int, cut: bool) -> None:
    _, machine = running
    text = "x" * length
    send(fleet, machine, 1, events=[{"kind": "warning", "at": 1.0, "step": 7, "data": {"text": text}}])
    (told,) = fleet.events("agent")
    assert (told.data["event"], told.data["at"], told.data["step"]) == ("warning", 1.0, 7)
    assert told.data.get("text") == (None if cut else text)
    assert len(told.data.get("truncated", "")) == (2000 if cut else 0)


def test_the_number_of_steps_comes_from_the_ranks_start(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running

    def total(seq: int, kind: str, steps: object) -> int | None:
        send(fleet, machine, seq, events=[{"kind": kind, "at": 1.0, "data": {"steps_total": steps}}])
        return fleet.job_row(job).steps_total

    assert total(1, "warning", 99) is None
    for seq, nonsense in enumerate([0, -3, 2**62, 2.5, "40", True, None], start=2):
        assert total(seq, "started", nonsense) is None
    assert [total(9, "started", 40), total(10, "started", 1), total(11, "started", 2**62 - 1)] == [40, 1, 2**62 - 1]
    send(fleet, machine, 12, events=[{"kind": "exporting", "at": 1.0, "step": 25, "data": {"steps_total": 7}}])
    assert fleet.job_row(job).steps_total == 25
    send(fleet, machine, 13, events=[{"kind": "exporting", "at": 1.0}])
    assert fleet.job_row(job).steps_total == 25


def test_when_training_began_is_noted_once_though_two_batches_come_at_once(
    fleet: Fleet, running: tuple[UUID, UUID]
) -> None:
    job, machine = running
    for table, row in (("jobs", JobRow.id), ("generations", GenerationRow.job)):
        fleet.alter(JobRow, JobRow.id == job, first_step_at=None)
        fleet.alter(GenerationRow, GenerationRow.job == job, first_step_at=None)
        first = update(row.class_).where(row == job).values(first_step_at=7)
        with meanwhile(fleet.store, table, first):
            send(fleet, machine, fleet.machine_row(machine).acked_seq + 1, points=[series("loss", 1)])
        noted = {"jobs": fleet.job_row(job), "generations": fleet.generation_row(job)}
        assert noted[table].first_step_at == 7


# Logs


@pytest.mark.any_database
def test_an_hour_of_the_quota_is_one_of_the_clock(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    fleet.clock.now = 500_000 * 3600 * S
    send(fleet, machine, 1, logs=[log(b"a" * 900)])
    for later, hour in ((3600 * S - 1, 500_000), (1, 500_001)):
        fleet.clock.now += later
        send(fleet, machine, fleet.machine_row(machine).acked_seq + 1, logs=[log(b"b", 900)])
        assert fleet.job_row(job).log_hour == hour


def test_logs_beyond_the_quota_of_an_hour_are_dropped(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    hour = reports.HOUR_US
    fleet.clock.now = (fleet.clock.now // hour + 1) * hour
    send(fleet, machine, 1, logs=[log(b"a" * 599 + b"\n"), log(b"b" * 299 + b"\n", rank=1)])
    assert (fleet.job_row(job).log_bytes, fleet.job_row(job).log_truncated) == (900, False)
    send(fleet, machine, 2, logs=[log(b"c" * 100 + b"\n", 600)], points=[series("loss", 1)])
    assert (fleet.job_row(job).log_bytes, fleet.job_row(job).log_truncated) == (900, True)
    send(fleet, machine, 3, logs=[log(b"d" * 99 + b"\n", 701)])
    assert fleet.job_row(job).log_bytes == 1000
    assert [line[0] for line in lines(fleet, job)] == ["a", "b", "d"]
    assert curve(fleet, job) == [1]
    fleet.clock.now += hour - 1
    send(fleet, machine, 4, logs=[log(b"e\n", 801)])
    assert len(lines(fleet, job)) == 3
    fleet.clock.now += 1
    send(fleet, machine, 5, logs=[log(b"f" * 99 + b"\n", 803)])
    row = fleet.job_row(job)
    assert (row.log_bytes, row.log_hour, row.log_truncated) == (100, fleet.clock.now // hour, True)
    send(fleet, machine, 6, logs=[log(b"g" * 99 + b"\n", 903)])
    assert fleet.job_row(job).log_bytes == 200
    assert [line[0] for line in lines(fleet, job)] == ["a", "b", "d", "f", "g"]


def test_a_batch_whose_logs_are_dropped_wakes_no_viewer(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    _, machine = running
    assert send(fleet, machine, 1, logs=[log(b"x" * (QUOTA + 1))]) == 1
    assert fleet.events("batch") == []
    send(fleet, machine, 2, logs=[log(b"short\n", QUOTA + 1)])
    assert [one.data for one in fleet.events("batch")] == [{"source": str(machine), "seq": 2}]


def test_a_log_that_the_agent_had_to_drop_is_marked_too(fleet: Fleet, running: tuple[UUID, UUID]) -> None:
    job, machine = running
    send(fleet, machine, 1, events=[{"kind": "log_quota", "at": 1.0}])
    assert fleet.job_row(job).log_truncated
    assert fleet.job_row(job).log_bytes == 0
