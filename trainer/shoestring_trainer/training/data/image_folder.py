# SPDX-License-Identifier: Apache-2.0
"""An ImageFolder, one sub-folder of images per class, as an image index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shoestring_trainer.training.data.decoding import open_image_file
from shoestring_trainer.training.data.image_index import (
    IMAGE_EXTENSIONS,
    VAL_SPLIT_NAMES,
    ImageIndex,
    split_train_val,
    validate_utf8,
)
from shoestring_trainer.training.errors import DataError

SPLIT_NAMES = frozenset({"train", "training", *VAL_SPLIT_NAMES, "testing", "dev"})


def is_split_image_folder(folder: Path) -> bool:
    """Return whether `folder` holds an ImageFolder with a training and a validation folder."""
    return (folder / "train").is_dir() and any((folder / name).is_dir() for name in VAL_SPLIT_NAMES)


def index_image_folder(folder: Path, seed: int, val_fraction: float) -> tuple[ImageIndex, ImageIndex]:
    """Return the (train, val) indices of an ImageFolder: train/CLASS/… and val/CLASS/… (or test), or CLASS/… split by
    `seed`. Raises DataError, naming the folder and the remedy, for any other layout.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the path of a folder of images as data.train")
    train_folder, val_folder = find_split_folders(folder)
    train = index_class_folders(train_folder)
    if val_folder is None:
        return split_train_val(train, seed, val_fraction)
    val = index_class_folders(val_folder)
    if only_in_one := sorted(set(train.classes) ^ set(val.classes)):
        raise DataError(
            f"{train_folder} and {val_folder} do not have the same classes: {only_in_one[0]} is in one only; add or "
            "remove it"
        )
    return train, val


def find_split_folders(folder: Path) -> tuple[Path, Path | None]:
    """Return the training and the validation folder; None if there is no separate validation folder."""
    train = folder / "train" if (folder / "train").is_dir() else folder
    if train.name != "train":
        return train, None
    return train, next((train.parent / name for name in VAL_SPLIT_NAMES if (train.parent / name).is_dir()), None)


def index_class_folders(folder: Path) -> ImageIndex:
    """Index CLASS/… below `folder`. Raises DataError for fewer than two classes, or a class without images."""
    classes, outside_classes = [], []
    for entry in _scan(folder):
        if _is_folder(entry):
            classes.append(entry.name)
        elif not entry.name.startswith(".") and Path(entry.name).suffix.lower() in IMAGE_EXTENSIONS:
            outside_classes.append(Path(entry.path))
    classes = sorted(name for name in classes if not name.startswith("."))
    if len(classes) < 2:
        raise DataError(
            f"{folder} holds {len(classes)} class folders; a classifier needs two: {folder}/CLASS/image.jpg"
        )
    if {name.lower() for name in classes} <= SPLIT_NAMES:
        raise DataError(
            f"the folders {', '.join(classes)} in {folder} look like dataset splits, not classes; name them "
            "train and val, with one folder per class in each"
        )
    names, labels, ignored = [], [], outside_classes
    for label, name in enumerate(classes):
        validate_utf8(folder / name)
        files = sorted(walk_files(folder / name, os.path.realpath(folder)), key=str)
        images = [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS]
        if not images:
            raise DataError(
                f"the class folder {folder / name} holds no image; add some ({', '.join(sorted(IMAGE_EXTENSIONS))}) "
                "or remove the folder"
            )
        for path in images:
            validate_utf8(path)
            names.append(str(path.relative_to(folder)))
        labels += [label] * len(images)
        ignored += [path for path in files if path.suffix.lower() not in IMAGE_EXTENSIONS]
    return ImageIndex(folder, classes, names, labels, lambda index: open_image_file(folder / names[index]), ignored)


def walk_files(folder: Path, *parents: str) -> Iterator[Path]:
    """Yield every file below a folder, following links, without hidden ones. Raises DataError for unreadable folders.

    A link to one of the `parents` is skipped: it holds nothing new. Pipes, sockets and the like are no files.
    """
    real = os.path.realpath(folder)
    if real in parents:
        return
    for entry in _scan(folder):
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from walk_files(Path(entry.path), *parents, real)
        elif (entry.is_symlink() and not Path(entry.path).exists()) or entry.is_file():
            yield Path(entry.path)  # a broken link too: opening it raises an error that names it


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}; make it readable for the training process") from error
