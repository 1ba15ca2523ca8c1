# SPDX-License-Identifier: Apache-2.0
"""The processes of `bench.load`: API, worker and beat of a checkout, in its own environment, and the clients."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from shoestring_core import spec
from shoestring_core.store import identity, jobs
from shoestring_core.store.db import open_store
from shoestring_core.store.transactions import Write

from bench.load_clients import SPEC
from bench.trainer_cpu import ROOT
from tests.servers import Valkey, free_port, until

PEOPLE = 5
"""A person may have 50 live streams."""
JOBS_PER_WRITE = 50
PATIENCE_S = 120.0


@dataclass
class Service:
    """The service of a checkout with `.venv`, on a database of its own and a free port.

    Its one provider is simulated, with machines that nobody works on.
    """

    checkout: Path
    database_url: str
    folder: Path
    valkey: Valkey
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> list[Path]:
        """Create the tables and the team; returns the files of its members' keys."""
        self.folder.mkdir(parents=True)
        self.valkey.wipe()
        files = [self.folder / f"{number}.key" for number in range(PEOPLE)]
        for number, file in enumerate(files):
            bootstrap = ["shoestring_api.admin", "bootstrap", "--user", f"user{number}", "--key-file", str(file)]
            subprocess.run(
                self._command(*bootstrap, "--budget", "1000000"),
                env=self._environment(), cwd=self.folder, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        return files

    def fill(self, jobs_queued: int) -> None:
        """Queue so many jobs without the API. Only for this checkout, whose store this is."""
        store = open_store(self.database_url)
        with store.read() as db:
            person = identity.authenticate(db, (self.folder / "0.key").read_text().strip())
        job = spec.parse(SPEC)

        def some(db: Write) -> None:
            for _ in range(JOBS_PER_WRITE):
                jobs.submit(db, person, job, min_hold=0)

        for _ in range(0, jobs_queued, JOBS_PER_WRITE):
            store.write(some)
        store.close()

    def start_api(self) -> None:
        self._start("api", "shoestring_api")
        until(self._answers, PATIENCE_S)

    def start_worker(self) -> None:
        celery = ("celery", "-A", "shoestring_worker.app")
        options = ("--pool", "threads", "--concurrency", "8", "--loglevel", "warning", "--without-gossip")
        self._start("worker", *celery, "worker", *options, "--without-mingle")
        self._start("beat", *celery, "beat", "--loglevel", "warning", "--schedule", "beat", "--pidfile", "")

    def cpu_s(self, name: str) -> float:
        """CPU seconds of the process so far, user and system."""
        used = psutil.Process(self.processes[name].pid).cpu_times()
        return used.user + used.system

    def memory_mb(self, name: str) -> float:
        """What the process has allocated. Pages of files are left out: they are its own or not depending on which other
        processes have mapped the same libraries."""
        rollup = Path(f"/proc/{self.processes[name].pid}/smaps_rollup").read_text(encoding="ascii")
        (kib,) = (line.split()[1] for line in rollup.splitlines() if line.startswith("Anonymous:"))
        return int(kib) * 1024 / 1e6

    def terminate(self, name: str) -> float:
        """SIGTERM; the seconds until the process has ended."""
        process = self.processes.pop(name)
        told_at = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE_S)
        return time.monotonic() - told_at

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(timeout=PATIENCE_S)
        self.processes.clear()

    def _start(self, name: str, *module: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self._command(*module), env=self._environment(), cwd=self.folder, stdout=log, stderr=log
            )

    def _command(self, *module: str) -> list[str]:
        return [str(self.checkout / ".venv" / "bin" / "python"), "-m", *module]

    def _environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SHOESTRING_", "PYTHONPATH"))}
        return own | {
            "SHOESTRING_DATABASE_URL": self.database_url,
            "SHOESTRING_REDIS_URL": self.valkey.url,
            "SHOESTRING_SECRET": "secret",
            "SHOESTRING_OBJECT_STORE": str(self.folder / "objects"),
            "SHOESTRING_OBJECTS": str(self.folder / "objects"),  # its name at d8329ab
            "SHOESTRING_PORT": str(self.port),
            "SHOESTRING_PROVIDERS": "sim",
            "SHOESTRING_MACHINEHOST_FILE": str(self.folder / "none.json"),
            "MALLOC_ARENA_MAX": "2",  # as `shoestring up` and docker-compose.yml set them
            "MALLOC_MMAP_THRESHOLD_": "131072",
            **{f"SHOESTRING_TIMEOUTS__{name}": "24h" for name in ("FUNDING_LEASE", "BOOT", "LAUNCH_WINDOW")},
        }

    def _answers(self) -> bool:
        if self.processes["api"].poll() is not None:
            raise RuntimeError(f"the API of {self.checkout} ended: {(self.folder / 'api.log').read_text()[-2000:]}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False).status_code == 200
        return False


class ClientProcess:
    """A process of `bench.load_clients`."""

    def __init__(self, url: str, key_files: list[Path]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load_clients", url, *map(str, key_files)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def do(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.send(command, **arguments)
        return self.receive()

    def send(self, command: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The result of the command that was sent."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the clients ended; their error is above")
        result: dict[str, Any] = json.loads(line)
        return result


@contextlib.contextmanager
def running(checkout: Path, database_url: str, folder: Path, valkey: Valkey) -> Iterator[tuple[Service, ClientProcess]]:
    """The API of a checkout on an empty database, with clients."""
    service = Service(checkout, database_url, folder, valkey)
    keys = service.prepare()
    try:
        service.start_api()
        with ClientProcess(service.url, keys) as clients:
            yield service, clients
    finally:
        service.stop()
