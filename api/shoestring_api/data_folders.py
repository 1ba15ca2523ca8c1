# SPDX-License-Identifier: Apache-2.0
"""Look into a job's folder of data on this computer when the job is submitted, before a machine is paid for.

Shards that are missing are found here too. Gaps in their numbers are refused only here: a job that has begun continues.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from shoestring_core import recipes
from shoestring_core.data_splits import LayoutError, find_shards, folder_role
from shoestring_core.image_folders import (
    CIFAR10_FILES,
    CIFAR10_FOLDERS,
    IMAGE_EXTENSIONS,
    leads_out,
    no_cifar10,
    require_layout,
)
from shoestring_core.regular_files import read_regular
from shoestring_core.shard_checks import SHARD_INDEX, expand_pattern, require_indexed, require_no_gap
from shoestring_core.spec import SHARD_RANGE, JobSpec

MAX_FOLDERS = 500
"""Folders that one submission looks into. Of larger data sets the rest is left to the machine."""
MAX_ENTRIES = 20_000
MAX_INDEX_BYTES = 32 << 20


def find_layout_problem(spec: JobSpec, roots: Sequence[Path]) -> str | None:
    """Return what is wrong with the layout of the spec's folder of data, in the machine's words; None if nothing is
    known to be.
    """
    if spec.data is None or spec.recipe is None or spec.data.is_in_s3:
        return None
    folder, view = Path(spec.data.train), _RootedFolders(roots)
    try:
        if (folder / SHARD_INDEX).exists():
            _require_indexed_shards(folder, view)
        elif spec.data.format == "webdataset":
            _require_shards(folder, view)
        elif folder.is_dir():
            _require_layout(recipes.load(spec.recipe).data.kind, spec.data.format, folder, view)
    except LayoutError as error:
        return str(error)
    except (_TooMuch, OSError):
        return None
    return None


def _require_layout(kind: str, data_format: str, folder: Path, view: _RootedFolders) -> None:
    if data_format != "imagefolder":
        return
    if kind != "cifar10" or {folder_role(child) for child in view.below(folder)} > {"train"}:
        require_layout(folder, view)
    elif not any(view.has_cifar10(folder / name) for name in CIFAR10_FOLDERS):
        raise no_cifar10(folder)


def _require_shards(path: Path, view: _RootedFolders) -> None:
    """Raise LayoutError unless the shards that a folder or a pattern means are all there."""
    if SHARD_RANGE.search(path.name):
        stored = view.files(path.parent)
        expand_pattern(path, stored.__contains__)
    elif path.is_dir():
        splits = find_shards(path, view)
        for shards in (splits.train, splits.val):
            require_no_gap(shards)
    elif not path.is_file():
        raise LayoutError(f"{path} is neither a folder nor a shard; give the folder of the shards")


def _require_indexed_shards(folder: Path, view: _RootedFolders) -> None:
    """Raise LayoutError unless the shards that the folder's index lists are all there, of the size that it says."""
    stored = view.files(folder)
    if (view.size(stored.get(SHARD_INDEX)) or MAX_INDEX_BYTES) >= MAX_INDEX_BYTES:
        return
    try:
        shards = json.loads(read_regular(folder / SHARD_INDEX, MAX_INDEX_BYTES))["shards"]
        sizes = {str(shard["name"]): int(shard["bytes"]) for shard in shards}
    except (ValueError, LookupError, TypeError, RecursionError):  # the machine says what is wrong with it
        return
    require_indexed(folder, sizes, {name: view.size(stored[name]) for name in sizes if name in stored})


class _TooMuch(Exception):
    """The data set is larger than what is looked at."""


class _RootedFolders:
    """Folders below the roots, as shoestring_core.image_folders views them; no link leads to others."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [os.path.realpath(root) for root in roots]
        self._folders_left, self._entries_left = MAX_FOLDERS, MAX_ENTRIES

    def below(self, folder: Path) -> list[Path]:
        return sorted(Path(entry.path) for entry in self._entries(folder) if _is_folder(entry))

    def beside(self, folder: Path) -> list[Path]:
        try:
            return [path for path in self.below(folder.parent) if path.name != folder.name]
        except LayoutError:  # the data lie right below what jobs may read
            return []

    def shards(self, folder: Path) -> list[Path]:
        return sorted(path for entry in self._entries(folder) if (path := Path(entry.path)).suffix == ".tar")

    def files(self, folder: Path) -> dict[str, os.DirEntry[str]]:
        """The files in a folder by name; a link that leads out of the roots is one, whatever is there."""
        return {entry.name: entry for entry in self._entries(folder) if self._leads_out(entry) or entry.is_file()}

    def size(self, file: os.DirEntry[str] | None) -> int | None:
        """Its bytes; None if that may not be known."""
        return None if file is None or self._leads_out(file) else file.stat().st_size

    def has_cifar10(self, folder: Path) -> bool:
        names = {name + suffix for name in CIFAR10_FILES for suffix in ("", ".bin")}
        return folder.is_dir() and any(entry.name in names for entry in self._entries(folder))

    def count_images(self, folder: Path, at_most: int) -> int:
        return sum(1 for _ in islice(self._images(folder, {os.path.realpath(folder.parent)}), at_most))

    def _images(self, folder: Path, seen: set[str]) -> Iterator[str]:
        """Yield the images in a folder, then those below it; a folder that links lead to several times, once."""
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        below = []
        for entry in self._entries(folder):
            if _is_folder(entry):
                below.append(Path(entry.path))
            elif Path(entry.name).suffix.lower() in IMAGE_EXTENSIONS:
                yield entry.path
        for each in below:
            yield from self._images(each, seen)

    def _leads_out(self, entry: os.DirEntry[str]) -> bool:
        return entry.is_symlink() and not self._lies_below_roots(entry.path)

    def _lies_below_roots(self, path: str | Path) -> bool:
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(root) for root in self._roots)

    def _entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        """Yield what is in a folder, without what is hidden."""
        if not self._lies_below_roots(folder):
            raise leads_out(folder)
        self._folders_left -= 1
        with os.scandir(folder) as entries:
            for entry in entries:
                self._entries_left -= 1
                if min(self._folders_left, self._entries_left) < 0:
                    raise _TooMuch
                if not entry.name.startswith("."):
                    yield entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
