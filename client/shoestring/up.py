# SPDX-License-Identifier: Apache-2.0
"""`shoestring up`: the whole service in one terminal.

It starts five child processes and restarts them when they die: an embedded Redis-compatible server (unless
SHOESTRING_REDIS_URL names one), the machine host of the local cloud, the API, the worker and beat. They are started as
modules by name, so no server code is imported here. All state is in one data folder; when the service is started on it
again, running jobs resume.

If it is killed with SIGKILL, its children die with it, but not the machines: those train until their funding lease
expires, and the next `up` adopts them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from shoestring_core import money
from shoestring_core.isolation import IsolationStatus
from shoestring_core.regular_files import make_folder, read_regular_text
from shoestring_core.tls import BadCertificate, find_authority, read_certificates
from shoestring_core.wording.units import counted

from shoestring import embedded_redis, fake_ec2
from shoestring.child_environment import (
    DATA_ROOTS,
    HOOKS_ROOTS,
    PRIVATE_FOLDERS,
    child_environment,
    folders_of,
    private_files,
)
from shoestring.config import config_path, write_private
from shoestring.connections import certificates, open_http
from shoestring.supervisor import Child, StartupError, run_once, wait_until_ready

READY_TIMEOUT_S = 60.0
DRAIN_S = 20.0
"""How long machines get to checkpoint and exit on Ctrl-C."""
STOP_S = 5.0

PYTHON = (sys.executable, "-m")
CELERY = (*PYTHON, "celery", "-A")


@dataclass(frozen=True)
class ServiceOptions:
    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    budget: str | None = None
    slots: int | None = None
    data_roots: tuple[Path, ...] = ()
    """Folders that jobs may read training data from; if empty, SHOESTRING_DATA_ROOTS applies."""
    hooks_roots: tuple[Path, ...] = ()
    """Folders with hooks that jobs may run; if empty, SHOESTRING_HOOKS_ROOTS applies."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    """PEM files with the certificate that is served and its key; None: the service is served without encryption."""
    fake_ec2: bool = False
    """Rent machines of a fake EC2, which run on this computer too, and no others."""


@dataclass(frozen=True)
class ConnectionInfo:
    """URLs and keys of a running service."""

    url: str
    key: str
    key_file: Path
    login_url: str
    isolation: IsolationStatus
    ca: str = ""
    """What clients need to trust the service's certificate, in PEM form; "": nothing."""


@dataclass
class LocalService:
    """The service as child processes. Call `start`, then `run` until a signal, then `stop`."""

    options: ServiceOptions
    report: Callable[[str], None]
    children: list[Child] = field(default_factory=list)
    connection: ConnectionInfo | None = None
    _lock: int | None = None
    _temporary: Path | None = None

    def start(self) -> ConnectionInfo:
        """Start all processes and return how to reach the service. Raises StartupError."""
        data = self.options.data
        os.umask(0o077)  # whatever the terminal's: the data folder holds keys
        raise_open_files_limit()
        self._lock = lock_data_folder(data)
        environment = self._environment()
        environment[PRIVATE_FOLDERS] = list_of_folders(self.private_places(environment))
        require_apart(environment, data)
        require_free_port(self.options.host, self.options.port)
        url, ca = self._set_up_tls(environment)
        if "SHOESTRING_REDIS_URL" not in environment:
            environment["SHOESTRING_REDIS_URL"] = self._start_redis(environment)
        if self._temporary is not None:
            environment[PRIVATE_FOLDERS] += f"{os.pathsep}{self._temporary}"
        admin = self._bootstrap(environment)
        machines = self._child("machines", self._machine_host(), environment)
        on_aws = self._start_fake_ec2(environment) if self.options.fake_ec2 else environment
        api = self._child("api", [*PYTHON, "shoestring_api"], on_aws)
        worker = [*CELERY, "shoestring_worker.app", "worker", "--pool", "threads", "--concurrency", "8",
                  "--loglevel", "warning", "--without-gossip", "--without-mingle"]  # fmt: skip
        beat = [*CELERY, "shoestring_worker.celery_app", "beat", "--loglevel", "warning",
                "--schedule", str(data / "beat"), "--pidfile", ""]  # fmt: skip
        for child in (machines, api, self._child("worker", worker, on_aws), self._child("beat", beat, environment)):
            child.start()
        self._wait_until_healthy(api, httpx.URL(url), ca)
        for child in self.children:
            child.require_alive()
        address = data / "cloud" / "machinehost.json"
        wait_until_ready(machines, address.exists, READY_TIMEOUT_S)
        isolation = IsolationStatus.of(json.loads(address.read_text()))
        login_url = f"{url}/login?code={admin['code']}"
        self.connection = ConnectionInfo(url, admin["key"], data / "admin.key", login_url, isolation, ca)
        write_private(data / "client.json", json.dumps({"url": url, "key_file": str(data / "admin.key")}) + "\n")
        return self.connection

    def run(self, until: Callable[[], bool]) -> None:
        """Restart children that die, until `until()` is true."""
        while not until():
            for child in self.children:
                child.restart_if_dead(self.report)
            time.sleep(0.1)

    def stop(self, *, kill: Callable[[], bool] = lambda: False) -> None:
        """Let machines checkpoint and exit, then stop the children. Once `kill()` is true, kill them instead."""
        by_name = {child.name: child for child in self.children}
        for name in ("beat", "worker"):  # first, so that they do not replace the machines that stop
            if name in by_name:
                by_name[name].stop(grace_s=STOP_S)
        if "machines" in by_name:
            stop_machines(self.options.data / "cloud", DRAIN_S, self.report, kill)
        for child in reversed(self.children):
            child.stop(grace_s=0.1 if kill() else STOP_S)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _set_up_tls(self, environment: dict[str, str]) -> tuple[str, str]:
        """Returns the service's URL and the authority of its certificate. Raises StartupError."""
        url, certificate, key = environment["SHOESTRING_AGENT_URL"], self.options.tls_cert, self.options.tls_key
        if certificate is None or key is None:
            return service_url(self.options.host, self.options.port), ""
        url = environment.setdefault("SHOESTRING_PUBLIC_URL", url)
        try:
            given = read_certificates(Path(path)) if (path := environment.get("SHOESTRING_CA")) else ""
            ca = find_authority(certificate, key, httpx.URL(url).host, given)
        except BadCertificate as error:
            raise StartupError(str(error)) from error
        if ca:
            environment["SHOESTRING_CA"] = str(self.options.data / "ca.pem")
            write_private(self.options.data / "ca.pem", ca)
        environment |= {"SHOESTRING_TLS_CERT": str(certificate), "SHOESTRING_TLS_KEY": str(key)}
        return url, ca

    def _start_redis(self, environment: Mapping[str, str]) -> str:
        """Returns its URL. Raises StartupError."""
        folder = self.options.data / "redis"
        redis_socket, self._temporary = embedded_redis.choose_socket(folder)
        url = f"unix://{quote(str(redis_socket))}"
        command = embedded_redis.command(folder, redis_socket)
        redis = self._child("redis", command, {**environment, "SHOESTRING_REDIS_URL": url})
        redis.start()
        wait_until_ready(redis, redis_socket.exists, READY_TIMEOUT_S)
        return url

    def _bootstrap(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """Migrate the database, and create the admin at the first start. Raises StartupError.

        Returns the admin's key, a code to log in with once, and the team's limit.
        """
        data, budget = self.options.data, self.options.budget
        bootstrap = [*PYTHON, "shoestring_api.admin", "bootstrap", "--key-file", str(data / "admin.key")]
        if budget is not None:
            bootstrap += ["--budget", budget]
        admin: dict[str, Any] = json.loads(run_once(bootstrap, environment, data, READY_TIMEOUT_S).splitlines()[-1])
        if budget is not None and (notice := limit_notice(budget, admin["limit"])):
            self.report(notice)
        return admin

    def _machine_host(self) -> list[str]:
        """The command that starts it."""
        command = [*PYTHON, "shoestring_trainer.machinehost", "--dir", str(self.options.data / "cloud")]
        if self.options.slots is not None:
            command += ["--slots", str(self.options.slots)]
        return command

    def _wait_until_healthy(self, api: Child, url: httpx.URL, ca: str) -> None:
        """Ask the API at the address where it listens, by the name in its certificate: `url` is what clients use, and
        may lead through a proxy. Raises StartupError."""
        local = httpx.URL(service_url(self.options.host, self.options.port)).copy_with(scheme=url.scheme)
        with httpx.Client(timeout=2, trust_env=False, verify=certificates(local.scheme, ca)) as http:
            wait_until_ready(api, lambda: _is_healthy(http, local, url.host), READY_TIMEOUT_S)

    def _start_fake_ec2(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Start it and return the environment of API and worker. Raises StartupError."""
        data = self.options.data
        settings = data / fake_ec2.SETTINGS_FILE
        settings.unlink(missing_ok=True)
        child = self._child("fake-ec2", fake_ec2.command(data), environment)
        child.start()
        wait_until_ready(child, settings.exists, READY_TIMEOUT_S)
        return fake_ec2.FakeEc2.of(data).environment(environment)

    def _child(self, name: str, command: list[str], environment: Mapping[str, str]) -> Child:
        """Add a child. Its working folder is its own: Celery imports what lies in the current one."""
        logs, folder = self.options.data / "logs", self.options.data / "run" / name
        logs.mkdir(exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        child = Child(name, command, environment, folder, logs / f"{name}.log")
        self.children.append(child)
        return child

    def _environment(self) -> dict[str, str]:
        data = self.options.data
        defaults = {
            "SHOESTRING_DATABASE_URL": f"sqlite:///{quote(str(data / 'store.db'))}",
            "SHOESTRING_SECRET": read_secret(data / "secret"),
            "SHOESTRING_OBJECT_STORE": str(data / "objects"),
            "SHOESTRING_AGENT_URL": service_url(
                self.options.host, self.options.port, self.options.tls_cert is not None
            ),
            "SHOESTRING_MACHINEHOST_FILE": str(data / "cloud" / "machinehost.json"),
        }
        fixed = {
            "SHOESTRING_HOST": self.options.host,
            "SHOESTRING_PORT": str(self.options.port),
        }
        if self.options.slots is not None:
            fixed["SHOESTRING_LOCAL_SLOTS"] = str(self.options.slots)
        if self.options.data_roots:
            fixed[DATA_ROOTS] = list_of_folders(self.options.data_roots)
        if self.options.hooks_roots:
            fixed[HOOKS_ROOTS] = list_of_folders(self.options.hooks_roots)
        return defaults | child_environment(os.environ) | fixed

    def private_places(self, environment: Mapping[str, str]) -> list[Path]:
        """What jobs never see, though it may lie below a data root."""
        places = [self.options.data, *private_files(environment)]
        with suppress(OSError):  # without a home folder no login is saved
            login = config_path()
            places.append(login if os.environ.get("SHOESTRING_CONFIG") else login.parent)
        return [place.absolute() for place in places]


def list_of_folders(folders: Sequence[Path]) -> str:
    """As PATH is one. Raises StartupError for a name that would be two in it."""
    for folder in folders:
        if os.pathsep in str(folder):
            raise StartupError(f"The path {folder} can't be used: it contains a {os.pathsep!r}. Choose another.")
    return os.pathsep.join(map(str, folders))


def limit_notice(asked: str, limit: str | None) -> str:
    """What to say to `--budget` where the team has another limit, or none, or no money; else "". In dollars."""
    dollars = money.from_decimal(asked)
    if limit is not None and money.from_decimal(limit) == dollars:
        return "" if dollars else "With a limit of $0.00 no job starts. To raise it: shoestring budget set 10"
    holds = "has no limit" if limit is None else f"keeps its limit of ${limit}"
    change = f"shoestring budget set {money.to_decimal(dollars)}"
    return f"The team's budget {holds}: --budget sets the first limit only. To change it now: {change}"


def require_apart(environment: Mapping[str, str], data: Path) -> None:
    """Raise StartupError if jobs could write the hooks that they run: data and checkpoints lie in the other folders."""
    data_roots, hooks_roots = (folders_of(environment.get(name, "")) for name in (DATA_ROOTS, HOOKS_ROOTS))
    for root in (folder.resolve() for folder in hooks_roots):
        for other in (folder.resolve() for folder in (data, *data_roots)):
            if root.is_relative_to(other) or other.is_relative_to(root):
                raise StartupError(
                    f"--hooks-root {root} and {other} overlap, and jobs' data lie there; keep hooks in a folder of "
                    "their own"
                )


def lock_data_folder(data: Path) -> int:
    """Create the data folder, readable by its owner only, and lock it. Returns the lock's file descriptor."""
    try:
        make_folder(data)
        data.chmod(0o700)
        lock = os.open(data / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
        (data / "objects").mkdir(exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"The data folder {data} can't be written ({error.strerror}). Choose another: shoestring up --data DIR"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StartupError(
            f"Another `shoestring up` is using {data}. Stop it, or choose another folder: shoestring up --data DIR"
        ) from None
    os.set_inheritable(lock, False)
    return lock


def require_free_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError, TypeError) as error:  # the last two: no host name at all
            number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (None, "no host name")
            in_use = number in (errno.EADDRINUSE, errno.EACCES)
            advice = f"port: shoestring up --port {port + 1}" if in_use else "address: shoestring up --host 127.0.0.1"
            raise StartupError(f"{host}:{port} can't be used ({reason}). Choose another {advice}") from error


def raise_open_files_limit() -> None:
    """As far as it may be raised: children inherit it, and a service keeps a connection for each viewer and machine."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def read_secret(path: Path) -> str:
    """Return the service's secret; create it on first use."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32))
    return read_regular_text(path).strip()


def stop_machines(cloud: Path, grace_s: float, report: Callable[[str], None], kill: Callable[[], bool]) -> None:
    """Terminate every local machine with a grace period, and wait until the machine host reports that they ended."""
    try:
        host = json.loads((cloud / "machinehost.json").read_text())
        with open_http(host["url"], headers={"Authorization": f"Bearer {host['key']}"}, timeout=5) as http:
            alive = _alive(http)
            if alive:
                report(f"Waiting for {counted(len(alive), 'machine')} to checkpoint; Ctrl-C again kills")
            for machine in alive:
                http.delete(f"/machines/{machine}", params={"grace_s": 0 if kill() else grace_s})
            deadline = time.monotonic() + grace_s + STOP_S
            killed = kill()
            while alive := _alive(http):
                if kill() and not killed:
                    killed = True
                    for machine in alive:
                        http.delete(f"/machines/{machine}", params={"grace_s": 0})
                if time.monotonic() > deadline:
                    report(
                        f"{counted(len(alive), 'machine')} did not stop in time; the next `up` adopts what still runs"
                    )
                    return
                time.sleep(0.1)
    except (OSError, ValueError, KeyError, httpx.HTTPError) as failure:
        report(f"The machine host did not answer ({failure}); machines stop when their funding lease expires")


def _alive(http: httpx.Client) -> list[str]:
    listed = http.get("/machines").raise_for_status().json()["machines"]
    return [machine["id"] for machine in listed if machine["state"] != "ended"]


def _is_healthy(http: httpx.Client, url: httpx.URL, name: str) -> bool:
    """`name`: of the service, which its certificate has."""
    try:
        return http.get(url.join("/healthz"), extensions={"sni_hostname": name}).status_code == 200
    except httpx.HTTPError:
        return False


def service_url(host: str, port: int, encrypted: bool = False) -> str:
    """Return the URL at which a service that listens on `host` is reached from this computer."""
    reached = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return str(httpx.URL(scheme="https" if encrypted else "http", host=reached, port=port))
