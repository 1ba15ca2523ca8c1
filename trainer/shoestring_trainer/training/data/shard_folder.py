# SPDX-License-Identifier: Apache-2.0
"""The folder that shards are written to: one run at a time, begun again where an earlier one was interrupted."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from shoestring_core.regular_files import make_folder

from shoestring_trainer.training.data.shard_list import ShardIndex, has_shard_index, read_shard_index
from shoestring_trainer.training.errors import UserError

_WORK_FOLDER, _LOCK, _PLAN = ".preparing", "lock", "plan"
_LOCK_PATIENCE_S = 10.0


@contextmanager
def open_shard_folder(folder: Path, plan: str) -> Iterator[Path]:
    """Lock the folder for the run with this plan; yield the folder for what is known of single shards.

    Raises UserError if it holds other files, shards of another plan, or if another process writes to it.
    """
    work = folder / _WORK_FOLDER
    if not has_shard_index(folder) and not work.exists():
        _require_empty(folder)
    make_folder(folder)
    make_folder(work)
    with (work / _LOCK).open("w") as lock:
        if not _locked(lock):
            raise UserError(f"another process is preparing {folder}; wait for its end")
        plan_file = work / _PLAN
        earlier = read_earlier_index(folder).plan if has_shard_index(folder) else _read(plan_file)
        if earlier not in ("", plan):
            raise UserError(
                f"{folder} holds shards of other images, or made with other options; give another folder, or remove it"
            )
        replace_file(plan_file, plan.encode())
        yield work


def read_earlier_index(folder: Path) -> ShardIndex:
    """Return the index of a folder whose shards an earlier run has completed. Raises DataError."""
    return read_shard_index(folder, f"give another folder, or remove {folder}")


def _locked(lock: TextIO) -> bool:
    """Lock a file; wait for processes of a run that was killed, which hold it until they have ended too."""
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(0.05)


def require_apart(source: str, destination: str) -> None:
    """Raise UserError if one of the two folders lies in the other. Both are here, or both are URLs."""
    outer, inner = (Path(place if "://" in place else os.path.realpath(place)) for place in (source, destination))
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise UserError(f"{destination} and {source} lie in each other; give a folder elsewhere for the shards")


def replace_file(file: Path, content: bytes) -> None:
    """Write a file that is never seen unfinished."""
    draft = file.with_name(f"{file.name}.tmp")
    with draft.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    draft.replace(file)


def _require_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a new or an empty one for the shards")
    if folder.exists() and (found := sorted(path.name for path in folder.iterdir())):
        raise UserError(f"{folder} holds other files, such as {found[0]}; give a new or an empty folder for the shards")


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""
