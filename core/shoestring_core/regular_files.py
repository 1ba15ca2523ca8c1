# SPDX-License-Identifier: Apache-2.0
"""Read a file that somebody else named or made: never wait for it, and never hold more of it than is useful.

A named pipe waits for its writer, a device such as /dev/zero has no end, and a sparse file of a few bytes on the disk
may claim terabytes. All of them raise OSError with the path and what it is, as a missing file does.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from io import BufferedReader
from pathlib import Path

from shoestring_core.wording.units import counted

MAX_RUN_BYTES = 1 << 30
"""What a file that grows with a run may hold, such as its metrics."""
MAX_TEXT_BYTES = 64 << 20
"""What a file of settings, certificates, a job spec or a list of names may hold: far more than any of them needs."""
_KINDS = (
    (stat.S_ISREG, "is a file"), (stat.S_ISLNK, "is a broken link"),
    (stat.S_ISDIR, "is a folder"), (stat.S_ISFIFO, "is a pipe"), (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"), (stat.S_ISBLK, "is a device"),
)  # fmt: skip
_GIVEN = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/[0-9]+")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. Raises OSError, at once, also for whatever else is there."""
    _require_file(path, path.stat().st_mode)  # before: opening a device may do something
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb")
    try:
        _require_file(path, os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Path, at_most: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a regular file. Raises OSError, also for one of more than `at_most` bytes.

    A pipe that this process was given by its number, such as /dev/stdin or a shell's <(…), is read to its end.
    """
    if _GIVEN.fullmatch(str(path)) and stat.S_ISFIFO(path.stat().st_mode):
        with path.open("rb") as pipe:
            return _require_size(path, pipe.read(at_most + 1), at_most)
    with open_regular(path) as file:
        return read_opened(file, path, at_most)


def read_opened(file: BufferedReader, path: Path, at_most: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of what `open_regular` opened. Raises OSError if it has more than `at_most` bytes."""
    size = os.fstat(file.fileno()).st_size
    if size > at_most:
        raise _too_large(path, counted(size, "byte"), at_most)
    return _require_size(path, file.read(size or at_most + 1), at_most)  # files of /proc have no size


def read_regular_text(path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a regular file. Raises OSError as `read_regular`, and UnicodeDecodeError."""
    return read_regular(path).decode(encoding)


def require_regular(path: Path) -> None:
    """Raise OSError if something else than a file lies there, which none is to replace: a pipe, /dev/null, a folder."""
    if path.exists():
        _require_file(path, path.stat().st_mode)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder with those above it, unless it is there. Raises OSError, which says what is in the way."""
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except FileExistsError:
        mode = folder.stat().st_mode if folder.exists() else folder.lstat().st_mode
        raise OSError(errno.EEXIST, f"it {_kind(mode)}, where a folder is needed", str(folder)) from None
    except NotADirectoryError:
        raise OSError(errno.ENOTDIR, "a file lies where a folder above it is needed", str(folder)) from None


def _require_file(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, f"it {_kind(mode)}, where a file is needed", str(path))


def _kind(mode: int) -> str:
    return next((text for is_kind, text in _KINDS if is_kind(mode)), "is something else")


def _require_size(path: Path, content: bytes, at_most: int) -> bytes:
    if len(content) > at_most:
        raise _too_large(path, f"more than {counted(at_most, 'byte')}", at_most)
    return content


def _too_large(path: Path, size: str, at_most: int) -> OSError:
    return OSError(errno.EFBIG, f"it has {size}, where at most {at_most:,} are read", str(path))
