# SPDX-License-Identifier: Apache-2.0
"""`shoestring members`, `teams`, `keys`, `audit` and `budget concurrency`, against a service in this process."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from shoestring import aws
from shoestring_core.exit_codes import ExitCode
from shoestring_core.store import audit, audit_seals
from sqlalchemy import text

from tests.api.deployment import SECRET, Deployment
from tests.client.conftest import RunCommand
from tests.shared_database import SharedDatabase

pytestmark = pytest.mark.any_database

Shoestring = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def deployment(migrated: SharedDatabase, tmp_path: Path) -> Iterator[Deployment]:
    with Deployment(migrated.url, tmp_path, store=migrated.store()) as deployment:
        yield deployment


@pytest.fixture
def shoestring(deployment: Deployment, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> Shoestring:
    """Runs a command as the admin, or with `key`."""

    def run(*arguments: str, key: str = deployment.keys[0]) -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("SHOESTRING_URL", deployment.url)
        monkeypatch.setenv("SHOESTRING_KEY", key)
        return run_command(*arguments)

    return run


def test_a_budget_for_a_service_in_an_account_that_has_a_limit_is_told_to_change_nothing(
    shoestring: Shoestring, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (team,) = (one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    assert deployment.admin.put(f"/v1/budgets/{team['id']}", json={"limit": "25"}).is_success

    def run_for_answer(*_: str) -> tuple[int, dict[str, str]]:
        code = deployment.admin.post("/v1/login-codes").json()["code"]
        return 0, {"url": deployment.url, "ca": "", "code": code}

    monkeypatch.setattr(aws, "run_for_answer", run_for_answer)
    assert "limit" not in shoestring("aws", "up").stderr
    assert "limit" not in shoestring("aws", "up", "--budget", "25.00").stderr
    assert "budget set 9.00" in " ".join(shoestring("aws", "up", "--budget", "9").stderr.split())
    (after,) = (one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    assert after["limit"]["amount"] == "25.00"


def test_members_and_teams(shoestring: Shoestring, deployment: Deployment) -> None:
    assert "ben" in shoestring("members", "ls").stdout
    assert shoestring("members", "role", "ben", "lead").stdout == "ben is now lead\n"
    assert [one["role"] for one in json.loads(shoestring("members", "ls", "--json").stdout)] == ["admin", "lead"]
    assert shoestring("members", "role", "ben", "boss").returncode == ExitCode.USAGE
    refused = shoestring("members", "role", "ada", "member")
    assert (refused.returncode, "only admin" in refused.stderr) == (ExitCode.AUTH, True)
    assert shoestring("members", "role", "ada", "viewer", key=deployment.keys[1]).returncode == ExitCode.AUTH
    assert shoestring("members", "remove", "nobody").returncode == ExitCode.NOT_FOUND
    assert shoestring("members", "remove", "ben").returncode == ExitCode.OK
    assert shoestring("ls", key=deployment.keys[1]).returncode == ExitCode.AUTH
    assert "vision" in shoestring("teams", "ls").stdout


def test_what_runs_at_once_is_capped_and_what_is_not_given_stays(
    shoestring: Shoestring, deployment: Deployment
) -> None:
    assert shoestring("budget", "concurrency", "--jobs", "4").stdout == "vision: 0/4 jobs\n"
    assert shoestring("budget", "concurrency", "--gpus", "8").stdout == "vision: 0/4 jobs, 0/8 GPUs\n"
    assert "0/4 jobs, 0/8 GPUs" in shoestring("budget", "show").stdout
    members = json.loads(shoestring("budget", "members", "--json").stdout)
    assert {budget["kind"] for budget in members} == {"member"}
    assert shoestring("budget", "concurrency", "--jobs", "none").stdout == "vision: 0/8 GPUs\n"
    assert shoestring("budget", "concurrency", "--gpus", "none").stdout == "vision: no concurrency cap\n"
    assert shoestring("budget", "concurrency", "--jobs", "9", key=deployment.keys[1]).returncode == ExitCode.AUTH


def test_keys_do_what_their_scopes_allow_and_logins_end(shoestring: Shoestring, deployment: Deployment) -> None:
    job = deployment.submit()
    reader = shoestring("keys", "create", "--name", "reader", "--scope", "read").stdout.strip()
    assert shoestring("ls", key=reader).returncode == ExitCode.OK
    refused = shoestring("stop", str(job), key=reader)
    assert (refused.returncode, "lacks the scope jobs" in refused.stderr) == (ExitCode.AUTH, True)
    bound = shoestring("keys", "create", "--kind", "job", "--job", str(job), "--days", "7").stdout.strip()
    assert shoestring("show", str(job), key=bound).returncode == ExitCode.OK
    assert shoestring("show", str(deployment.submit()), key=bound).returncode == ExitCode.NOT_FOUND
    assert shoestring("ls", key=bound).returncode == ExitCode.AUTH
    assert shoestring("keys", "create", "--kind", "job").returncode == ExitCode.USAGE
    assert shoestring("keys", "create", "--scope", "everything").returncode == ExitCode.USAGE
    made = next(one for one in json.loads(shoestring("keys", "ls", "--json").stdout) if one["name"] == "reader")
    assert shoestring("keys", "revoke", made["id"][-8:]).returncode == ExitCode.OK
    assert shoestring("ls", key=reader).returncode == ExitCode.AUTH
    assert deployment.nobody.post("/v1/session", json={"key": deployment.keys[0]}).is_success
    (login,) = json.loads(shoestring("keys", "logins", "--json").stdout)
    assert login["browser"].startswith("python-httpx")
    assert shoestring("keys", "logout", login["id"][-8:]).returncode == ExitCode.OK
    assert json.loads(shoestring("keys", "logins", "--json").stdout) == []


def test_invitations_and_a_class_list(shoestring: Shoestring, deployment: Deployment, tmp_path: Path) -> None:
    link = httpx.URL(shoestring("members", "invite", "--role", "viewer").stdout.strip())
    taken = {"code": link.params["invite"], "name": "vera"}
    assert deployment.nobody.post("/v1/invitations:take", json=taken).json()["role"] == "viewer"
    assert deployment.nobody.post("/v1/invitations:take", json=taken | {"name": "eve"}).status_code == 409
    shoestring("members", "invite")
    open_, used = json.loads(shoestring("members", "invitations", "--json").stdout)
    assert (open_["state"], used["state"]) == ("open", "used")
    assert shoestring("members", "uninvite", open_["id"][-8:]).returncode == ExitCode.OK

    lines = tmp_path / "class.csv"
    lines.write_text("name,limit\nDora,5.00\nben,1\nEve,-1\n")
    refused = shoestring("members", "import", str(lines))
    assert refused.returncode == ExitCode.USAGE
    assert "line 4" in refused.stderr
    assert "Dora" not in shoestring("members", "ls").stdout
    lines.write_text("name,limit\nDora,5.00\nEve,\n")
    links = list(csv.DictReader(io.StringIO(shoestring("members", "import", str(lines)).stdout)))
    assert [one["name"] for one in links] == ["Dora", "Eve"]
    code = {"code": httpx.URL(links[0]["link"]).params["invite"]}
    assert deployment.nobody.post("/v1/invitations:take", json=code).json()["user"] == "Dora"
    assert '"5.00"' in shoestring("budget", "show", "--json").stdout
    assert "limit 5.00, role member" in shoestring("audit", "ls").stdout


def test_the_audit_log_is_listed_and_verified(shoestring: Shoestring, deployment: Deployment) -> None:
    shoestring("budget", "set", "7.00", "--reason", "a new term")
    (entry,) = json.loads(shoestring("audit", "ls", "--json").stdout)
    assert (entry["actor"], entry["action"], entry["address"]) == ("ada", "set_limit", "127.0.0.1")
    assert entry["detail"] == {"limit": "7.00", "reason": "a new term"}
    assert "Not sealed yet: 1" in shoestring("audit", "verify").stdout
    with deployment.store.read() as db:
        (team,) = audit.unchained_teams(db)
    seal = deployment.store.write(lambda db: audit.chain_batch(db, team))
    assert seal is not None
    audit_seals.store_seal(deployment.state.objects, SECRET, seal)
    assert "Chained entries: 1, sealed: 1." in shoestring("audit", "verify").stdout
    with deployment.store.writer.begin() as connection:
        connection.execute(text("DROP TRIGGER audit_entries_refuse_update"))
        connection.execute(text("UPDATE audit_entries SET actor = 'ben'"))
    found = shoestring("audit", "verify")
    assert (found.returncode, "Entry 1" in found.stderr) == (ExitCode.JOB_FAILED, True)
    assert shoestring("audit", "ls", key=deployment.keys[1]).returncode == ExitCode.AUTH
