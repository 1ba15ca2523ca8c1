# SPDX-License-Identifier: Apache-2.0
"""What machines reported, as it is read: curves without a gap, logs line by line, money to the micro-dollar."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.decide import funding
from shoestring_core.store.db import open_store
from shoestring_core.store.fleet import billing, gangs
from shoestring_core.store.tables import EventRow, GenerationRow, JobRow, MachineRow
from shoestring_core.wording.attempts import RankKilled
from shoestring_core.wording.waits import BudgetShort
from sqlalchemy import text, update

from tests.api.deployment import OFFER, Deployment


def test_the_merged_curve_has_each_step_once_and_lost_work_is_counted(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 9))
    assert agent.checkpoint(5, {"model": b"abc"}).json()["promoted"]
    deployment.store.write(lambda db: gangs.open_generation(db, job, 1, RankKilled(0)))
    agent.report(member={"generation": 2, "state": "ready", "port": 29501})
    agent.points(range(6, 8), generation=2)
    merged = deployment.member.get(f"/v1/jobs/{job}/metrics").json()
    (curve,) = merged["curves"]
    assert curve["steps"] == [1, 2, 3, 4, 5, 6, 7]
    assert curve["values"] == [1.1, 2.1, 3.1, 4.1, 5.1, 6.2, 7.2]
    everything = deployment.member.get(f"/v1/jobs/{job}/metrics", params={"attempts": "all"}).json()["curves"]
    assert [(one["generation"], one["rolled_back"], one["steps"]) for one in everything] == [
        (1, False, [1, 2, 3, 4, 5]), (1, True, [6, 7, 8]), (2, False, [6, 7]),
    ]  # fmt: skip
    found = deployment.member.get(f"/v1/jobs/{job}/attempts").json()
    assert (found["steps"], found["rolled_back_steps"]) == (7, 3)
    first, second = found["attempts"][0]["generations"]
    assert (first["last_step"], first["merged_through"], first["rolled_back_steps"]) == (8, 5, 3)
    assert (second["start_step"], second["last_step"], second["rolled_back_steps"]) == (5, 7, 0)
    assert deployment.job(job).progress.step == 7


def test_late_points_of_an_older_generation_are_history(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 4))
    deployment.store.write(lambda db: gangs.open_generation(db, job, 1, RankKilled(0)))
    agent.report(member={"generation": 2, "state": "ready", "port": 29501})
    agent.points(range(1, 3), generation=2)
    agent.points(range(4, 6), generation=1)
    shown = deployment.job(job)
    assert (shown.progress.step, shown.latest["train/loss"]) == (2, 2.2)
    (curve,) = deployment.member.get(f"/v1/jobs/{job}/metrics").json()["curves"]
    assert curve["values"] == [1.2, 2.2]


def test_a_part_of_a_curve_is_read_by_name_and_range(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 11), "train/loss")
    agent.points(range(1, 11), "val/acc")
    params: dict[str, Any] = {"keys": "val/acc", "first": 4, "last": 6}
    (curve,) = deployment.member.get(f"/v1/jobs/{job}/metrics", params=params).json()["curves"]
    assert (curve["name"], curve["steps"]) == ("val/acc", [4, 5, 6])


@pytest.mark.any_database
def test_lines_are_what_a_terminal_shows(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.log(b"start\r\n 1%\r 50%\r100%\n\x1b[1mbold\x1b[0m\nbad \xff byte, nul \x00\nunfin")
    assert _lines(deployment, job) == ["start", "100%", "\x1b[1mbold\x1b[0m", "bad \ufffd byte, nul \ufffd"]
    agent.log(b"ished\n")
    assert _lines(deployment, job)[-1] == "unfinished"


@pytest.mark.any_database
def test_pages_of_a_log_join_without_a_seam(deployment: Deployment) -> None:
    """Lines of two ranks, cut into chunks in the middle of words, read in pages of every size."""
    job, (agent,) = deployment.running(resources={"nodes": 1, "procs": 2})
    for rank in (0, 1):
        text = "".join(f"rank {rank} line {number}\n" for number in range(40)).encode()
        for start in range(0, len(text), 37):
            agent.log(text[start : start + 37], rank)
    for size in (1, 2, 3, 7, 79, 80, 200):
        lines, cursor = [], None
        while True:
            params = {"limit": size} | ({"cursor": cursor} if cursor else {})
            page = deployment.member.get(f"/v1/jobs/{job}/logs", params=params).json()
            lines += [line["text"] for line in page["lines"]]
            cursor = page["next_cursor"]
            if not page["lines"]:
                break
        assert [line for line in lines if line.startswith("rank 0")] == [f"rank 0 line {n}" for n in range(40)], size
        assert [line for line in lines if line.startswith("rank 1")] == [f"rank 1 line {n}" for n in range(40)], size
        assert len(lines) == 80
    agent.log(b"later\n", 0)
    page = deployment.member.get(f"/v1/jobs/{job}/logs", params={"cursor": cursor or ""}).json()
    assert [line["text"] for line in page["lines"]] == ["later"]


@pytest.mark.any_database
def test_a_tail_is_the_end_and_can_be_followed(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    for number in range(100):
        agent.log(f"line {number}\n".encode())
    page = deployment.member.get(f"/v1/jobs/{job}/logs", params={"tail": 3}).json()
    assert [line["text"] for line in page["lines"]] == ["line 97", "line 98", "line 99"]
    agent.log(b"line 100\n")
    page = deployment.member.get(f"/v1/jobs/{job}/logs", params={"cursor": page["next_cursor"]}).json()
    assert [line["text"] for line in page["lines"]] == ["line 100"]
    assert deployment.member.get(f"/v1/jobs/{job}/logs", params={"tail": 0}).json()["lines"] == []


def test_a_log_is_chosen_by_rank_and_machine_and_comes_as_text(deployment: Deployment) -> None:
    job, agents = deployment.running(resources={"nodes": 2})
    agents[0].log(b"a0\n", 0)
    agents[0].log(b"agent\n", -1)
    agents[1].log(b"b1\n", 1)
    assert _lines(deployment, job, rank=1) == ["b1"]
    assert _lines(deployment, job, machine=agents[0].machine) == ["a0", "agent"]
    text = deployment.member.get(f"/v1/jobs/{job}/logs", headers={"Accept": "text/plain"})
    assert (text.text, text.headers["content-type"]) == ("a0\nagent\nb1\n", "text/plain; charset=utf-8")
    ndjson = deployment.member.get(f"/v1/jobs/{job}/logs", headers={"Accept": "application/x-ndjson"})
    assert [json.loads(record)["slot"] for record in ndjson.text.splitlines()] == [0, 0, 1]


@pytest.mark.any_database
def test_bytes_that_never_came_end_their_line(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.log(b"begun ")
    agent.offsets[0] += 1000
    agent.log(b"after the gap\n")
    assert _lines(deployment, job) == ["begun ", "after the gap"]


@pytest.mark.any_database
def test_a_line_without_an_end_is_shown_when_its_machine_is_gone(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.log(b"last words")
    assert _lines(deployment, job) == []
    with deployment.store.writer.begin() as connection:
        connection.execute(
            update(MachineRow).where(MachineRow.id == agent.machine).values(state="terminated", ended_at=1)
        )
    assert _lines(deployment, job) == ["last words"]


@pytest.mark.any_database
def test_a_huge_line_comes_in_pieces(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.log(b"x" * 150_000 + b"\n")
    assert [len(line) for line in _lines(deployment, job)] == [65536, 65536, 18928]


@pytest.mark.any_database
def test_the_log_quota_drops_logs_and_nothing_else(migrated_url: str, tmp_path: Path, deployment: Deployment) -> None:
    with Deployment(migrated_url, tmp_path / "small", log_quota_bytes=1000) as small:
        job, (agent,) = small.running()
        agent.log(b"a" * 899 + b"\n")
        assert agent.log(b"b" * 1000 + b"\n").acked_seq == 2  # too much at any time, of the next hour too
        agent.points(range(1, 3))
        page = small.member.get(f"/v1/jobs/{job}/logs").json()
        assert (len(page["lines"]), page["truncated"]) == (1, True)
        assert small.job(job).progress.step == 2


@pytest.mark.any_database
def test_a_foreign_or_broken_log_cursor_is_refused(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.log(b"secret\n")
    own = deployment.member.get(f"/v1/jobs/{job}/logs").json()["next_cursor"]
    theirs = deployment.stranger.post("/v1/jobs", json={"spec": {"recipe": "digits/quickstart"}}).json()["id"]
    assert deployment.stranger.get(f"/v1/jobs/{theirs}/logs", params={"cursor": own}).json()["lines"] == []
    for cursor in ("x", "e30x", "bnVsbA", "W10", "eyJhIjogMX0"):
        answer = deployment.member.get(f"/v1/jobs/{job}/logs", params={"cursor": cursor})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), cursor


def test_cost_is_machine_time_by_the_providers_clock(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    shown = deployment.job(job).cost
    assert shown.price_basis == "simulated"
    assert money.from_decimal(shown.held.amount) == funding.initial_hold("0.526", deployment.state.timeouts)
    with deployment.store.writer.begin() as connection:
        gone = {"state": "terminated", "launched_at": 0, "ended_at": 3_600_000_000, "end_cause": "requested"}
        connection.execute(update(MachineRow).where(MachineRow.id == agent.machine).values(**gone))
    shown = deployment.job(job).cost
    assert (shown.running.amount, shown.spent.amount, shown.on_demand.amount) == ("0.158", "0.00", "0.526")
    while deployment.store.write(lambda db: billing.settle_machine(db, agent.machine)):
        pass
    report = deployment.member.get(f"/v1/jobs/{job}/cost").json()
    assert (report["cost"]["running"]["amount"], report["cost"]["spent"]["amount"]) == ("0.00", "0.158")
    assert report["cost"]["held"]["amount"] == "0.00"
    assert report["machines"][0]["cost"]["amount"] == "0.158"
    assert report["machines"][0]["posted"]
    assert sum(money.from_decimal(line["amount"]["amount"]) for line in report["transfers"]) == 158_000


@pytest.mark.any_database
def test_a_sentence_says_what_and_what_to_do(deployment: Deployment) -> None:
    job = deployment.submit()
    with deployment.store.writer.begin() as connection:
        detail = BudgetShort("team vision", need="0.20", missing="0.19", nodes=1)
        wait = {"wait_reason": detail.waits_for, "wait_detail": detail.as_json()}
        connection.execute(update(JobRow).where(JobRow.id == job).values(**wait))
    _limit_team(deployment, "0.08")
    shown = deployment.job(job)
    assert shown.wait_reason == "budget"
    assert shown.reason is not None
    assert (shown.reason.code, shown.reason.facts["missing"]) == ("budget_short", "0.12")
    assert shown.reason.text.startswith("The budget of team vision is $0.12 short: starting 1 machine reserves $0.20.")
    assert shown.status_text == f"Waiting for budget. {shown.reason.text}"
    _limit_team(deployment, "0.15")
    shown = deployment.job(job)
    assert shown.reason is not None
    assert shown.reason.facts["missing"] == "0.05", "as it is now, not as the last schedule found it"
    _limit_team(deployment, "none")
    assert deployment.job(job).wait_reason == "turn"


def test_a_job_far_back_in_the_queue_reads_that_its_budget_is_short(deployment: Deployment) -> None:
    job = deployment.submit()
    assert deployment.job(job).wait_reason == "turn"
    _limit_team(deployment, "0.001")
    (listed,) = (one for one in deployment.member.get("/v1/jobs").json()["jobs"] if one["id"] == str(job))
    need = funding.initial_hold(OFFER.on_demand_price, deployment.state.timeouts)
    assert listed["wait_reason"] == "budget"
    assert listed["reason"]["facts"] == {
        "account": "team vision", "need": money.to_decimal(need), "missing": money.to_decimal(need - 1000),
        "nodes": 1, "own": False, "held_suffices": False,
    }  # fmt: skip


DAMAGED = {
    "sizing": [{"x": 1}, {"reason": 5}, [1]],
    "wait_detail": [{"code": "budget_short"}, [1], {"code": "machines_in_use", "facts": {"nodes": "x"}}],
    "end_detail": [{"code": 5, "facts": {}}, [1]],
    "latest": [{"loss": None, "acc": 0.5}, [1]],
    "skipped_step_spans": [[[1]], {"x": 1}],
    "result": [[1]],
    "spec": [{}, {"recipe": 5, "tags": [1]}, [1]],
}


@pytest.mark.any_database
def test_a_damaged_row_is_listed_without_what_is_damaged(deployment: Deployment) -> None:
    whole, damaged = deployment.submit(), deployment.submit()
    queued = {"wait_reason": "slots"}
    ended = {"state": "ended", "end_reason": "user_code", "ended_at": 1}
    for state, (column, values) in itertools.product((queued, ended), DAMAGED.items()):
        for value in values:
            with deployment.store.writer.begin() as connection:
                row = update(JobRow).where(JobRow.id == damaged)
                connection.execute(row.values(**state, **{column: value}))
            answer = deployment.member.get("/v1/jobs")
            assert answer.status_code == 200, (column, value, answer.text)
            assert [one["id"] for one in answer.json()["jobs"]] == [str(damaged), str(whole)]
            assert deployment.member.get(f"/v1/jobs/{damaged}").status_code == 200


@pytest.mark.any_database
def test_a_job_is_listed_whose_machine_has_damaged_billing_rules(deployment: Deployment) -> None:
    job, _ = deployment.running()
    whole = deployment.submit()
    for damaged in ([1], "x", {"minimum": "x"}, {"other": 1}):
        with deployment.store.writer.begin() as connection:
            connection.execute(update(MachineRow).where(MachineRow.job == job).values(billing=damaged))
        answer = deployment.member.get("/v1/jobs")
        assert answer.status_code == 200, (damaged, answer.text)
        assert [one["id"] for one in answer.json()["jobs"]] == [str(whole), str(job)]
        assert deployment.member.get(f"/v1/jobs/{job}/cost").status_code == 200


def test_json_that_was_cut_off_in_the_database_costs_no_other_row(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    store = open_store(url)
    store.migrate()
    store.close()
    with Deployment(url, tmp_path) as deployment:
        whole, damaged = deployment.submit(), deployment.submit()
        with deployment.store.writer.begin() as connection:
            for column in ("sizing", "wait_detail", "latest", "spec"):
                cut = f"UPDATE jobs SET {column} = '{{\"x\": ' WHERE id = :id"
                connection.execute(text(cut), {"id": damaged.hex})
        listed = deployment.member.get("/v1/jobs").json()["jobs"]
        assert [one["id"] for one in listed] == [str(damaged), str(whole)]


@pytest.mark.any_database
def test_a_damaged_event_is_left_out_of_the_feed_and_of_the_stream(deployment: Deployment) -> None:
    job = deployment.submit()
    with deployment.stream(f"job:{job}") as stream:
        with deployment.store.writer.begin() as connection:
            connection.execute(update(EventRow).where(EventRow.kind == "job").values(data={"to": 5}, reason=[1]))
        assert deployment.member.get(f"/v1/jobs/{job}/events").json()["events"] == []
        deployment.member.post(f"/v1/jobs/{job}:stop")
        assert next(one for one in stream if one.name == "job").data["id"] == str(job)


def _limit_team(deployment: Deployment, limit: str) -> None:
    team = next(one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    assert deployment.admin.put(f"/v1/budgets/{team['id']}", json={"limit": limit}).status_code == 200


def test_steps_total_and_epoch_come_from_the_ranks(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    started = {"kind": "started", "at": 1.0, "data": {"steps_total": 40, "world_size": 1}}
    agent.report(batch=agent.batch(events=[started]))
    agent.report(batch=agent.batch(points=[{"name": "epoch", "steps": [10], "times": [1.0], "values": [2.5]}]))
    progress = deployment.job(job).progress
    assert (progress.steps_total, progress.epoch, progress.fraction) == (40, 2.5, 0.25)
    with deployment.store.read() as db:
        assert db.sql.get_one(GenerationRow, (job, 1)).last_step == 10


def _lines(deployment: Deployment, job: UUID, **params: Any) -> list[str]:
    page = deployment.member.get(f"/v1/jobs/{job}/logs", params=params).json()
    return [line["text"] for line in page["lines"]]


def test_the_energy_of_a_job_is_what_its_machines_measured_of_one_computer(deployment: Deployment) -> None:
    job, agents = deployment.running(resources={"nodes": 2})
    assert deployment.member.get(f"/v1/jobs/{job}/cost").json()["energy"] is None
    for agent in agents:
        columns = {"steps": [0, 5], "times": [1e9, 1e9 + 5], "values": [0.0, 3600.0]}
        series = [{"name": name} | columns for name in ("system/cpu_energy_joules", "system/gpu0/energy_joules")]
        agent.report(batch=agent.batch(points=series))
    energy = deployment.member.get(f"/v1/jobs/{job}/cost").json()["energy"]
    assert energy == {"joules": 7200.0, "kwh": 0.002, "of": ["cpu", "gpu"]}
