# SPDX-License-Identifier: Apache-2.0
"""The files of a machine's folder, apart from its journal, and how they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

BOOT_FILE, USER_DATA_FILE, AGENT_LOG, INIT_LOG = "boot.json", "user-data", "agent.log", "init.log"
STOP_FILE, PREEMPT_FILE, REBALANCE_FILE = "stop.json", "preempt.json", "rebalance.json"
ADDRESS_FILE = "address.json"
SCRATCH = "scratch"
"""The subfolder whose content only the machine itself needs: deleted when the machine has ended."""


def machine_environment(folder: Path) -> dict[str, str]:
    """The variables that identify every process of a machine, whatever its session or parent."""
    return {"SHOESTRING_MACHINE_ID": folder.name, "SHOESTRING_MACHINE_DIR": str(folder)}


def read_request(folder: Path, name: str) -> dict[str, Any] | None:
    """The host's request (STOP_FILE, PREEMPT_FILE, …), or None. Requests are written atomically."""
    try:
        request: dict[str, Any] = json.loads((folder / name).read_text())
    except FileNotFoundError:
        return None
    return request


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file that only its owner can read, durably and atomically."""
    write_text(path, json.dumps(value))


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """As `write_json`; `mode`: of the file."""
    draft = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames and new files in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
