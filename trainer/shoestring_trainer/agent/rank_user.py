# SPDX-License-Identifier: Apache-2.0
"""Ranks as a user of their own: what of a machine's folder that user reaches.

It reads the cache and the data, and writes its generations and the decoded images. All else is the agent's: its
session, its spool, what it is about to upload. The user's group has the same number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from shoestring_trainer.rank_server.isolation import READABLE_OF_MACHINE

UMASK = 0o027
"""Of an agent whose ranks are another user's: what it writes, others than its file's group can't read."""
READABLE = (*READABLE_OF_MACHINE, "gen")
OWN = "scratch/ranks"


def find_rank_user(environment: Mapping[str, str]) -> int | None:
    """Number of the user that ranks are; None: the agent's."""
    user = environment.get("SHOESTRING_RANK_USER")
    return int(user) if user else None


def open_to_ranks(machine: Path, user: int) -> None:
    """Let the user reach what ranks need in this folder. Raises OSError.

    What is written there later has its group, by the folders' set-group-ID bits, and that group reads it (UMASK).
    """
    machine.chmod(0o711)  # what others don't know the name of, they don't find
    for name in READABLE:
        os.chown(machine / name, -1, user)
        (machine / name).chmod(0o2750)
    give_to_ranks(machine / OWN, user)


def give_to_ranks(path: Path, user: int) -> None:
    """Make a file or folder the user's own; of a link, which a rank may have left, only the link. Raises OSError."""
    os.chown(path, user, user, follow_symlinks=False)
