# SPDX-License-Identifier: Apache-2.0
"""Open a job's data and hooks: a link is followed only to a place below the folders that jobs may use.

The service names those of data in SHOESTRING_DATA_ROOTS and those of hooks in SHOESTRING_HOOKS_ROOTS. Without these
variables, as in a run by hand, paths and links lead anywhere. Hooks are never read from where data may lie.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from shoestring_core.image_folders import leads_out
from shoestring_core.regular_files import MAX_TEXT_BYTES, open_regular, read_opened, read_regular, require_regular
from shoestring_core.wording.units import counted

from shoestring_trainer.training.errors import DataError, UserError

ROOTS_VARIABLE, HOOKS_ROOTS_VARIABLE = "SHOESTRING_DATA_ROOTS", "SHOESTRING_HOOKS_ROOTS"


def open_confined(path: Path) -> BufferedReader:
    """Open a file for reading. Raises DataError if links lead out of the roots, and OSError as `open_regular` does."""
    require_confined(path)
    file = open_regular(path)
    try:  # what was opened counts: links may have been changed since
        _require_below_roots(path, os.path.realpath(f"/proc/self/fd/{file.fileno()}"))
    except BaseException:
        file.close()
        raise
    return file


def read_confined(path: Path, at_most: int = MAX_TEXT_BYTES) -> bytes:
    """Read a file, as `open_confined` opens it. Raises OSError if it has more bytes than `at_most`."""
    with open_confined(path) as file:
        return read_opened(file, path, at_most)


def require_confined(path: Path) -> None:
    """Raise DataError if links lead out of the roots, whether something is there or not."""
    _require_below_roots(path, os.path.realpath(path))


@contextmanager
def confine_opens(folder: Path) -> Iterator[None]:
    """Confine what other libraries open below a folder meanwhile: their `open` raises DataError, just before it opens.

    They would also wait for a pipe, and read a file of terabytes to its end.

    To be used once or twice in a process: Python has no way to remove the check, which does nothing afterwards.
    """
    active = True

    def check(event: str, arguments: tuple[object, ...]) -> None:
        if active and event in _OPENING and isinstance(arguments[0], str | os.PathLike):
            path = Path(arguments[0])
            if path.is_relative_to(folder):
                require_confined(path)
                _require_readable(path)

    sys.addaudithook(check)
    try:
        yield
    finally:
        active = False


MAX_OPENED_BYTES = 16 << 30
"""Of a file that another library reads: the largest of torchvision's data sets has 3 GB."""


def _require_readable(path: Path) -> None:
    if not path.exists() or path.is_dir():
        return  # which the library expects, or says
    try:
        require_regular(path)
        if (size := path.stat().st_size) > MAX_OPENED_BYTES:
            raise OSError(errno.EFBIG, f"it has {counted(size, 'byte')}, where at most {MAX_OPENED_BYTES:,} are read")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


_OPENING = frozenset({"open", "os.listdir", "os.scandir"})
"""Python's audit events of whatever opens a file or a folder."""


def read_hooks(path: Path) -> bytes:
    """Return the source of a file with hooks. Raises UserError if jobs may not run it, and OSError as `open` does."""
    if HOOKS_ROOTS_VARIABLE not in os.environ:
        return read_regular(path)
    _require_hooks_root(path, os.path.realpath(path))
    with open_regular(path) as file:
        _require_hooks_root(path, os.path.realpath(f"/proc/self/fd/{file.fileno()}"))
        return read_opened(file, path)


def _require_hooks_root(path: Path, real: str) -> None:
    if not path.is_absolute() or not _lies_below(real, HOOKS_ROOTS_VARIABLE) or _lies_below(real, ROOTS_VARIABLE):
        raise UserError(
            f"{path} is not a hooks file that jobs may run on this machine; the operator names folders for them with "
            "shoestring up --hooks-root DIR"
        )


def _require_below_roots(path: Path, real: str) -> None:
    if os.environ.get(ROOTS_VARIABLE) and not _lies_below(real, ROOTS_VARIABLE):
        raise DataError(str(leads_out(path)))


def _lies_below(real: str, variable: str) -> bool:
    roots = [os.path.realpath(root) for root in os.environ.get(variable, "").split(os.pathsep) if root]
    return any(Path(real).is_relative_to(root) for root in roots)
