# SPDX-License-Identifier: Apache-2.0
"""Append benchmark results to RESULTS.md, with date, machine and commit. Its lines are never edited."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def append(title: str, lines: Sequence[str]) -> None:
    """Append a section with the current date, machine and commit."""
    time = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    body = "\n".join(f"- {line}" for line in lines)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(f"\n## {title}, {time}\n\n{describe_machine()}; commit {commit()}\n\n{body}\n")


def describe_machine() -> str:
    """Return the hardware in one line: processor, cores available to this process, memory."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor_name()}, {cores} cores, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}"


def processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def commit() -> str:
    """Return the current commit, with `-dirty` if the working tree differs from it (ignoring RESULTS.md)."""
    head = _git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{head}-dirty" if _git("status", "--porcelain", "--", ".", ":!bench/RESULTS.md") else head


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    result = subprocess.run(command, cwd=RESULTS.parents[1], capture_output=True, text=True, timeout=30)
    return result.stdout.strip()
