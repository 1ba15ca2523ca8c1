# SPDX-License-Identifier: Apache-2.0
"""What a machine on EC2 runs when it boots, as root: its user data, with `boot_wheels.py`.

It reports each phase to the service, installs our environment from the wheelhouse that it was told of, and starts the
agent. It powers the machine off when the agent has ended, and when a phase fails or takes too long. It needs nothing
but Python 3.9 and, to install, the Python that the wheels are for.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoestring_worker.providers.ec2.boot_wheels import (
    PHASE_S,
    RETRY_S,
    Environment,
    PhaseFailed,
    check_environment,
    open_url,
    power_off,
    run,
)

HELLO_S = 60.0
"""How long the service may take to answer the first report."""
REPORT_S, CALL_S = 5.0, 5.0
FOLDER = "/var/lib/shoestring"
METADATA = (("ip", "iptables", "169.254.169.254"), ("ip6", "ip6tables", "fd00:ec2::254"))
RANK_USER = 64083
"""Number of the user that training processes are, and of their group: none of the image's."""
MODULE = "shoestring_trainer"
WHEELHOUSE = "shoestring aws wheelhouse"


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
            run_driver_phase(boot, min_driver)
            run_phase(boot, "install", lambda: check_environment(python, MODULE))
        ranks: dict[str, str] = {}
        if not has_own_metadata(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")):
            run_phase(boot, "filter", lambda: separate_ranks(python, folder, ranks))
        run_phase(boot, "agent", lambda: run_agent(boot, python, folder, ranks))
    except PhaseFailed as failure:
        print(f"shoestring: {failure}; powering off", file=sys.stderr, flush=True)
    finally:
        power_off()


def prepare(boot: dict[str, str], wheelhouse: str, folder: Path) -> str:
    """The Python of the environment of a wheelhouse, installed unless the image has it. Raises PhaseFailed."""
    urls: list[str] = []
    environment = Environment(folder, wheelhouse, MODULE, WHEELHOUSE, "set a larger SHOESTRING_EC2_DISK_GIB")

    def ask() -> str:
        manifest, addresses = ask_for_wheelhouse(boot, wheelhouse)
        urls.extend(addresses)
        return environment.read(manifest)

    run_phase(boot, "wheelhouse", ask)
    run_driver_phase(boot, environment.manifest["min_driver"])
    if not environment.is_installed:
        run_phase(boot, "download", lambda: environment.download(urls))
        run_phase(boot, "install", environment.install)
    return str(environment.python)


def ask_for_wheelhouse(boot: dict[str, str], wheelhouse: str) -> tuple[bytes, list[str]]:
    """The manifest, and the addresses of its files, from the service. Raises PhaseFailed."""
    told = {"machine": boot["machine"], "boot_token": boot["boot_token"], "wheelhouse": wheelhouse}
    try:
        answer = json.loads(call(boot, "wheelhouse", told, HELLO_S))
    except Refused as refused:
        raise PhaseFailed(
            f"the service gives no wheelhouse {wheelhouse}: run `{WHEELHOUSE}`, which makes it again: {refused}",
            "image" if refused.status == 404 else "boot",
        ) from refused
    return answer["manifest"].encode(), answer["urls"]


def run_driver_phase(boot: dict[str, str], min_driver: int) -> None:
    """Raises PhaseFailed."""
    found: dict[str, str] = {}
    run_phase(boot, "driver", lambda: check_driver(min_driver, found), found)


def run_phase(boot: dict[str, str], phase: str, work: Callable[[], str], found: dict[str, str] | None = None) -> None:
    """Do the work of a phase and report what it returns. `found`: fields of the report. Raises PhaseFailed."""
    began = time.monotonic()
    fault = None
    try:
        message, failure = work(), None
    except (OSError, ValueError, subprocess.SubprocessError, PhaseFailed) as error:
        message, failure, fault = str(error), error, getattr(error, "fault", "boot")
    try:
        report(boot, phase, message, seconds=time.monotonic() - began, failure=fault, found=found)
    except PhaseFailed as unreported:
        print(f"shoestring: {unreported}", file=sys.stderr, flush=True)
    if failure is not None:
        raise PhaseFailed(f"{phase}: {message}") from failure


def check_driver(min_driver: int, found: dict[str, str]) -> str:
    """The driver's version, also for `found`, and the GPU. Raises PhaseFailed if it is too old for PyTorch."""
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
    found["driver"] = version[:50]
    if shutil.which("nvidia-modprobe"):  # makes the device files of CUDA, which training processes may not
        subprocess.run(["nvidia-modprobe", "-u", "-c=0"], timeout=PHASE_S, check=False)
    if int(version.partition(".")[0]) < min_driver:
        raise PhaseFailed(f"the image has NVIDIA's driver {version}; PyTorch needs {min_driver} or later", "image")
    return f"NVIDIA driver {version}, {gpu}"


def has_own_metadata(endpoint: str) -> bool:
    """Whether a stand-in serves the machine's metadata at this address on loopback, and EC2 none. "": none is named.

    An image that names another address, even EC2's own, must not be without the packet filter.
    """
    return urllib.parse.urlsplit(endpoint).hostname in ("127.0.0.1", "localhost", "::1")


def separate_ranks(python: str, folder: Path, ranks: dict[str, str]) -> str:
    """Make a user for training processes, who reaches neither the metadata service nor what is the agent's.

    ranks  gets the agent's variables that say so

    Raises PhaseFailed, OSError, SubprocessError.
    """
    shielded = shield_metadata()
    ranks["SHOESTRING_RANK_GROUP"] = str(RANK_USER)
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.chmod(0o711)
    if hindrance := find_hindrance([python, "-P", "-c", f"import os, {MODULE}; os.chdir({str(folder)!r})"]):
        if "SHOESTRING_SHARED_COMPUTER" not in os.environ:  # a stand-in's environment may be in somebody's home
            advice = "let everybody read the environment and its Python (chmod -R o+rX)"
            raise PhaseFailed(f"user {RANK_USER}, for training, can't run {python}: {hindrance}; {advice}", "image")
        return f"{shielded}, and are root's here: user {RANK_USER} can't run {python}: {hindrance}"
    ranks["SHOESTRING_RANK_USER"] = str(RANK_USER)
    with contextlib.suppress(ValueError, OSError):  # EFA registers more memory than others than root may lock
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return f"{shielded}, and are user {RANK_USER}'s"


def find_hindrance(command: list[str]) -> str:
    """Why training processes couldn't run this command; "": they could. Raises SubprocessError."""
    try:
        tried = subprocess.run(
            command, capture_output=True, text=True, timeout=PHASE_S, check=False,
            user=RANK_USER, group=RANK_USER, extra_groups=[],
        )  # fmt: skip
    except OSError as error:
        return str(error)
    return (tried.stderr.strip()[-300:] or f"exit status {tried.returncode}") if tried.returncode else ""


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


def run_agent(boot: dict[str, str], python: str, folder: Path, ranks: dict[str, str]) -> str:
    """Run the agent to its end, with these variables besides. Raises PhaseFailed for an exit code other than 0."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    boot_file = folder / "boot-data.json"
    with open(os.open(boot_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(boot, file)
    named = {**ranks, "SHOESTRING_MACHINE_DIR": str(folder), "SHOESTRING_BOOT_FILE": str(boot_file)}
    command = [python, "-P", "-m", MODULE, "agent"]
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
    found: dict[str, str] | None = None,
) -> None:
    """Tell the service about a phase. Raises PhaseFailed if it refuses, or can't be reached for `patience_s`."""
    told = {"machine": boot["machine"], "boot_token": boot["boot_token"], "phase": phase, "failure": failure}
    try:
        call(
            boot, "boot", {**told, **(found or {}), "message": message[:2000], "seconds": round(seconds, 3)}, patience_s
        )
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
