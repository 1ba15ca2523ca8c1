# SPDX-License-Identifier: Apache-2.0
"""How commands name jobs and machines, and how much of a long reason they show."""

from __future__ import annotations

import shlex
import uuid
from typing import Any

import httpx
import pytest
from click.testing import Result
from shoestring import Client, cli, watch
from shoestring.cli import chaos, jobs
from shoestring_core import rest
from shoestring_core.exit_codes import ExitCode
from typer.testing import CliRunner

from tests.client.test_client import JOB
from tests.client.test_foreign_text import ATTEMPT, MACHINE

OTHER = JOB | {"id": str(uuid.uuid4()), "name": "twice"}
TRACEBACK = "It raised boom\n\nTraceback (most recent call last):\n  x\nRuntimeError: boom"
JOBS: list[dict[str, Any]] = [
    JOB
    | {
        "name": "cats and dogs",
        "state": "ended",
        "status": "failed",
        "end_reason": "user_code",
        "status_text": TRACEBACK,
    },
    OTHER,
    JOB | {"id": str(uuid.uuid4()), "name": "twice"},
]
MACHINES = [MACHINE | {"id": str(uuid.uuid4()), "slot": slot, "state": "running"} for slot in (0, 1)]
ENDED = MACHINE | {"id": str(uuid.uuid4()), "slot": 2, "state": "terminated"}
QUOTE = {
    "at": "2026-11-28T00:00:00Z", "outcome": "chosen", "nodes": 1, "type": None, "why_not_faster": None, "offers": [],
    "no_offer": None, "machine_counts": [], "quotas": [], "time_limit_s": None, "sufficient_time_limit_s": None,
    "runs": 1,
    "summary": {"code": "unknown", "facts": {}, "text": "It will take 1 to 2 minutes and cost $0.02."},
}  # fmt: skip
preempted: list[str] = []


def answer(request: httpx.Request) -> httpx.Response:
    path = request.url.path
    if path == "/v1/quotes":
        return httpx.Response(200, json=QUOTE)
    if path == "/v1/jobs" and request.method == "POST":
        return httpx.Response(201, json=OTHER)
    if path == "/v1/jobs":
        (condition,) = shlex.split(request.url.params.get("filter", "")) or ["id~"]
        part, name = condition.removeprefix("id~"), condition.removeprefix("name=")
        found = [job for job in JOBS if part.lower() in job["id"] or job["name"] == name]
        return httpx.Response(200, json={"jobs": found})
    if path.startswith("/v1/machines/"):
        preempted.append(path.removeprefix("/v1/machines/").removesuffix(":preempt"))
        return httpx.Response(200, json=MACHINE)
    name, _, action = path.removeprefix("/v1/jobs/").partition("/")
    job = next((job for job in JOBS if job["id"] == name.removesuffix(":stop").removesuffix(":retry")), None)
    if job is None:
        problem = {"type": "/p", "title": "Not found", "status": 404, "detail": "No such job.", "code": "not-found"}
        return httpx.Response(404, json=problem)
    if action == "attempts":
        attempt = ATTEMPT | {"machines": [*MACHINES, ENDED]}
        return httpx.Response(200, json={"attempts": [attempt], "steps": 1, "rolled_back_steps": 0})
    if action == "cost":
        report = {"cost": job["cost"], "machines": [], "transfers": [], "budgets": []}
        return httpx.Response(200, json=report)
    if action == "logs":
        agents = {"machine": MACHINE["id"], "slot": 0, "rank": -1, "offset": 0, "text": "booted"}
        logged = "rank" not in request.url.params and job["name"] != "twice"
        return httpx.Response(200, json={"lines": [agents] if logged else []})
    return httpx.Response(200, json=job)


@pytest.fixture(autouse=True)
def service(monkeypatch: pytest.MonkeyPatch) -> None:
    preempted.clear()
    for module in (jobs, chaos):
        monkeypatch.setattr(
            module, "open_client", lambda _url: Client("http://service", "k", transport=httpx.MockTransport(answer))
        )


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    "given",
    [JOB["id"], JOB["id"][:13], JOB["id"][-8:], JOB["id"][-8:].upper(), "cats and dogs"],
    ids=["id", "beginning", "end", "upper case", "name"],
)
def test_a_job_is_named_by_its_id_or_a_part_of_it_as_the_dashboard_shows_it_or_its_name(given: str) -> None:
    assert f"job {JOB['id']}" in run("show", given).output


def test_a_name_of_two_jobs_and_of_none_is_refused() -> None:
    several = run("show", "twice")
    assert (several.exit_code, several.output.count(OTHER["id"][-8:])) == (ExitCode.NOT_FOUND, 1)
    assert "2 jobs are called twice" in several.output
    assert "No job has the id or the name nothing" in run("show", "nothing").output


def test_the_name_of_a_job_and_its_retries_means_the_newest_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = JOBS[2] | {"retried_from": OTHER["id"]}
    monkeypatch.setitem(globals(), "JOBS", [newest, *JOBS[:2]])
    shown = run("show", "twice")
    assert f"job {newest['id']}" in shown.output
    assert f"twice is here its newest retry, {newest['id'][-8:]} (" in shown.output


def test_a_retry_says_whether_it_continues_or_starts_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "It continues from the job's last checkpoint" in run("retry", JOB["id"]).output
    monkeypatch.setitem(JOBS[0], "status", "succeeded")
    assert "it starts over" in run("retry", JOB["id"]).output


def test_a_list_shows_the_first_line_of_a_reason_and_the_jobs_own_page_all_of_it() -> None:
    listed = run("ls").output
    assert len(listed.splitlines()) == 1 + len(JOBS)
    assert (JOB["id"][-8:] in listed, "failed" in listed, "boom" in listed) == (True, True, True)
    assert "Traceback" not in listed
    assert "RuntimeError: boom" in run("show", JOB["id"]).output


def test_following_a_failed_job_ends_with_the_first_line_of_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = rest.Job.model_validate(JOBS[0])
    monkeypatch.setattr(watch, "follow", lambda *_: iter([(failed, [])]))
    followed = run("watch", JOB["id"])
    assert (followed.exit_code, "It raised boom" in followed.output) == (ExitCode.JOB_FAILED, True)
    assert "Traceback" not in followed.output


def test_what_a_running_job_has_cost_so_far_is_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    running = OTHER["cost"] | {"spent": {"amount": "0.01"}, "running": {"amount": "0.002"}}
    monkeypatch.setitem(JOBS[1], "cost", running)
    assert "$0.012" in run("ls").output


def test_a_submission_is_answered_with_its_estimate() -> None:
    assert "It will take 1 to 2 minutes and cost $0.02." in run("submit", "digits/quickstart").output


def test_a_job_that_is_submitted_again_is_answered_like_a_new_one() -> None:
    for command in (("submit", "digits/quickstart"), ("retry", "cats and dogs")):
        done = run(*command)
        lines = done.stderr.splitlines()
        new = done.stdout.strip()
        assert lines[-2:] == [f"Follow: shoestring watch {new[-8:]}", f"Stop:   shoestring stop {new[-8:]}"]


def test_a_machine_is_preempted_by_its_job_and_its_number() -> None:
    assert run("chaos", "preempt", "cats and dogs", "1").exit_code == ExitCode.OK
    assert run("chaos", "preempt", MACHINES[0]["id"]).exit_code == ExitCode.OK
    assert preempted == [MACHINES[1]["id"], MACHINES[0]["id"]]
    for slot in ([], ["2"]):
        refused = run("chaos", "preempt", "cats and dogs", *slot)
        assert (refused.exit_code, "Running: 0, 1" in refused.output) == (ExitCode.NOT_FOUND, True)


def test_stopping_an_ended_job_says_that_it_had_ended() -> None:
    stopped = run("stop", JOB["id"]).output
    assert stopped.strip() == "The job had already ended: It raised boom"


def test_lines_of_the_agent_are_marked_as_its() -> None:
    assert run("logs", JOB["id"]).output == "[0.agent] booted\n"


def test_the_version_is_printed() -> None:
    assert run("--version").output.startswith("shoestring ")


def test_a_rank_that_logged_nothing_is_said() -> None:
    assert "Rank 1 has logged nothing" in run("logs", JOB["id"], "--rank", "1").output


def test_a_job_that_logged_nothing_yet_is_said_with_its_state() -> None:
    said = run("logs", OTHER["id"]).output
    assert said.startswith(f"Nothing has been logged. {OTHER['status_text']}")
