# SPDX-License-Identifier: Apache-2.0
"""What a machine on EC2 runs when it boots, as root: its user data. The last line, a call of `main`, is added for each.

It reports each phase to the service and starts the agent. It powers the machine off when the agent has ended, and when
a phase fails or takes too long. It needs nothing but Python 3.9: whether our environment is there, it finds out.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

HELLO_S = 60.0
"""How long the service may take to answer the first report."""
REPORT_S, CALL_S, RETRY_S = 5.0, 5.0, 1.0
PHASE_S = 120.0
FOLDER = "/var/lib/shoestring"


class PhaseFailed(Exception):
    """The machine is of no use. `fault`: what is to blame: image | hardware | boot."""

    def __init__(self, message: str, fault: str = "boot") -> None:
        super().__init__(message)
        self.fault = fault


def main(boot: dict[str, str], python: str, min_driver: int) -> None:
    """
    boot        the agent's boot data
    python      of the environment that the image has
    min_driver  major version of NVIDIA's driver
    """
    folder = Path(os.environ.get("SHOESTRING_MACHINE_DIR", FOLDER))
    try:
        report(boot, "boot", "the service is reached", patience_s=HELLO_S)
        run_phase(boot, "driver", lambda: check_driver(min_driver))
        run_phase(boot, "install", lambda: check_environment(python))
        run_phase(boot, "agent", lambda: run_agent(boot, python, folder))
    except PhaseFailed as failure:
        print(f"shoestring: {failure}; powering off", file=sys.stderr, flush=True)
    finally:
        subprocess.run(["poweroff"], check=False)


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


def run_agent(boot: dict[str, str], python: str, folder: Path) -> str:
    """Run the agent to its end. Raises PhaseFailed for an exit code other than 0."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    boot_file = folder / "boot-data.json"
    with open(os.open(boot_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(boot, file)
    named = {"SHOESTRING_MACHINE_DIR": str(folder), "SHOESTRING_BOOT_FILE": str(boot_file)}
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
    body = json.dumps({**told, "message": message[:2000], "seconds": round(seconds, 3)}).encode()
    url = f"{boot['server_url'].rstrip('/')}/agent/v1/boot"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    certificates = urllib.request.HTTPSHandler(context=ssl.create_default_context(cadata=boot["ca"] or None))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), certificates)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            opener.open(request, timeout=CALL_S).close()
            return
        except OSError as error:  # URLError and HTTPError are such
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                answer = error.read(500).decode("utf-8", "replace")
                raise PhaseFailed(f"the service refuses this machine: {error}: {answer}") from error
            if time.monotonic() + RETRY_S > deadline:
                raise PhaseFailed(f"the service can't be reached from this machine at {url}: {error}") from error
        time.sleep(RETRY_S)
