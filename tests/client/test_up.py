# SPDX-License-Identifier: Apache-2.0
"""The children of `up`: none outlives it, not even one that was just being started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shoestring import embedded_redis
from shoestring.supervisor import StartupError, kill_with_parent
from shoestring.up import limit_notice, require_apart

from tests.servers import PATIENCE_S, until

PARENT = """
import subprocess, sys, time
from shoestring.supervisor import kill_with_parent
print(subprocess.Popen([*kill_with_parent(), "sleep", "60"]).pid, flush=True)
time.sleep(60)
"""


def test_a_child_dies_with_its_parent() -> None:
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = Path(f"/proc/{int(parent.stdout.readline())}")
        until(lambda: (child / "cmdline").read_bytes().startswith(b"sleep"))
        parent.send_signal(signal.SIGKILL)
    until(lambda: _has_ended(child))


def _has_ended(process: Path) -> bool:
    """Whether the process of this folder of /proc is gone, or waits to be reaped."""
    try:
        return ") Z " in (process / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_child_whose_parent_died_before_it_began_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    command = [*kill_with_parent(), "touch", str(begun)]
    assert subprocess.run(command, timeout=PATIENCE_S).returncode == 0
    assert begun.exists()
    begun.unlink()
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(os, "getpid", lambda: gone.pid)
    subprocess.run([*kill_with_parent(), "touch", str(begun)], timeout=PATIENCE_S)
    assert not begun.exists()


@pytest.mark.parametrize("root", ["service", "service/objects", "."])
def test_hooks_lie_apart_from_what_jobs_write(tmp_path: Path, root: str) -> None:
    hooks, service = {"SHOESTRING_HOOKS_ROOTS": str(tmp_path / root)}, tmp_path / "service"
    require_apart({"SHOESTRING_HOOKS_ROOTS": str(tmp_path / "hooks")}, service)
    for roots, data in ((hooks, service), (hooks | {"SHOESTRING_DATA_ROOTS": f"/srv:{service}"}, tmp_path / "data")):
        with pytest.raises(StartupError, match="keep hooks in a folder of their own"):
            require_apart(roots, data)


def test_a_first_limit_that_is_no_longer_the_limit_is_told_with_how_to_set_it() -> None:
    assert limit_notice("10", "10.00") == ""
    assert "no job starts" in limit_notice("0", "0.00")
    assert limit_notice("$5", "25.00") == (
        "The team's budget keeps its limit of $25.00: --budget sets the first limit only. "
        "To change it now: shoestring budget set 5.00"
    )
    assert "has no limit" in limit_notice("5", None)


@pytest.mark.parametrize("characters", [1, 90, 200])
def test_the_broker_s_socket_has_a_path_that_linux_takes_however_long_that_of_the_data_is(characters: int) -> None:
    folder = Path("/data") / ("x" * characters)
    path, temporary = embedded_redis.choose_socket(folder)
    assert len(os.fsencode(path)) <= embedded_redis.MAX_SOCKET_PATH_BYTES
    assert (temporary is None) == (characters < 100) == (path.parent == folder)
    if temporary is not None:
        assert temporary.stat().st_mode & 0o077 == 0
        temporary.rmdir()
