# SPDX-License-Identifier: Apache-2.0
"""What the spool promises: whole numbers, batches the service can take, nothing lost to an agent's death."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from shoestring_core.wire import MAX_BATCH_BYTES, ReportBatch, ReportRequest
from shoestring_trainer.agent import rank_output
from shoestring_trainer.agent import spool as module
from shoestring_trainer.agent.rank_output import RankOutputCollector
from shoestring_trainer.agent.spool import Spool


def open_spool(folder: Path) -> Spool:
    for name in ("spool", "rejected"):
        (folder / name).mkdir(exist_ok=True)
    return Spool(folder / "spool", folder / "rejected")


def drain(spool: Spool) -> list[ReportBatch]:
    spool.seal()
    batches = []
    while batch := spool.oldest():
        assert len(batch.model_dump_json().encode()) < MAX_BATCH_BYTES * 9 // 10
        batches.append(batch)
        spool.acknowledge(batch.seq)
    return batches


def test_much_is_split_into_batches_that_are_small_enough_and_in_order(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.begin_generation(1)
    for step in range(30_000):
        spool.add_points(step, 1e9 + step, {"loss": 1 / 3, "läng": float("nan")})
    for offset in range(0, 3 << 20, 64 << 10):
        spool.add_log(0, offset, b"\xff" * (64 << 10))
    for number in range(5_000):
        spool.add_event("warning", {"number": number})
    batches = drain(spool)
    assert [batch.seq for batch in batches] == list(range(1, len(batches) + 1))
    assert [step for b in batches for s in b.points if s.name == "loss" for step in s.steps] == list(range(30_000))
    assert sum(len(base64.b64decode(chunk.data_b64)) for b in batches for chunk in b.logs) == 3 << 20
    assert [event.data["number"] for b in batches for event in b.events] == list(range(5_000))


def test_a_batch_holds_one_generation_and_steps_never_decrease_in_it(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.begin_generation(1)
    spool.add_points(5, 1.0, {"loss": 1.0})
    spool.add_points(4, 2.0, {"loss": 2.0})
    spool.begin_generation(2)
    spool.add_points(4, 3.0, {"loss": 3.0})
    sent = [(batch.generation, batch.points[0].steps) for batch in drain(spool)]
    assert sent == [(1, [5]), (1, [4]), (2, [4])]


def test_a_successor_goes_on_with_the_next_number_and_the_reader_state_of_the_last_batch(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.begin_generation(7)
    spool.reader_state.files = {"metrics": 10}
    spool.add_event("first", {})
    spool.seal()
    spool.reader_state.files = {"metrics": 20}
    spool.add_event("second", {})
    spool.seal()
    spool.acknowledge(2)
    spool.reader_state.files = {"metrics": 30}  # read, but never sealed
    successor = open_spool(tmp_path)
    assert successor.reader_state.files == {"metrics": 20}
    assert successor.generation == 7
    successor.acknowledge(2)  # as the service tells at register
    successor.add_event("third", {})
    assert [(batch.seq, batch.events[0].kind) for batch in drain(successor)] == [(3, "third")]


@pytest.mark.parametrize(
    "line",
    [
        {"event": "\ud800", "t": 1},
        {"event": "", "t": 1},
        {"event": "x" * 99, "t": 1},
        {"event": "x", "t": -1},
        {"event": "x", "t": 1e300},
        {"event": "x", "t": 10**400},
        {"event": "x", "t": 1, "loss": float("nan"), "\udfff": 1},
        *({"event": "x", "t": 1, "nested": json.loads("[" * levels + "]" * levels)} for levels in (150, 190, 230, 300)),
    ],
)
def test_whatever_a_rank_writes_is_sent_or_a_warning(tmp_path: Path, line: dict[str, Any]) -> None:
    """A hook may log anything as an event; the agent outlives it."""
    spool, run = open_spool(tmp_path), tmp_path / "gen/1"
    run.mkdir(parents=True)
    (run / "events.jsonl").write_text(f"{json.dumps(line)}\n")
    collector = RankOutputCollector(tmp_path, spool)
    collector.follow(run, [0])
    for event in collector.read():
        spool.add_event(event.name, event.data, at=event.at)
    (batch,) = drain(spool)
    sent = ReportRequest.model_validate_json(ReportRequest(batch=batch).model_dump_json())
    assert sent.batch is not None
    assert len(sent.batch.events) == 1


def test_a_rejected_batch_keeps_its_number_and_its_payload(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.add_event("poison", {})
    spool.seal()
    assert spool.set_aside(1, "too large")
    assert not spool.set_aside(1, "still too large")
    assert [(batch.seq, batch.events[0].kind) for batch in drain(spool)] == [(1, "rejected")]
    aside = json.loads((tmp_path / "rejected/000000001.json").read_text())
    assert aside["events"][0]["kind"] == "poison"


def test_logs_stop_when_too_much_waits_but_points_never_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNSENT_BYTES_WITH_LOGS", 1000)
    spool = open_spool(tmp_path)
    assert spool.accepts_logs
    spool.add_log(0, 0, b"x" * 2000)
    spool.seal()
    assert not spool.accepts_logs
    spool.add_points(1, 1.0, {"loss": 1.0})
    assert len(drain(spool)) == 2
    assert spool.accepts_logs


def test_a_file_that_was_torn_costs_only_itself(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    for kind in ("first", "second"):
        spool.add_event(kind, {})
        spool.seal()
    (tmp_path / "spool/000000001.json").write_text('{"batch": {"se')
    successor = open_spool(tmp_path)
    successor.resend_from(1)
    sent = [(batch.seq, batch.events[0].kind) for batch in drain(successor)]
    assert sent == [(1, "warning"), (2, "second")]


def test_too_many_log_lines_of_an_hour_stay_on_the_machine_and_that_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, now = open_spool(tmp_path), [3600.0 * 400_000]
    spool.begin_generation(1)
    monkeypatch.setattr(rank_output.time, "time", lambda: now[0])
    monkeypatch.setattr(rank_output, "LOG_BYTES_PER_HOUR", 200_000)
    (run := tmp_path / "gen" / "1").mkdir(parents=True)
    collector = RankOutputCollector(tmp_path, spool)
    collector.follow(run, [0])
    sent, told = [], []
    for hour in range(2):
        now[0] += 3600 * hour
        with (run / "log-rank0.txt").open("ab") as log:
            log.write(b"x" * 500_000)
        collector.read(to_the_end=True)
        batches = drain(spool)
        sent.append(sum(len(base64.b64decode(chunk.data_b64)) for batch in batches for chunk in batch.logs))
        told.append([event.kind for batch in batches for event in batch.events])
    assert all(200_000 - rank_output.LOG_BYTES < each <= 200_000 for each in sent)
    assert told == [["log_quota"]] * 2


def test_a_log_beyond_the_quota_is_passed_over_however_long_it_is(tmp_path: Path) -> None:
    (run := tmp_path / "gen" / "1").mkdir(parents=True)
    spool = open_spool(tmp_path)
    collector = RankOutputCollector(tmp_path, spool)
    collector.follow(run, [0])
    with (run / "log-rank0.txt").open("wb") as log:
        log.truncate(8 << 40)  # it would take three hours to read
    collector.read(to_the_end=True)
    sent = sum(len(base64.b64decode(chunk.data_b64)) for batch in drain(spool) for chunk in batch.logs)
    assert sent == rank_output.LOG_BYTES_PER_HOUR
    assert spool.reader_state.streams[0] == 8 << 40


def test_ranks_send_so_many_events_an_hour_and_every_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_output, "MAX_EVENTS_PER_HOUR", 5)
    now = [3600.0 * 400_000]
    monkeypatch.setattr(rank_output.time, "time", lambda: now[0])
    (run := tmp_path / "gen" / "1").mkdir(parents=True)
    spool = open_spool(tmp_path)
    collector = RankOutputCollector(tmp_path, spool)
    collector.follow(run, [0])
    for _ in range(2):
        with (run / "events.jsonl").open("a") as events:
            events.write('{"event": "odd", "t": 1}\nno event\n{"event": "checkpoint", "t": 1}\n' * 50)
        names = [event.name for event in collector.read()]
        assert (names.count("odd"), names.count("checkpoint")) == (3, 50)
        collector.warn("a checkpoint event can't be read")  # such as each of those 50
        told = [event.data["message"] for batch in drain(spool) for event in batch.events]
        assert [message[:15] for message in told] == ["a line of event"] * 2 + ["too many events"]
        now[0] += 3600
