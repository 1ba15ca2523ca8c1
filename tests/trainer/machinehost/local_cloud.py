# SPDX-License-Identifier: Apache-2.0
"""A real machine host for tests: start it, kill it, ask it, and look at its machines from outside."""

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
T = TypeVar("T")


def until(ask: Callable[[], T], within_s: float = PATIENCE_S) -> T:
    """The first true answer; fails if there is none in time."""
    deadline = time.monotonic() + within_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"still {answer!r} after {within_s} s"
        time.sleep(0.01)
    return answer


class LocalCloud:
    """One folder and, most of the time, one machine host that serves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.client = httpx.Client(verify=False)

    def start(self, *flags: str, slots: int = 4, crash: str = "", env: dict[str, str] | None = None) -> None:
        """`crash` is Python that plants a kill -9 of the host somewhere, run before its main."""
        self.process = self.popen(*flags, f"--slots={slots}", crash=crash, env=env)
        told = self.folder / "machinehost.json"
        pid = self.process.pid
        where = until(lambda: (said := read(told)).get("pid") == pid and said)
        self.client = httpx.Client(
            base_url=where["url"], headers={"Authorization": f"Bearer {where['key']}"}, timeout=PATIENCE_S, verify=False
        )

    def popen(self, *flags: str, crash: str = "", env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        loaded = "import os, sys; from shoestring_trainer.machinehost import host as machinehost"
        code = f"{loaded}\n{crash}\nsys.exit(machinehost.main())"
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

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
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

    def running(self, token: str = "token-1", **changed: Any) -> dict[str, Any]:
        """A launched machine whose agent has told its pids."""
        machine = self.launch(token, **changed)
        until((Path(machine["dir"]) / "pids.json").exists)
        return self.show(machine)

    def show(self, machine: dict[str, Any]) -> dict[str, Any]:
        return self.client.get(f"/machines/{machine['id']}").raise_for_status().json()

    def ended(self, machine: dict[str, Any], within_s: float = PATIENCE_S) -> dict[str, Any]:
        return until(lambda: (seen := self.show(machine))["state"] == "ended" and seen, within_s)

    def stop(self, machine: dict[str, Any]) -> None:
        assert self.client.delete(f"/machines/{machine['id']}").status_code == 202

    def reclaim(self, machine: dict[str, Any], notice_s: float) -> dict[str, Any]:
        reply = self.client.post(f"/machines/{machine['id']}/reclaim", json={"notice_s": notice_s})
        assert reply.status_code == 202, reply.text
        return reply.json()

    def clean_up(self) -> None:
        if self.process:
            self.end()
        for folder in (self.folder / "machines").glob("lm-*"):
            for _ in range(3):  # one look misses a process that forks and exits meanwhile
                until(lambda folder=folder: not [kill(pid) for pid in alive_in(folder)])


def journal(machine: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(machine["journal"]).read_text().splitlines()]


def events(machine: dict[str, Any]) -> list[str]:
    return [line["event"] for line in journal(machine)]


def pids(machine: dict[str, Any]) -> dict[str, int]:
    return json.loads((Path(machine["dir"]) / "pids.json").read_text())


def read(path: Path) -> dict[str, Any]:
    """A file that may be replaced or removed at any moment; {} without one."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def working_in(folder: str | Path) -> list[int]:
    """What a machine runs, without inits: one may just be leaving, its last word said or not needed."""
    return [pid for pid in alive_in(folder) if not is_init_or_gone(pid)]


def is_init_or_gone(pid: int) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
    return not line or b"shoestring_trainer.machinehost.init" in line


def alive_in(folder: str | Path) -> list[int]:
    """Processes of a machine, as the process table shows them."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("SHOESTRING_MACHINE_DIR") == str(folder)
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


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
