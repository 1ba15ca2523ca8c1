# SPDX-License-Identifier: Apache-2.0
"""Whether ranks can be isolated where the tests run, and what takes its place where they can't."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

from shoestring_trainer.rank_server.isolation import Isolation, find_isolation

STAND_INS = Path(__file__).with_name("stand_ins")


@functools.cache
def found_isolation() -> Isolation:
    with tempfile.TemporaryDirectory() as folder:
        return find_isolation(Path(folder), os.environ)


def path_with_bubblewrap() -> str:
    """PATH with a bubblewrap that works, which isolates wherever it can."""
    path = os.environ["PATH"]
    return path if found_isolation() else f"{STAND_INS}{os.pathsep}{path}"
