# SPDX-License-Identifier: Apache-2.0
"""The files of an image folder as a run began with them.

Its checkpoints hold the list, so that it resumes with the same files: what was added since is ignored, what is missing
or has another size is named.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring_core.image_folders import IMAGE_EXTENSIONS
from shoestring_core.task import CheckpointFiles
from shoestring_core.wording.units import counted

from shoestring_trainer.terminal import say
from shoestring_trainer.training.checkpoint.files import FILE_LIST_PART, read_part
from shoestring_trainer.training.data.image_files import open_image_file
from shoestring_trainer.training.data.image_folder import walk_files
from shoestring_trainer.training.data.image_index import ImageIndex
from shoestring_trainer.training.errors import DataError


@dataclass(frozen=True)
class Part:
    """What is trained or validated on. `folder`: relative to the data; `sizes`: bytes of each file."""

    folder: str
    names: list[str]
    labels: list[int]
    sizes: list[int]


@dataclass(frozen=True)
class FileList:
    """`unused`: folders, relative to the data, that are neither trained nor validated on."""

    classes: list[str]
    train: Part
    val: Part
    unused: list[str]

    def packed(self) -> bytes:
        return gzip.compress(json.dumps(asdict(self)).encode(), mtime=0)

    def open(self, data: Path) -> tuple[ImageIndex, ImageIndex]:
        """Return the (train, val) indices of the listed files below `data`, wherever that is on this machine.

        Raises DataError that names a file which is missing or has changed.
        """
        _require_unchanged([*_files(data, self.train), *_files(data, self.val)])
        return self._index(data, self.train), self._index(data, self.val)

    def report_additions(self, data: Path) -> None:
        """Tell the log how many images were added since."""
        listed = {path for part in (self.train, self.val) for path, _ in _files(data, part)}
        folders = {_below(data, part.folder) for part in (self.train, self.val)}
        unused = [os.path.realpath(data / folder) for folder in self.unused]
        found = (path for folder in sorted(folders) for path in walk_files(folder, *unused) if path.parent != folder)
        added = sorted(path for path in found if path.suffix.lower() in IMAGE_EXTENSIONS and path not in listed)
        if added:
            say(
                f"ignored {counted(len(added), 'image')} added after the job began, such as {added[0]}; submit a new "
                "job to train on them"
            )

    def _index(self, data: Path, part: Part) -> ImageIndex:
        folder = _below(data, part.folder)
        return ImageIndex(
            folder, self.classes, part.names, part.labels, lambda index: open_image_file(folder / part.names[index])
        )


def list_files(data: Path, train: ImageIndex, val: ImageIndex) -> FileList:
    """List the files of two indices. Raises DataError for one that can't be read."""
    unused = [os.path.relpath(folder, data) for folder in train.unused]
    return FileList(train.classes, _list_part(data, train), _list_part(data, val), unused)


def read_file_list(checkpoint: CheckpointFiles) -> FileList | None:
    """Return the list in a checkpoint; None if it has none. Raises DataError if it is damaged."""
    packed = read_part(checkpoint.data, checkpoint.manifest, FILE_LIST_PART)
    if packed is None:
        return None
    try:
        tree: dict[str, Any] = json.loads(gzip.decompress(packed))
        return FileList(tree["classes"], Part(**tree["train"]), Part(**tree["val"]), tree["unused"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{FILE_LIST_PART} in the checkpoint {checkpoint.data} is damaged; start from another one"
        ) from error


def _list_part(data: Path, index: ImageIndex) -> Part:
    sizes = [_size(index.path(number)) for number in range(len(index))]
    return Part(os.path.relpath(index.root, data), index.names, index.labels, [size or 0 for size in sizes])


def _require_unchanged(listed: list[tuple[Path, int]]) -> None:
    found = [(path, size, _size(path)) for path, size in listed]
    if missing := [path for path, _, now in found if now is None]:
        raise DataError(
            f"{len(missing)} of the job's {len(found):,} images are missing since it began, such as {missing[0]}; put "
            "them back, or submit a new job"
        )
    if changed := [path for path, size, now in found if now != size]:
        raise DataError(
            f"{len(changed)} of the job's {len(found):,} images have changed since it began, such as {changed[0]}; "
            "restore them, or submit a new job"
        )


def _files(data: Path, part: Part) -> Iterator[tuple[Path, int]]:
    folder = _below(data, part.folder)
    return ((folder / name, size) for name, size in zip(part.names, part.sizes, strict=True))


def _below(data: Path, folder: str) -> Path:
    return Path(os.path.normpath(data / folder))


def _size(path: Path) -> int | None:
    """None: nothing is there."""
    try:
        return path.stat().st_size
    except OSError:
        return None
