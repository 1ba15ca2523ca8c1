# SPDX-License-Identifier: Apache-2.0
"""The job of `shoestring aws verify`: it has a cap, and is over with its machines whatever happens."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from shoestring import aws, aws_job, cli
from shoestring.aws_job import Clock
from shoestring.cli import aws as commands
from shoestring.client import Client
from shoestring_core import rest
from typer.testing import CliRunner

from tests.client.test_client import JOB, talking_to
from tests.client.test_foreign_text import ATTEMPT, MACHINE

OVER = {"state": "ended", "settled_at": "2026-01-01T00:09:00Z"}
SUCCEEDED = OVER | {"status": "succeeded", "end_reason": "succeeded", "first_step_at": "2026-01-01T00:03:00Z"}
STOPPED = OVER | {"status": "stopped", "end_reason": "user_stop"}


class Service:
    """Tells these states of the job, one at a time; and `stopped` once it was asked to stop it."""

    def __init__(self, *states: dict[str, Any], stopped: tuple[dict[str, Any], ...] = (STOPPED,)) -> None:
        self.states, self.stopped, self.asked = list(states), list(stopped), list[str]()
        self.submitted: dict[str, Any] = {}

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path.removeprefix(f"/v1/jobs/{JOB['id']}"))
        if request.url.path == "/v1/jobs":
            self.submitted = json.loads(request.content)
            return httpx.Response(201, json=JOB)
        if request.url.path.endswith(":stop"):
            self.states = self.stopped
            return httpx.Response(200, json=JOB)
        if request.url.path.endswith("/attempts"):
            return httpx.Response(200, json={"attempts": [ATTEMPT], "steps": 1, "rolled_back_steps": 0})
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return httpx.Response(200, json=JOB | state)

    def client(self) -> Client:
        return talking_to(self.answer)


def clock(wait: Callable[[], None] = lambda: None, step_s: float = 100.0) -> Clock:
    """On which each pause takes `step_s`."""
    now = [0.0]

    def sleep(_seconds: float) -> None:
        now[0] += step_s
        wait()

    return Clock(lambda: now[0], sleep)


def silent(_line: str) -> None:
    """Nobody reads along."""


def test_it_is_submitted_with_its_cap_and_waited_for_until_its_machines_are_billed():
    service = Service({}, {"state": "ended", "status": "succeeded", "end_reason": "succeeded"}, SUCCEEDED)
    job = aws_job.train(service.client(), silent, clock())
    assert aws_job.succeeded(job)
    assert service.asked == ["/v1/jobs", "", "", ""]
    spec = service.submitted["spec"]
    assert (spec["resources"]["gpu"], spec["limits"]["cost"], spec["on_budget"]) == ("any", "1.00", "stop")
    machine = rest.Machine.model_validate(
        MACHINE
        | {"type": "g4dn.xlarge", "market": "on_demand", "zone": "us-east-1a", "image": "ami-1", "driver": "580"}
    )
    attempts = rest.AttemptList.model_validate({"attempts": [ATTEMPT], "steps": 1, "rolled_back_steps": 0})
    attempts.attempts[0].machines[:] = [machine]
    text = aws_job.render(job, attempts)
    assert "| verdict | holds |" in text
    assert "| from submit to the first step | 180 s |" in text
    assert "g4dn.xlarge, on demand, us-east-1a, ami-1, NVIDIA driver 580" in text


def test_ctrl_c_stops_it_and_waits_for_its_machines():
    presses = [KeyboardInterrupt]

    def wait() -> None:
        if presses:
            raise presses.pop()

    service = Service({"state": "running"}, stopped=({"state": "running"}, STOPPED))
    job = aws_job.train(service.client(), silent, clock(wait))
    assert (job.status, aws_job.succeeded(job)) == ("stopped", False)
    assert service.asked == ["/v1/jobs", "", ":stop", "", ""]
    attempts = rest.AttemptList.model_validate({"attempts": [], "steps": 0, "rolled_back_steps": 0})
    assert "| verdict | differs |" in aws_job.render(job, attempts)


def test_a_job_that_never_starts_is_stopped_and_machines_that_do_not_end_are_told():
    told: list[str] = []
    job = aws_job.train(Service({"state": "queued"}).client(), told.append, clock(step_s=1_000.0))
    assert job.status == "stopped"
    assert f"After 45 minutes job {JOB['id']} is queued: the job is stopped, and its machines end." in told
    with pytest.raises(TimeoutError, match=r"After 15 minutes .* is running"):
        aws_job.train(Service({"state": "running"}, stopped=({"state": "running"},)).client(), silent, clock())


@pytest.mark.parametrize("where", ["pipe", "folder", "absent/report.md"])
def test_a_report_that_cannot_be_written_is_refused_before_it_costs_money(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(aws, "run_uninterrupted", lambda *_: pytest.fail("it was tried"))
    refused = CliRunner().invoke(cli.app, ["aws", "verify", "--yes", "--report", str(tmp_path / where)])
    assert (refused.exit_code, f"can't write {tmp_path / where}" in refused.output) == (2, True)


def test_the_command_asks_before_the_job_and_appends_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, ...]] = []
    report = tmp_path / "report.md"

    def run(*arguments: str) -> int:
        asked.append(arguments)
        report.write_text("# What was verified on AWS\n")
        return codes.pop(0)

    service = Service(SUCCEEDED)
    monkeypatch.setattr(aws, "run_uninterrupted", run)
    monkeypatch.setattr(commands, "open_client", lambda _url: service.client())
    codes = [0, 0, 1, 2]
    command = ["aws", "verify", "--report", str(report)]
    assert CliRunner().invoke(cli.app, command, input="n\n").exit_code == 0
    assert service.asked == []
    assert CliRunner().invoke(cli.app, command, input="y\n").exit_code == 0
    assert report.read_text().count("## A job on the cheapest GPU") == 1
    assert CliRunner().invoke(cli.app, [*command, "--yes"]).exit_code == 1, "a rule of the machines did not hold"
    service.asked.clear()
    assert CliRunner().invoke(cli.app, [*command, "--yes", "--json"]).exit_code == 2, "nothing was tried"
    assert service.asked == []
    verify = ("verify", "--report", str(report), "--yes")
    assert asked[2:] == [verify, (*verify, "--json")]
