# SPDX-License-Identifier: Apache-2.0
"""What a machine on EC2 runs when it boots, as root: its user data. The last line, a call of `main`, is added for each.

It reports each phase to the service, installs our environment from the wheelhouse that it was told of, and starts the
agent. It powers the machine off when the agent has ended, and when a phase fails or takes too long. It needs nothing
but Python 3.9 and, to install, the Python that the wheels are for.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELLO_S = 60.0
"""How long the service may take to answer the first report."""
REPORT_S, CALL_S, RETRY_S = 5.0, 5.0, 1.0
PHASE_S, DOWNLOAD_S, INSTALL_S = 120.0, 240.0, 240.0
TRIES, AT_ONCE, BLOCK_BYTES = 3, 8, 1 << 20
"""Of the download of a wheel."""
FOLDER = "/var/lib/shoestring"
METADATA = (("ip", "iptables", "169.254.169.254"), ("ip6", "ip6tables", "fd00:ec2::254"))
RANK_GROUP = 64083
"""Of training processes, which are this user's too: no group of the image's."""
MADE_AGAIN = "run `shoestring aws wheelhouse`, which makes it again"


class PhaseFailed(Exception):
    """The machine is of no use. `fault`: what is to blame: image | network | hardware | boot."""

    def __init__(self, message: str, fault: str = "boot") -> None:
        super().__init__(message)
        self.fault = fault


def main(boot: dict[str, str], python: str, min_driver: int, wheelhouse: str) -> None:
    """
    boot        the agent's boot data
    python      of the environment that the image has
    min_driver  major version of NVIDIA's driver, for that environment
    wheelhouse  name of the one to install in its place; "": none
    """
    folder = Path(os.environ.get("SHOESTRING_MACHINE_DIR", FOLDER))
    try:
        report(boot, "boot", "the service is reached", patience_s=HELLO_S)
        if wheelhouse:
            python = prepare(boot, wheelhouse, folder / "environments" / wheelhouse)
        else:
            run_phase(boot, "driver", lambda: check_driver(min_driver))
            run_phase(boot, "install", lambda: check_environment(python))
        if shields := "AWS_EC2_METADATA_SERVICE_ENDPOINT" not in os.environ:  # else it isn't EC2's
            run_phase(boot, "filter", shield_metadata)
        run_phase(boot, "agent", lambda: run_agent(boot, python, folder, RANK_GROUP if shields else None))
    except PhaseFailed as failure:
        print(f"shoestring: {failure}; powering off", file=sys.stderr, flush=True)
    finally:
        subprocess.run(["poweroff"], check=False)


def prepare(boot: dict[str, str], wheelhouse: str, environment: Path) -> str:
    """The Python of the environment of a wheelhouse, installed unless the image has it. Raises PhaseFailed."""
    found = Found(environment, wheelhouse)
    run_phase(boot, "wheelhouse", lambda: found.ask(boot))
    run_phase(boot, "driver", lambda: check_driver(found.manifest["min_driver"]))
    if not found.is_installed:
        run_phase(boot, "download", found.download)
        run_phase(boot, "install", found.install)
    return str(found.python)


class Found:
    """A wheelhouse in the object store, and its environment here."""

    def __init__(self, environment: Path, name: str) -> None:
        self.environment, self.name = environment, name
        self.wheels, self.complete = environment / "wheels", environment / "complete"
        self.python = environment / "bin" / "python"
        self.manifest: dict[str, Any] = {}
        self.urls: list[str] = []

    @property
    def is_installed(self) -> bool:
        return self.complete.exists()

    def ask(self, boot: dict[str, str]) -> str:
        """Ask the service for the manifest and the addresses of its files. Raises PhaseFailed."""
        told = {"machine": boot["machine"], "boot_token": boot["boot_token"], "wheelhouse": self.name}
        try:
            answer = json.loads(call(boot, "wheelhouse", told, HELLO_S))
        except Refused as refused:
            raise PhaseFailed(
                f"the service gives no wheelhouse {self.name}: {MADE_AGAIN}: {refused}",
                "image" if refused.status == 404 else "boot",
            ) from refused
        if hashlib.sha256(answer["manifest"].encode()).hexdigest() != self.name:
            raise PhaseFailed(f"the manifest of wheelhouse {self.name} is not what was stored: {MADE_AGAIN}", "image")
        self.manifest, self.urls = json.loads(answer["manifest"]), answer["urls"]
        total = sum(file["bytes"] for file in self.manifest["files"])
        what = f"{wheels_of(self.urls)}, {size(total)}, for Python {self.manifest['python']}"
        cuda = f" and CUDA {self.manifest['cuda']}" if self.manifest["cuda"] else ""
        return what + cuda + (": the image has them installed" if self.is_installed else "")

    def download(self) -> str:
        """Fetch the wheels, several at once. Raises PhaseFailed."""
        began = time.monotonic()
        shutil.rmtree(self.environment, ignore_errors=True)  # of a boot that was cut off
        self.wheels.mkdir(mode=0o700, parents=True)
        files = self.manifest["files"]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            fetches = [
                pool.submit(self.fetch, files[at], self.urls[at], began + DOWNLOAD_S)
                for at in sorted(range(len(files)), key=lambda at: -files[at]["bytes"])  # the last one to end is short
            ]
            try:
                for fetch in concurrent.futures.as_completed(fetches):
                    fetch.result()
            finally:
                for fetch in fetches:
                    fetch.cancel()
        total = sum(file["bytes"] for file in files)
        return f"{size(total)} in {wheels_of(files)}, {size(total / max(time.monotonic() - began, 0.001))} a second"

    def fetch(self, file: dict[str, Any], url: str, deadline: float) -> None:
        """Raises PhaseFailed."""
        for left in reversed(range(TRIES)):
            try:
                return self.fetch_once(file, url, deadline)
            except (OSError, http.client.HTTPException) as error:  # URLError and HTTPError are the former
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise PhaseFailed("the disk is full: set a larger SHOESTRING_EC2_DISK_GIB", "image") from error
                if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                    raise PhaseFailed(f"{file['name']} is not in the object store: {MADE_AGAIN}", "image") from error
                host = url.split("/")[2]
                if not left or time.monotonic() > deadline:
                    # nothing came at all: there is no way from here; a download that broke off goes well elsewhere
                    fault = "boot" if any(self.wheels.iterdir()) else "network"
                    raise PhaseFailed(f"{file['name']} could not be fetched from {host}: {error}", fault) from error
            time.sleep(RETRY_S)

    def fetch_once(self, file: dict[str, Any], url: str, deadline: float) -> None:
        """Raises OSError, HTTPException, and PhaseFailed for content that isn't the manifest's."""
        target, found = self.wheels / file["name"], hashlib.sha256()
        with open_url(url, 30.0) as answer, open(target, "wb") as written:
            while block := answer.read(BLOCK_BYTES):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the wheels took longer than {DOWNLOAD_S:.0f} s")
                found.update(block)
                written.write(block)
        if target.stat().st_size < file["bytes"]:
            raise OSError(f"it broke off: {size(target.stat().st_size)} of {size(file['bytes'])} came")
        if found.hexdigest() != file["sha256"]:
            raise PhaseFailed(f"{file['name']} is not what was stored (SHA-256): {MADE_AGAIN}", "image")

    def install(self) -> str:
        """Make the environment, of the wheels alone. Raises PhaseFailed, OSError, SubprocessError."""
        base = find_python(self.manifest["python"])
        run(base, "-m", "venv", "--without-pip", str(self.environment))
        if self.manifest["from_image"]:
            listed = run(base, "-c", "import site; print(*site.getsitepackages(), sep='\\n')")
            (packages,) = self.environment.glob("lib/python3.*/site-packages")
            (packages / "image.pth").write_text(listed)
        wheels = [str(wheel) for wheel in sorted(self.wheels.iterdir())]
        pip = [wheel for wheel in wheels if Path(wheel).name.startswith("pip-")]  # it runs from its wheel
        options = ("--no-index", "--no-deps", "--ignore-installed", "--no-compile", "--disable-pip-version-check")
        alone = {"PYTHONPATH": os.pathsep.join(pip), "PIP_CONFIG_FILE": os.devnull}
        run(str(self.python), "-m", "pip", "install", "--quiet", *options, *wheels, **alone)
        shutil.rmtree(self.wheels)
        check_environment(str(self.python))
        self.complete.touch()
        return f"{wheels_of(wheels)} in {self.environment}"


def find_python(version: str) -> str:
    """Raises PhaseFailed."""
    if "{}.{}".format(*sys.version_info) == version:
        return sys.executable
    if (found := shutil.which(f"python{version}")) is None:
        here = "{}.{}".format(*sys.version_info)
        advice = f"use another image, or run `shoestring aws wheelhouse --python {here}`"
        raise PhaseFailed(f"the image has Python {here}, and the wheels are for {version}: {advice}", "image")
    return found


def run(*command: str, **environment: str) -> str:
    """The output of a command. Raises PhaseFailed, OSError, SubprocessError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False, env={**os.environ, **environment}
        )
    except subprocess.TimeoutExpired as error:
        raise PhaseFailed(f"{' '.join(command[:4])} took longer than {INSTALL_S:.0f} s") from error
    if done.returncode != 0:
        raise PhaseFailed(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-500:]}", "image")
    return done.stdout


def wheels_of(some: list[Any]) -> str:
    return "1 wheel" if len(some) == 1 else f"{len(some)} wheels"


def size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def run_phase(boot: dict[str, str], phase: str, work: Callable[[], str]) -> None:
    """Do the work of a phase and report what it returns. Raises PhaseFailed."""
    began = time.monotonic()
    fault = None
    try:
        message, failure = work(), None
    except (OSError, ValueError, subprocess.SubprocessError, PhaseFailed) as error:
        message, failure, fault = str(error), error, getattr(error, "fault", "boot")
    try:
        report(boot, phase, message, seconds=time.monotonic() - began, failure=fault)
    except PhaseFailed as unreported:
        print(f"shoestring: {unreported}", file=sys.stderr, flush=True)
    if failure is not None:
        raise PhaseFailed(f"{phase}: {message}") from failure


def check_driver(min_driver: int) -> str:
    """The driver's version and the GPUs. Raises PhaseFailed if it is older than what our PyTorch needs."""
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=PHASE_S, check=False)
    except FileNotFoundError as error:
        raise PhaseFailed("the image has no NVIDIA driver: there is no nvidia-smi", "image") from error
    except subprocess.TimeoutExpired as error:
        raise PhaseFailed(f"nvidia-smi has not answered for {PHASE_S:.0f} s", "hardware") from error
    version, _, gpu = asked.stdout.strip().partition("\n")[0].partition(", ")
    if asked.returncode != 0 or not version.partition(".")[0].isdigit():
        said = " ".join((asked.stdout + asked.stderr).split())[-500:]
        raise PhaseFailed(f"the driver can't use the GPU: {said} (exit status {asked.returncode})", "hardware")
    if int(version.partition(".")[0]) < min_driver:
        raise PhaseFailed(f"the image has NVIDIA's driver {version}; PyTorch needs {min_driver} or later", "image")
    return f"NVIDIA driver {version}, {gpu}"


def check_environment(python: str) -> str:
    """Raises PhaseFailed if the image lacks our environment."""
    command = [python, "-P", "-m", "shoestring_trainer", "--help"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=PHASE_S, check=False)
    except OSError as error:
        raise PhaseFailed(f"the image has no Python environment for us: {error}", "image") from error
    if tried.returncode != 0:
        raise PhaseFailed(f"{' '.join(command)} failed: {tried.stderr.strip()[-500:]}", "image")
    return f"the image's own environment, {python}"


def shield_metadata() -> str:
    """Let nobody but root's group reach the metadata service. Raises PhaseFailed, OSError, SubprocessError."""
    if shutil.which("nft"):
        rejected = "; ".join(f"{family} daddr {address} reject" for family, _, address in METADATA)
        rules = f"type filter hook output priority 0; meta skgid 0 accept; {rejected};"
        run("nft", f"table inet shoestring {{ chain output {{ {rules} }}; }}")
        return "by nftables, training processes can't reach the metadata service"
    for _, tool, address in METADATA:
        if shutil.which(tool) is None:
            raise PhaseFailed(f"the image has no packet filter: there is neither nft nor {tool}", "image")
        to = ("-w", "-I", "OUTPUT", "-d", address)
        run(tool, *to, "-j", "REJECT")
        run(tool, *to, "-m", "owner", "--gid-owner", "0", "-j", "ACCEPT")
    return "by iptables, training processes can't reach the metadata service"


def run_agent(boot: dict[str, str], python: str, folder: Path, rank_group: int | None) -> str:
    """Run the agent to its end. Raises PhaseFailed for an exit code other than 0.

    rank_group  for training processes; None: the agent's own
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    boot_file = folder / "boot-data.json"
    with open(os.open(boot_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(boot, file)
    named = {"SHOESTRING_MACHINE_DIR": str(folder), "SHOESTRING_BOOT_FILE": str(boot_file)}
    if rank_group is not None:
        named["SHOESTRING_RANK_GROUP"] = str(rank_group)
    command = [python, "-P", "-m", "shoestring_trainer", "agent"]
    agent = subprocess.Popen(command, cwd=folder, env={**os.environ, **named, "SHOESTRING_POWEROFF": "poweroff"})
    signal.signal(signal.SIGTERM, lambda *_: agent.terminate())
    if (code := agent.wait()) != 0:
        raise PhaseFailed(f"the agent exited with code {code}")
    return "the agent has ended"


def report(
    boot: dict[str, str],
    phase: str,
    message: str,
    seconds: float = 0.0,
    failure: str | None = None,
    patience_s: float = REPORT_S,
) -> None:
    """Tell the service about a phase. Raises PhaseFailed if it refuses, or can't be reached for `patience_s`."""
    told = {"machine": boot["machine"], "boot_token": boot["boot_token"], "phase": phase, "failure": failure}
    try:
        call(boot, "boot", {**told, "message": message[:2000], "seconds": round(seconds, 3)}, patience_s)
    except Refused as refused:
        raise PhaseFailed(f"the service refuses this machine: {refused}") from refused


class Refused(Exception):
    """The service's answer is an error of ours."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def call(boot: dict[str, str], what: str, told: dict[str, Any], patience_s: float) -> bytes:
    """The service's answer. Raises Refused, and PhaseFailed if it can't be reached for `patience_s`."""
    url = f"{boot['server_url'].rstrip('/')}/agent/v1/{what}"
    request = urllib.request.Request(url, json.dumps(told).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with open_url(request, CALL_S, boot["ca"]) as answer:
                content: bytes = answer.read()
                return content
        except OSError as error:  # URLError and HTTPError are such
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                said = error.read(500).decode("utf-8", "replace")
                raise Refused(error.code, f"{error}: {said}") from error
            if time.monotonic() + RETRY_S > deadline:
                raise PhaseFailed(f"the service can't be reached from this machine at {url}: {error}") from error
        time.sleep(RETRY_S)


def open_url(request: Any, timeout_s: float, ca: str = "") -> Any:
    """Raises OSError."""
    certificates = urllib.request.HTTPSHandler(context=ssl.create_default_context(cadata=ca or None))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), certificates)
    return opener.open(request, timeout=timeout_s)
