# SPDX-License-Identifier: Apache-2.0
"""Files in folders that ranks write to: opened and written so that nothing that a hook puts there leads elsewhere.

Ranks may see less than the agent. A link that they leave behind, in place of a file or a folder, would be followed with
the agent's rights; a FIFO would make it wait. Ranks write below `gen`: of `gen/1/ckpt/step-1.data` they can replace the
file and its two folders.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

REPLACEABLE = 2
"""Folders at the end of a path that ranks can replace."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def exists(path: Path) -> bool:
    """Whether something has this name. What can't be found out, as in a folder that ranks closed, counts as no."""
    try:
        os.lstat(path)
    except OSError:
        return False
    return True


def open_folder(path: Path) -> int:
    """Open a folder that is where it seems to be. Raises OSError."""
    folder = os.open(path.parents[REPLACEABLE - 1], FOLDER)
    for name in path.parts[-REPLACEABLE:]:
        try:
            inner = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder


def open_file(path: Path) -> int:
    """Open a regular file for reading. Raises OSError."""
    folder = open_folder(path.parent)
    try:
        file = os.open(path.name, os.O_RDONLY | FILE, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_file(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes. Raises OSError."""
    with os.fdopen(open_file(path), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
    return content


def write_file(path: Path, text: str) -> None:
    """Write a file as a whole, in place of whatever is there, which the folder's group can read. Raises OSError."""
    folder = open_folder(path.parent)
    try:
        draft = f"{path.name}.{secrets.token_hex(4)}.tmp"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE, 0o640, dir_fd=folder), "w") as file:
            file.write(text)
        os.replace(draft, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)
