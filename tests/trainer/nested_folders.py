# SPDX-License-Identifier: Apache-2.0
"""Folders in folders, deeper than Python calls itself, as a hook would leave them."""

from __future__ import annotations

import os
from pathlib import Path

DEPTH = 1_500


def nest(folder: Path, depth: int = DEPTH) -> None:
    """Make each by its name in the one before: Linux takes no path that is so long."""
    folder.mkdir(parents=True)
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("folder", dir_fd=at)
        inner = os.open("folder", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
