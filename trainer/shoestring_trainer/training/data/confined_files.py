# SPDX-License-Identifier: Apache-2.0
"""Open files of a job's data: a link is followed only to a place below the folders that jobs may read.

The service names them in SHOESTRING_DATA_ROOTS. Without it, as in a run by hand, links lead anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from shoestring_trainer.training.errors import DataError

ROOTS_VARIABLE = "SHOESTRING_DATA_ROOTS"


def open_confined(path: Path) -> BinaryIO:
    """Open a file for reading. Raises DataError if links lead out of the roots, and OSError as `open` does."""
    require_confined(path)
    file = path.open("rb")
    try:  # what was opened counts: links may have been changed since
        _require_below_roots(path, os.path.realpath(f"/proc/self/fd/{file.fileno()}"))
    except BaseException:
        file.close()
        raise
    return file


def require_confined(path: Path) -> None:
    """Raise DataError if links lead out of the roots, whether something is there or not."""
    _require_below_roots(path, os.path.realpath(path))


def _require_below_roots(path: Path, real: str) -> None:
    roots = [os.path.realpath(root) for root in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if root]
    if roots and not any(Path(real).is_relative_to(root) for root in roots):
        raise DataError(
            f"{path} leads out of the folders that jobs may read; copy what it links to, or start the service with a "
            "--data-root that holds it"
        )
