# SPDX-License-Identifier: Apache-2.0
"""docker-compose.yml without an engine: its services as plain processes, by their own commands, environment and checks.

What a container would bring is replaced in the text of the file: host names and ports by those of real servers here,
the volume /data by a folder, `${VARIABLES}` by their values.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.service import PACKAGE_FOLDERS, ROOT, machine_processes
from tests.servers import PATIENCE_S, end_group, free_port, until

SERVERS = {"postgres", "redis"}


class Composed:
    """Our services of docker-compose.yml, started in the order of their `depends_on`."""

    def __init__(self, folder: Path, database_url: str, redis_url: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        replacements = {
            r"postgresql\+psycopg://\S+@postgres:5432/\w+": database_url,
            r"redis://redis:6379/0": redis_url,
            r"\$\{SHOESTRING_SECRET:[^}]*\}": os.urandom(32).hex(),
            r"\$\{SHOESTRING_OBJECT_STORE:-/data/objects\}": str(folder / "objects"),
            r"\$\$": "$",
            r"\b8000\b": str(self.port),
            r"\b0\.0\.0\.0\b": "127.0.0.1",
            r"/data/machines\b": str(folder / "cloud"),  # where a witness looks for the machines' journals
            r"(?<![\w/])/data\b": str(folder),
            r"/tmp/beat": str(folder / "beat"),
        }
        self._there = re.compile("|".join(f"({pattern})" for pattern in replacements))
        self._texts = list(replacements.values())
        document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        self.services = {
            name: self._here(service) for name, service in document["services"].items() if name not in SERVERS
        }

    def start(self) -> None:
        waiting = dict(self.services)
        while waiting:
            name = next(name for name in waiting if not waiting.keys() & waiting[name].get("depends_on", {}).keys())
            self._start(name, waiting.pop(name))

    def stop(self) -> None:
        """In the reverse order; machines end with their host, as compose stops it."""
        for name in reversed(self.processes):
            end_group(self.processes[name])
        for pid in machine_processes(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, service: dict[str, Any]) -> None:
        environment = self._environment(service)
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self._argv(service["command"]),
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[name] = process
        if "healthcheck" not in service:
            assert process.wait(timeout=PATIENCE_S) == 0, self.log(name)
            return
        kind, *test = service["healthcheck"]["test"]
        check = ["sh", "-c", *test] if kind == "CMD-SHELL" else self._argv(test)

        def healthy() -> bool:
            assert process.poll() is None, f"{name} ended with {process.returncode}:\n{self.log(name)}"
            return subprocess.run(check, env=environment, capture_output=True, timeout=PATIENCE_S).returncode == 0

        until(healthy, every_s=1)

    def _environment(self, service: dict[str, Any]) -> dict[str, str]:
        """A container's: what the file gives, or hands on from outside, and what any process needs."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        python_path = os.pathsep.join(str(ROOT / package) for package in PACKAGE_FOLDERS)
        given = service.get("environment", {})
        handed_on = {name: os.environ[name] for name, value in given.items() if value is None and name in os.environ}
        fixed = {name: value for name, value in given.items() if value is not None}
        return {**kept, "PATH": path, "PYTHONPATH": python_path, **fixed, **handed_on}

    def _argv(self, command: list[str]) -> list[str]:
        return [sys.executable if word == "python" else word for word in command]

    def _here(self, value: Any) -> Any:
        match value:
            case dict():
                return {key: self._here(inner) for key, inner in value.items()}
            case list():
                return [self._here(inner) for inner in value]
            case str():
                here = self._there.sub(lambda found: self._texts[(found.lastindex or 0) - 1], value)
                assert "${" not in here, f"nothing is known here for {value}"
                return here
        return value
