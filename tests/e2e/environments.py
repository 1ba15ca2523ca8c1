# SPDX-License-Identifier: Apache-2.0
"""Environments that users have, and what must work in each: `up`, a job to its end, `ls`, `watch`, `artifacts get`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path

import httpx
from shoestring_core.exit_codes import ExitCode
from shoestring_core.isolation import IsolationStatus

from tests import servers
from tests.e2e.service import PACKAGE_FOLDERS, ROOT, machine_processes

NOBODY = 65534
PROXY, NOWHERE = "http://127.0.0.1:9", "/nonexistent/certificates"
MODULES = (
    "secrets", "redis", "celery", "types", "json", "socket", "httpx", "kombu", "torch", "numpy", "shoestring_core",
    "shoestring_worker", "logging", "typing", "uvicorn", "sitecustomize",
)  # fmt: skip
"""Names of files in the current folder that children would import if it were on their path."""


ODD_NAME = "a b 100% d%20x ? # ü "


@dataclass(frozen=True)
class Environment:
    """variables   set for every command; None: unset
    shell          commands that the shell runs before each command
    data           name of the data folder
    hostile_folder whether commands run in a folder with files named like modules
    """

    variables: dict[str, str | None] = field(default_factory=dict)
    shell: str = ""
    host: str = "127.0.0.1"
    data: str = "data"
    hostile_folder: bool = False
    as_nobody: bool = False

    def __or__(self, other: Environment) -> Environment:
        return Environment(
            self.variables | other.variables,
            f"{self.shell} {other.shell}",
            other.host if other.host != "127.0.0.1" else self.host,
            other.data if other.data != "data" else self.data,
            self.hostile_folder or other.hostile_folder,
            self.as_nobody or other.as_nobody,
        )


ENVIRONMENTS = {
    "http-proxy": Environment({"HTTP_PROXY": PROXY, "http_proxy": PROXY}),
    "https-proxy": Environment({"HTTPS_PROXY": PROXY, "https_proxy": PROXY}),
    "socks-proxy": Environment({"ALL_PROXY": "socks5://127.0.0.1:1080"}),
    "unusable-proxy": Environment({"all_proxy": "nonsense", "NO_PROXY": "[::1"}),
    "certificates": Environment(
        dict.fromkeys(
            ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSLKEYLOGFILE"), NOWHERE
        )
    ),
    "no-home": Environment({"HOME": None, "XDG_CONFIG_HOME": "/dev/null/config"}),
    "unwritable-home": Environment({"HOME": "/proc"}),
    "null-home": Environment({"HOME": "/dev/null"}),
    "modules": Environment(hostile_folder=True),
    "path": Environment(data=ODD_NAME + "x" * (200 - len(ODD_NAME.encode()))),
    "locale": Environment({"LANG": "C", "LC_ALL": "C"}),
    "timezone": Environment({"TZ": "Nowhere/Odd-25"}),
    "umask-000": Environment(shell="umask 000;"),
    "umask-077": Environment(shell="umask 077;"),
    "open-files": Environment(shell="ulimit -n 128;"),
    "nobody": Environment(as_nobody=True),
    "other-projects": Environment(
        {
            "CELERY_BROKER_URL": "redis://127.0.0.1:9/0", "CELERY_RESULT_BACKEND": "redis://127.0.0.1:9/1",
            "CELERY_APP": "other", "CELERY_CONFIG_MODULE": "other", "REDIS_URL": "redis://127.0.0.1:9/0",
            "WORLD_SIZE": "8", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1",
            "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2",
        }
    ),
    "ipv6": Environment(host="::1"),
}  # fmt: skip


GROUPS = (
    ("http-proxy", "no-home", "path", "umask-000"),
    ("https-proxy", "unwritable-home", "certificates", "umask-077"),
    ("socks-proxy", "null-home", "modules", "open-files"),
    ("unusable-proxy", "other-projects", "ipv6"),
    ("nobody", "locale", "timezone"),
)  # fmt: skip
"""Environments that touch different things: what one of them breaks, none of the others in its group hides."""


def combined(names: Iterable[str]) -> Environment:
    """All of them at once."""
    return reduce(or_, (ENVIRONMENTS[name] for name in names))


def prove(environment: Environment, folder: Path) -> None:
    """Start `up`, which must be ready in every part and have its folder to itself; train a job to its end, list, watch
    and download it; hang up. Raises AssertionError."""
    users = Commands(environment, folder)
    port = servers.free_port()
    up = users.start(
        "up", "--data", str(users.data), "--host", environment.host, "--port", str(port), "--budget", "1.00", "--json"
    )
    try:
        servers.until(lambda: users.announcement() or up.poll() is not None)
        assert up.poll() is None, users.log.read_text()
        require_ready(users.announcement(), users.data, port)
        another = ("up", "--data", str(users.data), "--host", environment.host, "--port", str(servers.free_port()))
        assert "Another `shoestring up` is using" in users.refused(*another)
        users.variables["SHOESTRING_URL"] = users.announcement()["url"]
        users.variables["SHOESTRING_KEY"] = Path(users.announcement()["key_file"]).read_text().strip()
        job = users.run("submit", "digits/quickstart", "epochs=1", "width=4").strip()
        assert "Finished" in users.run("watch", job)
        assert "digits-quickstart" in users.run("ls")
        users.run("artifacts", "get", job, "--to", "a model")
        assert (users.current / "a model" / "model.json").stat().st_size
        up.send_signal(signal.SIGHUP)
        assert up.wait(servers.PATIENCE_S) == 0, users.log.read_text()
    finally:
        up.kill()
        up.wait()
    said = users.log.read_text()
    assert "Traceback" not in said, said
    assert "exited with code" not in said, said
    isolation = IsolationStatus.of(json.loads((users.data / "cloud" / "machinehost.json").read_text()))
    warned = " ".join(isolation.warning().split()) in " ".join(said.split())
    assert warned == bool(isolation.problem), said
    assert not machine_processes(users.data)
    assert users.data.stat().st_mode & 0o077 == 0


def require_ready(access: dict[str, str], data: Path, port: int) -> None:
    """The service is where it says that it is, its link signs in, and every part of it is ready."""
    assert (access["data"], httpx.URL(access["url"]).port) == (str(data), port)
    signed_in = httpx.get(access["login_url"], follow_redirects=True, timeout=servers.PATIENCE_S)
    assert signed_in.status_code == 200

    def parts() -> set[str]:
        ready = httpx.get(f"{access['url']}/readyz", timeout=servers.PATIENCE_S).json()["parts"]
        return set(ready.values())

    servers.until(lambda: parts() == {"ok"}, every_s=0.5)


def _hang_up_by_default() -> None:
    """Undo what `nohup` leaves to the processes that it starts; `up` would go on without its terminal, as it should."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Commands:
    """Runs commands as a user does in an environment."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.data = folder / environment.data
        self.current, self.log = folder / "current", folder / "up.log"
        self.current.mkdir()
        if environment.hostile_folder:
            for name in MODULES:
                (self.current / f"{name}.py").write_text(f"raise SystemExit('imported {name}.py')\n")
        if environment.as_nobody and os.getuid() == 0:
            shutil.chown(folder, NOBODY, NOBODY)
            shutil.chown(self.current, NOBODY, NOBODY)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SHOESTRING_")}
        sources = os.pathsep.join(str(ROOT / package) for package in PACKAGE_FOLDERS)
        wanted = kept | {"HOME": str(self.current), "PYTHONPATH": sources, "NO_COLOR": "1"} | environment.variables
        self.variables = {name: value for name, value in wanted.items() if value is not None}
        # the capability to read: this Python may lie below a folder of root's
        become = (
            "setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups",
            "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search",
        )  # fmt: skip
        self._prefix = [
            *(become if environment.as_nobody and os.getuid() == 0 else ()),
            "/bin/sh", "-c", f'{environment.shell} exec "$@"', "sh", sys.executable, "-P", "-m", "shoestring",
        ]  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*self._prefix, *arguments], env=self.variables, cwd=self.current, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, preexec_fn=_hang_up_by_default,
            )  # fmt: skip

    def run(self, *arguments: str) -> str:
        """What the command prints."""
        return self._ended(arguments, ExitCode.OK).stdout

    def refused(self, *arguments: str) -> str:
        """What a command says that is refused."""
        return self._ended(arguments, ExitCode.USAGE).stderr

    def _ended(self, arguments: tuple[str, ...], code: int) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._prefix, *arguments], env=self.variables, cwd=self.current, capture_output=True, text=True,
            timeout=servers.PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def announcement(self) -> dict[str, str]:
        """What `up` printed as JSON, once it has."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        found: dict[str, str] = json.loads(lines[0]) if lines else {}
        return found
