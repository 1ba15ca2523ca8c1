# SPDX-License-Identifier: Apache-2.0
"""The operator's commands: members of teams, and what their removal ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from shoestring_api import admin
from shoestring_core.errors import Unauthenticated
from shoestring_core.store import identity, ledger, sessions
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.transactions import Write


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command against a database of its own; returns its exit code, the JSON it printed, and stderr."""
    monkeypatch.setenv("SHOESTRING_DATABASE_URL", f"sqlite:///{tmp_path / 'store.db'}")

    def command(*arguments: str):
        monkeypatch.setattr("sys.argv", ["admin", *arguments])
        code = admin.main()
        printed = capsys.readouterr()
        return code, json.loads(printed.out or "null"), printed.err

    assert command("bootstrap", "--key-file", str(tmp_path / "admin.key"))[0] == 0
    return command


@pytest.fixture
def store(run, tmp_path: Path):
    store = open_store(f"sqlite:///{tmp_path / 'store.db'}")
    yield store
    store.close()


def principal(store: Store, key: str) -> identity.Principal:
    with store.read() as db:
        return identity.authenticate(db, key)


def test_a_member_is_added_listed_promoted_and_removed(run, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "ada.key"
    file.touch(0o644)
    add = ("add-member", "--team", "vision", "--user", "ada", "--role", "admin", "--key-file", str(file))
    assert run(*add)[1] == {"team": "vision", "user": "ada", "role": "admin"}
    assert file.stat().st_mode & 0o777 == 0o600
    ada = principal(store, key := file.read_text().strip())
    assert (ada.team_name, ada.user_name, ada.role) == ("vision", "ada", "admin")
    with store.read() as db:
        assert ledger.team_account(db, ada.team).limit_micro == 10_000_000, "a new team can't spend without bound"
    assert run(*add)[0] == 0
    assert file.read_text().strip() == key, "again: the same key"
    assert run("add-member", "--team", "vision", "--user", "bob", "--key-file", str(tmp_path / "bob.key"))[0] == 0
    assert run("set-role", "--team", "vision", "--user", "bob", "--role", "admin")[0] == 0
    assert run("set-role", "--team", "vision", "--user", "ada", "--role", "member")[0] == 0
    assert run("members", "--team", "vision")[1] == [
        {"team": "vision", "user": "ada", "role": "member", "keys": 1},
        {"team": "vision", "user": "bob", "role": "admin", "keys": 1},
    ]
    session = store.write(lambda db: sessions.open_session(db, principal(store, key)))
    code = store.write(lambda db: sessions.create_login_code(db, principal(store, key)))
    assert run("remove-member", "--team", "vision", "--user", "ada")[0] == 0
    with pytest.raises(Unauthenticated):
        principal(store, key)
    with pytest.raises(Unauthenticated), store.read() as db:
        sessions.authenticate(db, session.secret)
    with pytest.raises(Unauthenticated):
        store.write(lambda db: sessions.redeem_login_code(db, code))
    assert [member["user"] for member in run("members")[1]] == ["admin", "bob"]


def test_a_user_who_is_added_again_does_not_get_back_the_keys_that_ended(run, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "ada.key"
    add = ("add-member", "--team", "lab", "--user", "ada", "--key-file", str(file))
    run(*add)
    key = file.read_text().strip()
    run("remove-member", "--team", "lab", "--user", "ada")
    run(*add)
    with pytest.raises(Unauthenticated):
        principal(store, key)
    assert principal(store, file.read_text().strip()).user_name == "ada"


@pytest.mark.parametrize(
    "command",
    [
        ("remove-member", "--team", "lab", "--user", "admin"),
        ("set-role", "--team", "lab", "--user", "admin", "--role", "member"),
    ],
)
def test_a_team_keeps_an_admin(run, command: tuple[str, ...]) -> None:
    code, _, message = run(*command)
    assert (code, message) == (1, "admin is the only admin of team lab. Make another member an admin first.\n")


@pytest.mark.parametrize("limit", [25_000_000, None])
def test_a_first_limit_is_no_later_one(run, store: Store, tmp_path: Path, limit: int | None) -> None:
    bootstrap = ("bootstrap", "--key-file", str(tmp_path / "admin.key"))
    assert run(*bootstrap)[1]["limit"] == "10.00"
    lab = principal(store, (tmp_path / "admin.key").read_text().strip()).team

    def set_limit(db: Write) -> None:
        ledger.set_limit(db, ledger.team_account(db, lab).id, limit, actor="ada", reason="a new term")

    store.write(set_limit)
    for again in (bootstrap, (*bootstrap, "--budget", "5")):
        assert run(*again)[1]["limit"] == (limit and "25.00")
    with store.read() as db:
        assert ledger.team_account(db, lab).limit_micro == limit


def test_an_unknown_member_is_named(run) -> None:
    code, _, message = run("remove-member", "--team", "lab", "--user", "eve")
    assert code == 1
    assert "eve is no member of team lab" in message


def test_the_help_and_the_page_name_each_command_with_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["admin", "--help"])
    with pytest.raises(SystemExit):
        admin.main()
    shown = capsys.readouterr().out
    page = (Path(__file__).parents[2] / "docs/operations/teams.md").read_text(encoding="utf-8")
    for command in ("bootstrap", "members", "add-member", "set-role", "remove-member"):
        assert re.search(rf"^    {command}\b", shown, re.M), shown
        assert f"| `{command} " in page
    for command in ("members", "add-member", "set-role", "remove-member"):
        assert f"python -m shoestring_api.admin {command}" in shown
