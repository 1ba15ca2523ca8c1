# SPDX-License-Identifier: Apache-2.0
"""What `shoestring up` refuses to start on."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

from shoestring_core.store.db import open_store

from tests import servers
from tests.e2e.service import environment


def test_a_port_in_use_is_refused_with_what_to_type(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = refusal(tmp_path / "data", "--port", str(port))
    assert refused.returncode == 2
    assert f"shoestring up --port {port + 1}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_data_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = refusal(tmp_path / "file" / "data", "--port", str(servers.free_port()))
    assert refused.returncode == 2
    assert "can't be written" in refused.stderr
    assert "--data DIR" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_data_folder_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    store = open_store(f"sqlite:///{data / 'store.db'}")
    store.migrate()
    store.close()
    with sqlite3.connect(data / "store.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    refused = refusal(data, "--port", str(servers.free_port()))
    assert refused.returncode == 2
    assert "this version of Shoestring knows up to" in refused.stderr
    assert "Traceback" not in refused.stderr


def refusal(data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoestring", "up", "--data", str(data), *options],
        env=environment(data, {}), capture_output=True, text=True, timeout=servers.PATIENCE_S,
    )  # fmt: skip
