# SPDX-License-Identifier: Apache-2.0
"""`shoestring budget simulate`: what its options ask for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from shoestring import Client, cli
from shoestring.cli import what_ifs
from typer.testing import CliRunner

ONE, TWO = UUID(int=1), UUID(int=2)
FOUND = {
    "at": "2026-01-01T00:00:00Z", "summary": {"code": "c", "facts": {}, "text": "Nothing moves."}, "jobs": [],
    "paused": [], "budgets": [],
}  # fmt: skip


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands of the test send."""
    sent: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json=FOUND)

    client = Client("http://service", "sst_pat_x", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(what_ifs, "open_client", lambda _: client)
    return sent


def simulate(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["budget", "simulate", *arguments], env={"COLUMNS": "300"})
    return done.exit_code, done.output


def test_all_that_is_asked_of_a_job_is_one_change(bodies: list[Any]) -> None:
    time = "2040-01-01T09:00+01:00"
    asked = (
        f"--deadline={ONE}={time}",
        f"--gpu={ONE}=A100:8",
        f"--first={ONE}",
        f"--gpu={TWO}=24GB..",
        f"--stop={TWO}",
    )
    assert simulate(*asked)[0] == 0
    [body] = bodies
    one, two = sorted(body["jobs"], key=lambda job: job["job"])
    assert datetime.fromisoformat(one["deadline"]) == datetime.fromisoformat(time)
    assert (one["gpu"], one["first"], one["stop"]) == ("A100:8", True, False)
    assert (two["gpu"], two["deadline"], two["stop"]) == ("24GB..", None, True)


def test_a_duration_counts_from_now(bodies: list[Any]) -> None:
    before = datetime.now(UTC)
    assert simulate(f"--deadline={ONE}=12h")[0] == 0
    at = datetime.fromisoformat(bodies[0]["jobs"][0]["deadline"]) - timedelta(hours=12)
    assert before <= at <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--deadline=JOB", "JOB=…"),
        ("--gpu==A100", "JOB=…"),
        ("--gpu=JOB=", "JOB=…"),
        ("--deadline=JOB=Friday", "must be a timestamp"),
        ("--deadline=JOB=2040-01-01T09:00", "needs a time zone"),
        ("--deadline=JOB=99999999999999d", "--deadline"),
    ],
)
def test_what_is_no_job_with_its_value_is_refused_before_anything_is_asked(
    bodies: list[Any], argument: str, said: str
) -> None:
    code, output = simulate(argument)
    assert (code, bodies) == (2, [])
    assert said in output


def test_with_nothing_to_change_the_options_are_named(bodies: list[Any]) -> None:
    code, output = simulate()
    assert (code, bodies) == (2, [])
    assert "--deadline" in output
    assert "--gpu" in output
