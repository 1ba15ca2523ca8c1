# SPDX-License-Identifier: Apache-2.0
"""RESULTS.md: what was measured, when, on what. Lines are added, never edited."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def append(title: str, lines: Sequence[str]) -> None:
    """Add a section with the date, the machine and the commit it was measured on."""
    at = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    body = "\n".join(f"- {line}" for line in lines)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(f"\n## {title}, {at}\n\n{machine()}; commit {commit()}\n\n{body}\n")


def machine() -> str:
    """The hardware in a line: processor, cores this process may use, memory."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor()}, {cores} cores, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def commit() -> str:
    """The commit these figures belong to, with `-dirty` when the tree differs from it (RESULTS.md itself aside)."""
    head = _git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{head}-dirty" if _git("status", "--porcelain", "--", ".", ":!bench/RESULTS.md") else head


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=RESULTS.parents[1], capture_output=True, text=True, timeout=30)
    return done.stdout.strip()
