# SPDX-License-Identifier: Apache-2.0
"""An ImageFolder, one sub-folder of images per class, as an image index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

from shoestring_core.data_splits import LayoutError, folder_role
from shoestring_core.image_folders import IMAGE_EXTENSIONS, empty_class, find_class_folders, list_classes

from shoestring_trainer.training.data.confined_files import require_confined
from shoestring_trainer.training.data.image_files import open_image_file
from shoestring_trainer.training.data.image_index import ImageIndex, split_train_val, validate_utf8
from shoestring_trainer.training.errors import DataError


class Folders:
    """Folders as this machine has them, as shoestring_core's image_folders and data_splits view them."""

    def below(self, folder: Path) -> list[Path]:
        return list_folders(folder)

    def beside(self, folder: Path) -> list[Path]:
        try:
            return [path for path in list_folders(folder.parent) if path.name != folder.name]
        except DataError:  # the data lie right below what jobs may read
            return []

    def shards(self, folder: Path) -> list[Path]:
        """Return the shards in a folder; a broken link too, as opening it raises an error that names it."""
        try:
            tars = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and path.name[0] != ".")
            return [path for path in tars if path.is_file() or not path.exists()]
        except OSError as error:
            raise DataError(f"cannot read {folder}: {error.strerror}; give the folder of the shards") from error

    def count_images(self, folder: Path, at_most: int) -> int:
        return sum(1 for _ in islice(filter(_is_image, walk_files(folder, os.path.realpath(folder.parent))), at_most))


def is_split_image_folder(folder: Path) -> bool:
    """Return whether `folder` holds a training and a validation folder."""
    return {folder_role(child) for child in list_folders(folder)} > {"train"} if folder.is_dir() else False


def index_image_folder(folder: Path, seed: int, val_fraction: float) -> tuple[ImageIndex, ImageIndex]:
    """Return the (train, val) indices of an ImageFolder, split by `seed` if it has no validation folder."""
    train, val = index_folders(folder)
    return (train, val) if val else split_train_val(train, seed, val_fraction)


def index_folders(folder: Path) -> tuple[ImageIndex, ImageIndex | None]:
    """Return the indices of train/CLASS/… and val/CLASS/… (or test, or other words for them), or of CLASS/… alone.

    Raises DataError, naming the folder and the remedy, for any other layout.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the path of a folder of images as data.train")
    with refuse_layout():
        found = find_class_folders(folder, Folders())
    train = replace(index_class_folders(found.train), unused=found.unused)
    return train, index_class_folders(found.val) if found.val else None


@contextmanager
def refuse_layout() -> Iterator[None]:
    """Raise the LayoutError of a block as DataError."""
    try:
        yield
    except LayoutError as error:
        raise DataError(str(error)) from error


def list_folders(folder: Path) -> list[Path]:
    """Return the sub-folders of a folder, by name, without hidden ones."""
    return sorted(Path(entry.path) for entry in _scan(folder) if _is_folder(entry) and not entry.name.startswith("."))


def index_class_folders(folder: Path) -> ImageIndex:
    """Index CLASS/… below `folder`. Raises DataError for fewer than two classes, or a class without images."""
    outside_classes = [
        Path(entry.path)
        for entry in _scan(folder)
        if not _is_folder(entry) and not entry.name.startswith(".") and _is_image(Path(entry.name))
    ]
    with refuse_layout():
        classes = list_classes(folder, Folders())
    names, labels, ignored = [], [], outside_classes
    for label, name in enumerate(classes):
        validate_utf8(folder / name)
        files = sorted(walk_files(folder / name, os.path.realpath(folder)), key=str)
        images = [path for path in files if _is_image(path)]
        if not images:
            with refuse_layout():
                raise empty_class(folder / name)
        for path in images:
            validate_utf8(path)
            names.append(str(path.relative_to(folder)))
        labels += [label] * len(images)
        ignored += [path for path in files if not _is_image(path)]
    return ImageIndex(folder, classes, names, labels, lambda index: open_image_file(folder / names[index]), ignored)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_EXTENSIONS


def walk_files(folder: Path, *outside: str) -> Iterator[Path]:
    """Yield every file below a folder, following links, without hidden ones. Raises DataError for unreadable folders.

    A folder is walked once, by whatever links it is reached, and those that are `outside` are not: links in circles
    would make endlessly many paths of a few folders. Pipes, sockets and the like are no files.
    """
    yield from _walk(folder, set(outside))


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in sorted(_scan(folder), key=lambda entry: (entry.is_symlink(), entry.name)):
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(Path(entry.path), seen)
        elif (entry.is_symlink() and not Path(entry.path).exists()) or entry.is_file():
            yield Path(entry.path)  # a broken link too: opening it raises an error that names it


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    require_confined(folder)
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}; make it readable for the training process") from error
