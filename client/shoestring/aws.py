# SPDX-License-Identifier: Apache-2.0
"""Runs the worker's commands on an AWS account as child processes: nothing in this package needs boto3."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from shoestring.supervisor import StartupError

MODULE = "shoestring_worker.providers.ec2.account"


def run(*arguments: str) -> int:
    """Run a command in this terminal and return its exit code. Raises StartupError if the worker isn't installed."""
    return subprocess.run(_command(arguments), check=False).returncode


def run_uninterrupted(*arguments: str) -> int:
    """As `run`, for a command that cleans up on Ctrl-C itself: this process waits until it has. Raises StartupError."""
    command = _command(arguments)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def run_for_answer(*arguments: str) -> tuple[int, Any]:
    """Run a command that answers in JSON; returns its exit code, and the answer if that is 0. Raises StartupError."""
    ended = subprocess.run(_command(arguments), check=False, stdout=subprocess.PIPE, text=True)
    return ended.returncode, json.loads(ended.stdout) if ended.returncode == 0 else None


def _command(arguments: tuple[str, ...]) -> list[str]:
    if find_spec("shoestring_worker") is None or find_spec("boto3") is None:
        raise StartupError("This command needs the worker and boto3. Run: pip install 'shoestring[server]'")
    return [sys.executable, "-P", "-m", MODULE, *arguments]
