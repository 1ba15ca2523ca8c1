# SPDX-License-Identifier: Apache-2.0
"""Runs the worker's commands on an AWS account as child processes: nothing in this package needs boto3."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from shoestring.supervisor import StartupError

MODULE = "shoestring_worker.providers.ec2.account"


def run(*arguments: str) -> int:
    """Run a command in this terminal and return its exit code. Raises StartupError if the worker isn't installed."""
    if find_spec("shoestring_worker") is None or find_spec("boto3") is None:
        raise StartupError("This command needs the worker and boto3. Run: pip install 'shoestring[server]'")
    return subprocess.run([sys.executable, "-P", "-m", MODULE, *arguments], check=False).returncode
