# SPDX-License-Identifier: Apache-2.0
"""The API as a process of its own: how it starts, refuses to start, and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from shoestring_core.store import identity
from shoestring_core.store.db import open_store
from sqlalchemy import text

from tests.servers import PATIENCE_S, free_port, until

pytestmark = pytest.mark.any_database


def test_it_serves_and_lets_streams_go_when_it_is_told_to_end(database_url: str, tmp_path: Path) -> None:
    key = _prepared(database_url)
    settings = _settings(database_url, tmp_path)
    url = f"http://127.0.0.1:{settings['SHOESTRING_PORT']}"
    with _process(settings) as process:
        until(lambda: _answers(url))
        key_header = {"Authorization": f"Bearer {key}"}
        with httpx.stream(
            "GET", f"{url}/v1/stream", headers=key_header, timeout=PATIENCE_S, trust_env=False, verify=False
        ) as live:
            assert live.status_code == 200
            process.send_signal(signal.SIGTERM)
            for _ in live.iter_lines():  # which raises if uvicorn cuts the stream off
                pass
        process.wait(timeout=PATIENCE_S)


def test_a_port_in_use_is_named(database_url: str, tmp_path: Path) -> None:
    _prepared(database_url)
    settings = _settings(database_url, tmp_path)
    with _process(settings):
        until(lambda: _answers(f"http://127.0.0.1:{settings['SHOESTRING_PORT']}"))
        code, output = _refusal(settings)
        assert code == 3
        assert f"Port {settings['SHOESTRING_PORT']} is in use" in output


def test_a_database_that_is_not_there_or_not_prepared_is_named(database_url: str, tmp_path: Path) -> None:
    settings = _settings(database_url, tmp_path)
    code, output = _refusal(settings)
    assert code == 4
    advice = output.rpartition("python -m ")[2].replace("FILE", str(tmp_path / "admin.key")).split()
    assert _ended(settings, *advice)[0] == 0
    assert open_store(database_url).is_current()
    code, output = _refusal(_settings("postgresql://nobody@127.0.0.1:1/none", tmp_path))
    assert code == 4
    assert "PostgreSQL can't be reached" in output


def test_a_newer_database_is_refused(database_url: str, tmp_path: Path) -> None:
    _prepared(database_url)
    store = open_store(database_url)
    with store.writer.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    code, output = _refusal(_settings(database_url, tmp_path))
    assert code == 4
    assert "Upgrade Shoestring" in output


@pytest.mark.parametrize(
    ("url", "key_file", "expected_text"),
    [
        ("", "admin.key", "Set SHOESTRING_DATABASE_URL"),
        ("sqlite:///{folder}/store.db", "no/such/folder", "No such file"),
    ],
)
def test_preparing_a_database_that_cannot_be_prepared_is_told(
    url: str, key_file: str, expected_text: str, tmp_path: Path
) -> None:
    settings = {"SHOESTRING_DATABASE_URL": url.format(folder=tmp_path)}
    code, output = _ended(settings, "shoestring_api.admin", "bootstrap", "--key-file", str(tmp_path / key_file))
    assert code == 1
    assert expected_text in output


@pytest.mark.parametrize("missing", ["SHOESTRING_DATABASE_URL", "SHOESTRING_OBJECT_STORE", "SHOESTRING_SECRET"])
def test_a_missing_setting_is_named(missing: str, tmp_path: Path) -> None:
    database_url = f"sqlite:///{tmp_path / 'store.db'}"
    _prepared(database_url)
    settings = _settings(database_url, tmp_path)
    del settings[missing]
    code, output = _refusal(settings)
    assert code == 2
    assert missing in output


def _prepared(database_url: str) -> str:
    """Tables, and an admin's key."""
    store = open_store(database_url)
    store.migrate()
    admin = store.write(lambda db: identity.ensure_admin(db, "lab", "vision", "ada"))
    key = store.write(lambda db: identity.create_key(db, "pat", admin, None)[1])
    store.close()
    return key


def _settings(database_url: str, folder: Path) -> dict[str, str]:
    return {
        "SHOESTRING_DATABASE_URL": database_url,
        "SHOESTRING_OBJECT_STORE": str(folder / "objects"),
        "SHOESTRING_SECRET": "secret",
        "SHOESTRING_PORT": str(free_port()),
    }


def _environment(settings: dict[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("SHOESTRING_")}
    return own | {"PYTHONPATH": os.pathsep.join(sys.path)} | settings


@contextlib.contextmanager
def _process(settings: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "shoestring_api"], env=_environment(settings))
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=PATIENCE_S)


def _refusal(settings: dict[str, str]) -> tuple[int, str]:
    return _ended(settings, "shoestring_api")


def _ended(settings: dict[str, str], *module: str) -> tuple[int, str]:
    """Exit code, and what was said on stderr."""
    ended = subprocess.run(
        [sys.executable, "-m", *module], env=_environment(settings), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stderr


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz", timeout=PATIENCE_S, trust_env=False, verify=False).status_code == 200
    return False
