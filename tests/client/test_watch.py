# SPDX-License-Identifier: Apache-2.0
"""Following a job while the network is lost, over a transport that fails as it is told, on a clock of its own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from shoestring import Client, ServiceError, ServiceUnreachable, cli, client, watch
from shoestring.cli import jobs
from shoestring.client import MAX_OUTAGE_BACKOFF_S, MAX_STREAM_TRIES, StreamEvent
from shoestring_core import rest
from shoestring_core.exit_codes import ExitCode
from typer.testing import CliRunner

JOB = "01930000-0000-7000-8000-000000000001"
MONEY = {"amount": "0.00", "currency": "USD"}
RUNNING: dict[str, Any] = {
    "id": JOB, "name": "a job", "team": "vision", "user": "ben", "recipe": None, "state": "running",
    "status": "running", "status_text": "Training.", "desired_state": "run", "attempt": 1, "generation": 1,
    "progress": {"step": 1, "steps_total": 9, "epoch": None, "fraction": 0.1, "eta_s": None},
    "cost": {"spent": MONEY, "running": MONEY, "held": MONEY, "estimated": MONEY, "on_demand": MONEY, "limit": None,
             "price_basis": "simulated", "settled": False},
    "spec": {}, "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
OVER = RUNNING | {
    "state": "ended", "status": "succeeded", "status_text": "Succeeded.", "end_reason": "succeeded",
    "settled_at": "2026-01-01T01:00:00Z",
}  # fmt: skip

Answer = Callable[[httpx.Request], httpx.Response]


def events(*messages: tuple[str, Any]) -> Answer:
    text = "".join(f"event: {name}\nid: c1\ndata: {json.dumps(data)}\n\n" for name, data in messages)
    return lambda _: httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})


def refuse(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no route to host")


def problem(status: int) -> Answer:
    document = {"type": "", "title": "Away", "status": status, "code": "away", "retryable": True, "errors": []}
    return lambda _: httpx.Response(status, json=document)


class Network:
    """The service as a client finds it: what each connection to the stream meets, in turn; reads always succeed."""

    def __init__(self, *streams: Answer) -> None:
        self._streams, self.slept = iter(streams), list[float]()
        self.job: Answer = lambda _: httpx.Response(200, json=RUNNING)
        self.client = Client(
            "http://service", "sst_pat_x", transport=httpx.MockTransport(self._answer), sleep=self.slept.append
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/stream":
            return next(self._streams)(request)
        if request.url.path.endswith("/metrics"):
            return httpx.Response(200, json={"cursor": "c0", "curves": [], "generations": []})
        return self.job(request)


def follow(network: Network, lost: Callable[[str], None] | None) -> list[StreamEvent | None]:
    return [event for _, event in watch.follow(network.client, JOB, lost)]


@pytest.mark.parametrize("cut", [refuse, problem(503), events()], ids=["refused", "503", "ends at once"])
def test_an_outage_of_any_length_is_told_once_and_waited_for_with_back_off(cut: Answer) -> None:
    network = Network(*[cut] * 40, events(("job", OVER)))
    told: list[str] = []
    assert len(follow(network, told.append)) == 2
    lost, back = told
    assert "http://service is lost" in lost
    assert back == "The connection to http://service is back."
    early, late = network.slept[: MAX_STREAM_TRIES - 1], network.slept[MAX_STREAM_TRIES + 3 :]
    assert sum(early) < 30
    assert all(MAX_OUTAGE_BACKOFF_S / 2 <= pause <= MAX_OUTAGE_BACKOFF_S for pause in late)
    assert client._backoff_s(1_000_000) <= MAX_OUTAGE_BACKOFF_S  # after months


def test_a_short_loss_is_not_told_and_each_long_one_is() -> None:
    short, long = [refuse] * (MAX_STREAM_TRIES - 1), [refuse] * (MAX_STREAM_TRIES + 5)
    told: list[str] = []
    follow(Network(*short, events(("job", RUNNING)), *short, events(("job", OVER))), told.append)
    assert told == []
    follow(Network(*long, events(("ping", {})), *long, events(("job", OVER))), told.append)
    assert [sentence.rpartition(" is ")[2] for sentence in told if sentence.endswith("back.")] == ["back."] * 2
    assert len(told) == 4


def test_a_job_is_read_again_after_missed_events_however_long_that_fails() -> None:
    network = Network(events(("resync", {})))
    fails = itertools.chain([False], itertools.repeat(True, 50), itertools.repeat(False))
    reads: Iterator[Answer] = ((refuse if fail else lambda _: httpx.Response(200, json=RUNNING)) for fail in fails)
    seen = 0

    def read(request: httpx.Request) -> httpx.Response:
        nonlocal seen
        seen += 1
        return httpx.Response(200, json=OVER) if seen > 51 else next(reads)(request)

    network.job = read
    assert len(follow(network, lambda _: None)) == 2
    assert seen == 52


def test_a_program_that_does_not_wait_gets_an_error_and_so_does_a_refusal() -> None:
    with pytest.raises(ServiceUnreachable, match="no route to host"):
        follow(Network(*[refuse] * MAX_STREAM_TRIES), None)
    with pytest.raises(ServiceError):
        follow(Network(problem(401)), lambda _: None)


@pytest.mark.parametrize("command", ["watch", "logs"])
def test_the_commands_say_it_once_and_go_on_until_the_job_ends(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    network = Network(*[refuse] * 40, events(("job", OVER)))
    monkeypatch.setattr(jobs, "open_client", lambda _: network.client)
    if command == "logs":
        page = {"lines": [], "next_cursor": None, "truncated": False}
        network.job = lambda request: httpx.Response(200, json=page if "logs" in request.url.path else RUNNING)
    arguments = [command, JOB, *(["--follow"] if command == "logs" else [])]
    done = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert done.stderr.count("is lost") == 1
    assert "jobs keep running" in done.stderr
    if command == "watch":
        assert "Succeeded." in done.stdout


def test_the_user_ends_it_during_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    network = Network(*[refuse] * 40, interrupt)
    monkeypatch.setattr(jobs, "open_client", lambda _: network.client)
    done = CliRunner().invoke(cli.app, ["watch", JOB], env={"COLUMNS": "300"})
    assert done.exit_code == ExitCode.DETACHED
    assert "Detached" in done.stderr


def test_where_nothing_can_be_drawn_a_job_says_every_ten_seconds_how_far_it_is() -> None:
    told = list[str]()
    clock = iter([1.0, 5.0, 11.0, 20.9, 30.0, 99.0])
    lines = watch.ProgressLines(told.append, lambda: next(clock))
    for step, sentence in ((1, "Training."), (2, "Training."), (3, "Training."), (4, "Training."), (4, "Stopping."),
                           (4, "Stopping.")):  # fmt: skip
        progress = RUNNING["progress"] | {"step": step, "steps_total": 9_000}
        job = RUNNING | {"status_text": sentence, "progress": progress, "latest": {"val/acc": 0.5, "time/step": 1.0}}
        lines.update(rest.Job.model_validate(job))
    assert told == ["running: Training.", "step 3 of 9,000  val/acc 0.5", "running: Stopping."]
