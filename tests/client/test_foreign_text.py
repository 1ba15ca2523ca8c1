# SPDX-License-Identifier: Apache-2.0
"""What other people wrote, in the reader's terminal."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from shoestring import Client, cli
from shoestring import watch as watching
from shoestring.cli import (
    artifacts,
    audit,
    budget_requests,
    budgets,
    jobs,
    keys,
    login,
    members,
    models,
    offers,
    queue,
    quotes,
    results,
    terminal,
    what_ifs,
)  # fmt: skip
from shoestring_core import rest
from shoestring_core.errors import Problem
from shoestring_core.exit_codes import ExitCode
from typer.testing import CliRunner

from tests.client.test_cli import commands
from tests.client.test_client import JOB

TEXT = "[/x] [red]:smile:"
HOSTILE = f"{TEXT}\x1b]0;title\x07\x1b[2J\x1b]8;;http://elsewhere\x1b\\\x9b2J\x1b[1;31m\r"
ENDED = JOB | {
    "name": HOSTILE, "user": HOSTILE, "recipe": HOSTILE, "status_text": HOSTILE, "tags": {HOSTILE: HOSTILE},
    "state": "ended", "end_reason": "succeeded", "settled_at": "2026-01-01T00:00:00Z", "latest": {HOSTILE: 1.0},
    "spec": {"name": HOSTILE}, "sizing": {"code": "c", "facts": {}, "text": HOSTILE}, "result": {"precision": HOSTILE},
}  # fmt: skip
MONEY = {"amount": "1.00"}
MACHINE = {
    "id": str(uuid.uuid4()), "attempt": 1, "slot": 0, "ordinal": 0, "provider": HOSTILE, "region": HOSTILE,
    "zone": HOSTILE, "type": HOSTILE, "market": HOSTILE, "state": "running", "price_per_hour": MONEY,
    "on_demand_per_hour": MONEY, "end_cause": HOSTILE, "cost": MONEY, "posted": False,
    "image": HOSTILE, "driver": HOSTILE, "launched_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
BUDGET = {
    "id": str(uuid.uuid4()), "kind": "team", "owner": HOSTILE, "limit": MONEY, "posted": MONEY, "held": MONEY,
    "overdraft": MONEY, "left": MONEY, "weight": 1, "guaranteed_rate": MONEY,
    "concurrency": {"jobs": 1, "max_jobs": 4, "gpus": 0, "max_gpus": None}, "recent": MONEY, "etag": "1",
    "period": {
        "kind": "month", "amount": MONEY, "time_zone": HOSTILE, "starts_at": "2026-01-01T00:00:00Z",
        "ends_at": "2026-02-01T00:00:00Z", "ends": HOSTILE, "ended": False, "rollover": "none", "carried_over": MONEY,
    },
    "soft_lines": [{"percent": 50, "at": MONEY, "reached": True}],
}  # fmt: skip
REQUEST = {
    "id": "0198c5f2-7d10-7000-8000-1a2b3c4d5e6a", "budget": BUDGET["id"], "owner": HOSTILE, "user": HOSTILE,
    "amount": MONEY, "why": HOSTILE, "state": "open", "created_at": "2026-01-01T00:00:00Z",
    "expires_at": "2026-01-15T00:00:00Z",
}  # fmt: skip
ATTEMPT = {
    "number": 1, "state": "open", "trained": True, "machines": [MACHINE], "generations": [],
    "opened_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
LINE = {"machine": MACHINE["id"], "slot": 0, "rank": 0, "offset": 0, "text": HOSTILE}
REASON = {"code": "c", "facts": {}, "text": HOSTILE}
OFFER = {
    "provider": HOSTILE, "region": HOSTILE, "zone": HOSTILE, "type": HOSTILE, "market": "spot", "price_per_hour": MONEY,
    "on_demand_per_hour": MONEY, "price_source": HOSTILE, "fetched_at": None, "simulated": False, "available": False,
    "gpu": HOSTILE, "gpus": 1, "gpu_memory_mib": 1, "vcpus": 1, "memory_mib": 1, "interruption": HOSTILE,
}  # fmt: skip
QUOTED = {
    "nodes": 1, "offer": OFFER, "basis": "scaled", "scaled_from": [HOSTILE], "runs": 1, "hold": MONEY,
    "max_cost": MONEY, "time_s": {"low": 1, "expected": 2, "high": 3}, "left_after_hold": MONEY,
    "left_after_end": MONEY, "cost": {"low": MONEY, "expected": MONEY, "high": MONEY},
    "interruptions": {"source": "advisor"},
}  # fmt: skip
KEPT_QUOTE = {
    "nodes": 1, "type": HOSTILE, "market": HOSTILE, "basis": "measured", "runs": 1, "time_s": QUOTED["time_s"],
    "cost": QUOTED["cost"], "actual": None, "summary": REASON,
}  # fmt: skip
NOT_OFFERED = {"provider": HOSTILE, "types": [HOSTILE], "regions": [HOSTILE], "reason": REASON}
SPLIT = {"cost": MONEY, "training": MONEY, "wasted": MONEY, "causes": [{"cause": "idle", "cost": MONEY}] * 4}
WASTE = {
    "since": "2026-01-01T00:00:00Z", "total": SPLIT, "jobs": [{"job": ENDED["id"], "name": HOSTILE, "cost": SPLIT}],
}  # fmt: skip
TIMES = {"created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-01-15T00:00:00Z"}
MEMBER = {"id": str(uuid.uuid4()), "user": HOSTILE, "role": "member", "keys": 1}
INVITATION = TIMES | {
    "id": f"{uuid.uuid4()}"[:-1] + "a", "user": HOSTILE, "role": "member", "limit": MONEY, "made_by": HOSTILE,
    "state": "open",
}  # fmt: skip
LOGIN = TIMES | {"id": INVITATION["id"], "address": HOSTILE, "browser": HOSTILE, "current": False}
ENTRY = {
    "id": "1", "at": "2026-01-01T00:00:00Z", "actor": HOSTILE, "action": HOSTILE, "subject": HOSTILE,
    "detail": {HOSTILE: HOSTILE}, "address": HOSTILE, "credential": HOSTILE,
}  # fmt: skip
LISTS: dict[str, Any] = {
    "/v1/members": {"members": [MEMBER]},
    "/v1/quotes/calibration": {
        "level": 0.8, "compared": 1, "time_within": 1, "cost_within": 1, "summary": REASON,
        "recipes": [{"recipe": HOSTILE, "compared": 1, "time_within": 1, "cost_within": 1, "not_compared": 0}],
    },
    "/v1/queue": {
        "at": "2026-01-01T00:00:00Z", "waiting": 1, "further_back": 0,
        "jobs": [
            {"job": ENDED["id"], "name": HOSTILE, "user": HOSTILE, "recipe": HOSTILE, "position": 1,
             "queued_at": "2026-01-01T00:00:00Z", "wait_reason": "slots", "reason": REASON, "start": None,
             "outlook": REASON},
        ],
    },
    "/v1/what-ifs": {
        "at": "2026-01-01T00:00:00Z", "summary": REASON, "paused": [],
        "jobs": [{"job": ENDED["id"], "name": HOSTILE, "user": HOSTILE, "before": None, "after": None}],
        "budgets": [
            {"budget": BUDGET["id"], "kind": "team", "owner": HOSTILE, "limit_before": MONEY, "limit_after": MONEY,
             "before": [], "after": []},
        ],
    },
    "/v1/teams": {"teams": [{"id": MEMBER["id"], "name": HOSTILE, "role": "admin", "members": 1, "current": True}]},
    "/v1/keys": {"keys": [TIMES | {"id": MEMBER["id"], "kind": "svc", "name": HOSTILE}]},
    "/v1/sessions": {"logins": [LOGIN]},
    "/v1/invitations": {"invitations": [INVITATION]},
    "/v1/audit": {"entries": [ENTRY]},
    "/v1/audit/verification": {
        "intact": False, "chained": 1, "sealed": 1, "faults": [{"entry": 1, "text": HOSTILE}], "fault_count": 1,
        "unsealed": [ENTRY], "unsealed_count": 1,
    },
}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "": ENDED,
    "/attempts": {"attempts": [ATTEMPT], "steps": 1, "rolled_back_steps": 0},
    "/metrics": {"curves": [], "generations": [], "cursor": "1"},
    "/logs": {"lines": [LINE]},
    "/artifacts": {"artifacts": []},
    "/cost": {"cost": JOB["cost"], "machines": [], "transfers": [], "budgets": [BUDGET], "quote": KEPT_QUOTE},
}
COMMANDS: dict[tuple[str, ...], int] = {
    ("ls",): 0, ("queue",): 0, ("show", "JOB"): 0, ("watch", "JOB"): 0, ("logs", "JOB"): 0, ("stop", "JOB"): 0,
    ("resume", "JOB"): 0,
    ("submit", "digits/quickstart"): 0, ("submit", "digits/quickstart", "--dry-run"): 0,
    ("quote", "digits/quickstart"): 0, ("quote", "--calibration"): 0, ("budget", "show"): 0,
    ("budget", "members"): 0,
    ("budget", "set", "1"): 0, ("budget", "weight", "2"): 0,
    ("budget", "guarantee", "2.00"): 0,
    ("budget", "concurrency", "--jobs", "4"): 0,
    ("budget", "lines", "50"): 0, ("budget", "period", "month"): 0, ("budget", "waste"): 0,
    ("budget", "grant", "1"): 0, ("budget", "transfer", "1", "--from", HOSTILE, "--to", HOSTILE): 0,
    ("budget", "request", "1", "--why", "x"): 0, ("budget", "requests"): 0, ("budget", "approve", "a"): 0,
    ("budget", "deny", "a"): 0, ("budget", "simulate", "1"): 0,
    ("members", "ls"): 0, ("members", "role", HOSTILE, "lead"): 0, ("members", "remove", HOSTILE): 0,
    ("members", "invitations"): 0, ("teams", "ls"): 0, ("keys", "ls"): 0, ("keys", "logins"): 0,
    ("keys", "logout", "a"): 0, ("audit", "ls"): 0, ("audit", "verify"): ExitCode.JOB_FAILED,
    ("login", "http://service", "--key", "x"): 0, ("results", "JOB"): 0, ("offers",): 0,
    ("predict", "JOB", "cat.jpg"): ExitCode.NOT_FOUND, ("export", "JOB"): ExitCode.NOT_FOUND,
}  # fmt: skip
WITHOUT_FOREIGN_TEXT = {
    "retry", "open", "artifacts ls", "artifacts get", "chaos preempt", "recipes ls", "recipes show", "data prepare",
    "budget forecast", "simulate spot", "simulate schedule", "model", "up", "demo", "budget export",
    # they print ids, secrets, and what their own user gave
    "keys create", "keys revoke", "members invite", "members uninvite", "members import", "teams create",
    # they print ids, and names in AWS's own alphabet
    "aws bootstrap", "aws doctor", "aws down", "aws panic", "aws teardown", "aws up", "aws verify", "aws wheelhouse",
}  # fmt: skip


def answer(request: httpx.Request) -> httpx.Response:
    path = request.url.path.partition(":")[0]
    job = f"/v1/jobs/{ENDED['id']}"
    if path == "/v1/jobs":
        return httpx.Response(200, json={"jobs": [ENDED]} if request.method == "GET" else ENDED)
    if path == "/v1/waste":
        return httpx.Response(200, json=WASTE)
    if path == "/v1/quotes":
        quote = {
            "at": "2026-11-28T00:00:00Z",
            "outcome": "chosen",
            "nodes": 1,
            "type": None,
            "summary": REASON,
            "why_not_faster": REASON,
            "offers": [QUOTED],
            "no_offer": REASON,
            "machine_counts": [QUOTED],
            "quotas": [REASON],
            "time_limit_s": None,
            "sufficient_time_limit_s": None,
            "runs": 1,
        }
        return httpx.Response(200, json=quote)
    if path in LISTS:
        return httpx.Response(200, json=LISTS[path])
    if path.startswith("/v1/members/"):
        return httpx.Response(200, json=MEMBER)
    if path.startswith("/v1/sessions/"):
        return httpx.Response(204)
    if path == "/v1/offers":
        offers = {"offers": [OFFER], "no_offer": None, "not_offered": [NOT_OFFERED], "quotas": [REASON]}
        return httpx.Response(200, json=offers)
    if path == "/v1/me":
        return httpx.Response(
            200, json={"user": HOSTILE, "team": HOSTILE, "role": "admin", "version": "0", "cursor": ""}
        )
    if path.startswith("/v1/budget-requests"):
        is_list = request.method == "GET"
        return httpx.Response(200, json={"requests": [REQUEST]} if is_list else REQUEST)
    if path.startswith("/v1/budgets"):
        both = [BUDGET, BUDGET | {"kind": "member", "owner": f"{HOSTILE} too"}]
        return httpx.Response(200, json={"budgets": both} if request.method == "GET" else BUDGET)
    return httpx.Response(200, json=ANSWERS[path.removeprefix(job)])


@pytest.fixture(autouse=True)
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def connect(*_: object, **__: object) -> Client:
        return Client("http://service", "sst_pat_x", transport=httpx.MockTransport(answer))

    for module in (
        artifacts,
        audit,
        budget_requests,
        budgets,
        jobs,
        keys,
        members,
        models,
        offers,
        queue,
        quotes,
        results,
        what_ifs,
    ):
        monkeypatch.setattr(module, "open_client", connect)
    monkeypatch.setattr(login, "Client", connect)
    monkeypatch.setenv("SHOESTRING_CONFIG", str(tmp_path / "login.json"))
    monkeypatch.setattr(models.trainer, "require", lambda: None)


def is_harmless(printed: str) -> bool:
    return not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", re.sub(r"\x1b\[[0-9;]*m", "", printed))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_hostile_name_is_printed_as_plain_text(command: tuple[str, ...]) -> None:
    arguments = [ENDED["id"] if word == "JOB" else word for word in command]
    done = CliRunner().invoke(cli.app, arguments)
    assert (done.exit_code, done.exception if done.exit_code not in COMMANDS.values() else None) == (
        COMMANDS[command],
        None,
    )
    assert is_harmless(done.output), repr(done.output)
    if command[0] not in ("predict", "export"):  # these only say that there is no model
        assert TEXT in re.sub(r"\s*\n\s*", "", done.output).replace("  ", " ")


def test_every_command_that_prints_foreign_text_is_tested_with_a_hostile_name() -> None:
    assert {name for name in commands() if not any(" ".join(each).startswith(name) for each in COMMANDS)} == (
        WITHOUT_FOREIGN_TEXT
    )


def test_a_hostile_name_is_plain_text_in_a_live_display_and_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal.Terminal(force_terminal=True, width=200, highlight=False)
    with console.capture() as captured:
        console.print(watching.render_job(rest.Job.model_validate(ENDED)))
    assert TEXT in captured.get()
    assert is_harmless(captured.get())
    monkeypatch.setattr(terminal, "err", console)
    with console.capture() as captured:
        terminal.print_error(HOSTILE, HOSTILE, [Problem(HOSTILE, HOSTILE)])
    assert captured.get().count(TEXT) == 4
    assert is_harmless(captured.get())


def test_logs_keep_colors_and_raw_logs_everything() -> None:
    command = cli.app
    shown = CliRunner().invoke(command, ["logs", ENDED["id"]], color=True)
    assert shown.output == f"[0.0] {TEXT}\x1b[1;31m\x1b[0m\n"
    raw = CliRunner().invoke(command, ["logs", ENDED["id"], "--raw"], color=True)
    assert raw.output.splitlines(keepends=False)[0].startswith(f"[0.0] {HOSTILE[:-1]}")
    document = CliRunner().invoke(command, ["logs", ENDED["id"], "--json"])
    assert json.loads(document.output)["text"] == HOSTILE
    assert is_harmless(document.output)
