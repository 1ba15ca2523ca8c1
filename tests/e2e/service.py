# SPDX-License-Identifier: Apache-2.0
"""The whole service as a user starts it, `shoestring up` in a process of its own, for tests to use and to hurt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from shoestring import Client, ServiceUnreachable, watch
from shoestring_core import rest

from tests import servers
from tests.certificates import Certificate
from tests.isolation import path_with_bubblewrap

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
PACKAGE_FOLDERS = ("core", "api", "worker", "trainer", "client")

SMALL_JOB: dict[str, Any] = {
    "recipe": "digits/quickstart",
    "params": {"epochs": 4, "width": 8, "sync_batch_norm": False},
    "resources": {"nodes": 2, "procs": 1},
    "limits": {"cost": "0.50"},
}
"""179 steps of real training on two machines: a few seconds once its processes are up. Norms that meet over the
machines would double that, and prove nothing here."""

PATIENT = dict.fromkeys(
    (f"SHOESTRING_TIMEOUTS__{name}" for name in ("BOOT", "LAUNCH_WINDOW", "FORMING")), f"{servers.PATIENCE_S:.0f}s"
)
"""A busy machine starts processes slowly. The service doesn't take that for a failure, which would be one attempt or
generation more than a test counts."""


@dataclass
class Service:
    """One data folder and the `up` that runs on it. Killed and started again, it stays the same service."""

    data: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ("--budget", "5.00")
    certificate: Certificate | None = None
    """Served by https with this one."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    @property
    def hooks(self) -> Path:
        """The folder with the hooks that jobs may run."""
        return self.data.with_name("hooks")

    @property
    def client(self) -> Client:
        ca = self.certificate.text if self.certificate else ""
        return Client(self.url, (self.data / "admin.key").read_text().strip(), ca=ca)

    def start(self) -> None:
        """Start `up` and wait until it has said where the dashboard is."""
        command = [sys.executable, "-m", "shoestring", "up", "--data", str(self.data), "--port", str(self.port)]
        command += ["--hooks-root", str(self.hooks)]
        if self.certificate:
            command += ["--tls-cert", str(self.certificate.file), "--tls-key", str(self.certificate.key_file)]
        self.hooks.mkdir(parents=True, exist_ok=True)
        log_path = self.data.with_suffix(".up.log")
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                [*command, *self.options], env=environment(self.data, self.environment), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        link = b"/login?code="
        until(lambda: link in log_path.read_bytes()[begin:] or self.process.poll() is not None, "up to start")
        assert self.process.poll() is None, log_path.read_text()

    def interrupt(self) -> int:
        """Ctrl-C, once; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(servers.PATIENCE_S)

    def kill(self) -> None:
        """kill -9 of `up` itself."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Leave nothing running, whatever state the test left it in."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            time.sleep(0.1)
            self.process.send_signal(signal.SIGINT)  # in a hurry: machines are not asked to checkpoint
            try:
                self.process.wait(servers.PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        for pid in machine_processes(self.data):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def wait(self, job: Any, ready: Callable[[rest.Job], bool], within_s: float = servers.PATIENCE_S) -> rest.Job:
        """The job, a moment after it is `ready`: each question costs the API and this process 15 ms."""
        client = self.client

        def look() -> rest.Job | None:
            try:
                found = client.job(job)
            except ServiceUnreachable:
                return None  # the API may be what the test has hurt
            return found if ready(found) else None

        return until(look, "the job", within_s, every_s=0.5)

    def trained(self, job: Any, step: int) -> rest.Job:
        """The job, as soon as it has trained beyond `step`: watched, so that it is told at once.

        The API may be on its way up.
        """
        self.wait(job, lambda _: True)
        for found, _ in watch.follow(self.client, str(job)):
            if found.state == "running" and found.progress.step > step:
                return found
        raise AssertionError(f"the job was over before step {step}")

    def settled(self, job: Any, within_s: float = 2 * servers.PATIENCE_S) -> rest.Job:
        """The job once it has ended and its money is settled."""
        return self.wait(job, lambda found: found.settled_at is not None, within_s)

    def child(self, name: str) -> int:
        """The pid of a child of `up`: api, worker, beat, redis, machines. It must live."""
        found = self.find_child(name)
        assert found is not None, f"{name} does not run"
        return found

    def find_child(self, name: str) -> int | None:
        marks = {
            "api": "shoestring_api", "worker": "worker", "beat": "beat", "redis": "valkey-server",
            "machines": "shoestring_trainer.machinehost",
        }  # fmt: skip
        assert self.process is not None
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except OSError:
            return None
        return next((int(pid) for pid in children if _runs(marks[name], _command_line(int(pid)))), None)


def environment(data: Path, extra: dict[str, str]) -> dict[str, str]:
    """A child's environment: our packages importable, no login but this service's, nothing inherited that steers it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOESTRING_")}
    path = os.pathsep.join(str(ROOT / package) for package in PACKAGE_FOLDERS)
    login = str(data.with_suffix(".login.json"))
    return kept | {"PYTHONPATH": path, "PATH": path_with_bubblewrap(), "SHOESTRING_CONFIG": login} | extra


def start(folder: Path, environment: Mapping[str, str] = {}, **options: Any) -> Service:
    """A service that is patient with what starts."""
    service = Service(folder / "service", servers.free_port(), PATIENT | environment, **options)
    service.start()
    return service


def until(look: Callable[[], T | None], what: str, within_s: float = servers.PATIENCE_S, every_s: float = 0.05) -> T:
    """What `look` gives once it gives something. Fails the test after `within_s`."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {within_s:.0f} s for {what}"
        time.sleep(every_s)
    return found


def machine_processes(data: Path) -> list[int]:
    """Processes of any machine of this service, by their environment: the witness is the process table."""
    return carrying(str(data / "cloud" / "machines").encode())


def service_processes(service: Service) -> list[int]:
    """Processes that `up` started and that are not machines', by their environment."""
    return carrying(f"SHOESTRING_MACHINEHOST_FILE={service.data}/cloud/machinehost.json".encode())


def carrying(mark: bytes) -> list[int]:
    """Living processes with this in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def journals(data: Path) -> list[list[dict[str, Any]]]:
    """The machine host's journals, a list of entries for each machine."""
    files = sorted((data / "cloud" / "machines").glob("*/journal.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def _runs(mark: str, command_line: str) -> bool:
    """Whether an argument is `mark`, or a path to it: Redis writes its title over its arguments."""
    arguments = [argument.split(" ")[0] for argument in command_line.split("\0")]
    return any(argument == mark or argument.endswith(f"/{mark}") for argument in arguments)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
