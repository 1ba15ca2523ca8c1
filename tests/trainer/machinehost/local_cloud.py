# SPDX-License-Identifier: Apache-2.0
"""A real machine host for tests: start it, kill it, call it, and observe its machines from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from tests.servers import PATIENCE_S

ROOT = Path(__file__).parents[3]
AGENT = [sys.executable, str(Path(__file__).with_name("stand_in_agent.py"))]
SPOT = {"tags": {"job": "j1"}, "type": "local.cpu", "market": "spot", "price": "0.158", "user_data": {}}
SOON_S = 20.0
"""What happens by itself at a time that was set comes no later after it, on a busy machine too."""
T = TypeVar("T")


def until(condition: Callable[[], T], within_s: float = PATIENCE_S) -> T:
    """Call `condition` until it returns something true, and return that; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"still {result!r} after {within_s} s"
        time.sleep(0.01)
    return result


class LocalCloud:
    """A folder and the machine host that serves it, if one is running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.client = httpx.Client(verify=False)

    def start(self, *flags: str, slots: int = 4, patch: str = "", env: dict[str, str] | None = None) -> None:
        """`patch` is Python that runs before the host's main, such as to make it kill itself at some point."""
        self.process = self.popen(*flags, f"--slots={slots}", patch=patch, env=env)
        address_file, pid = self.folder / "machinehost.json", self.process.pid
        address = until(lambda: (content := read(address_file)).get("pid") == pid and content)
        self.client = httpx.Client(
            base_url=address["url"],
            headers={"Authorization": f"Bearer {address['key']}"},
            timeout=PATIENCE_S,
            verify=False,
        )

    def popen(self, *flags: str, patch: str = "", env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        imports = "import os, sys; from shoestring_trainer.machinehost import command_line, host"
        code = f"{imports}\n{patch}\nsys.exit(command_line.main())"
        return subprocess.Popen(
            [sys.executable, "-c", code, "--dir", str(self.folder), *flags],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": "core:trainer",
                "SHOESTRING_AGENT_COMMAND": json.dumps(AGENT),
                **(env or {}),
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill_host(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal the host and return its exit code."""
        assert self.process
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        assert self.process.stderr
        self.process.stderr.close()
        self.process = None
        return code

    def launch(self, token: str = "token-1", **changed: Any) -> dict[str, Any]:
        reply = self.client.put(f"/machines/{token}", json={**SPOT, **changed})
        assert reply.status_code == 201, reply.text
        return reply.json()

    def launch_running(self, token: str = "token-1", **changed: Any) -> dict[str, Any]:
        """Launch a machine, and wait until its agent has written its pids."""
        machine = self.launch(token, **changed)
        until((Path(machine["dir"]) / "pids.json").exists)
        return self.show(machine)

    def show(self, machine: dict[str, Any]) -> dict[str, Any]:
        return self.client.get(f"/machines/{machine['id']}").raise_for_status().json()

    def wait_until_ended(self, machine: dict[str, Any], within_s: float = PATIENCE_S) -> dict[str, Any]:
        return until(lambda: (shown := self.show(machine))["state"] == "ended" and shown, within_s)

    def stop(self, machine: dict[str, Any]) -> None:
        assert self.client.delete(f"/machines/{machine['id']}").status_code == 202

    def preempt(self, machine: dict[str, Any], notice_s: float) -> dict[str, Any]:
        reply = self.client.post(f"/machines/{machine['id']}/preempt", json={"notice_s": notice_s})
        assert reply.status_code == 202, reply.text
        return reply.json()

    def clean_up(self) -> None:
        if self.process:
            self.kill_host()
        for folder in (self.folder / "machines").glob("lm-*"):
            for _ in range(3):  # one scan misses a process that forks and exits meanwhile
                until(lambda folder=folder: not [kill(pid) for pid in processes_of(folder)])


def journal(machine: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(machine["journal"]).read_text().splitlines()]


def events(machine: dict[str, Any]) -> list[str]:
    return [line["event"] for line in journal(machine)]


def pids(machine: dict[str, Any]) -> dict[str, int]:
    return json.loads((Path(machine["dir"]) / "pids.json").read_text())


def read(path: Path) -> dict[str, Any]:
    """The content of a JSON file; {} if it does not exist."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def processes_without_init(folder: str | Path) -> list[int]:
    """Processes of a machine without inits: one may still be exiting after the end is journaled."""
    return [pid for pid in processes_of(folder) if not is_init_or_gone(pid)]


def is_init_or_gone(pid: int) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
    return not line or b"shoestring_trainer.machinehost.init" in line


def processes_of(folder: str | Path) -> list[int]:
    """Running processes of a machine, by the process table."""
    pids = []
    for process in psutil.process_iter():
        try:
            in_machine = process.environ().get("SHOESTRING_MACHINE_DIR") == str(folder)
            if in_machine and process.status() != psutil.STATUS_ZOMBIE:
                pids.append(process.pid)
        except psutil.Error:
            continue
    return pids


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(pid: int) -> int:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return pid
