# SPDX-License-Identifier: Apache-2.0
"""A folder of images, one sub-folder per class, as a listing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shoestring_trainer.training.data.decoding import open_file
from shoestring_trainer.training.data.listing import HELD_OUT_NAMES, SUFFIXES, Listing, check_name, hold_out
from shoestring_trainer.training.errors import DataError

SPLIT_NAMES = frozenset({"train", "training", *HELD_OUT_NAMES, "testing", "dev"})


def is_image_folder(folder: Path) -> bool:
    """Whether `folder` has the training images of an ImageFolder beside held-out ones."""
    return (folder / "train").is_dir() and any((folder / name).is_dir() for name in HELD_OUT_NAMES)


def split_folder(folder: Path, seed: int, share: float) -> tuple[Listing, Listing]:
    """What to train on and what to hold out: train/CLASS/… beside val/CLASS/… (or test), or CLASS/… with a share held
    out. Raises DataError, naming the folder and the remedy, if it isn't laid out so.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the path of a folder of images as data.train")
    train, held_out = split_places(folder)
    listing = index_class_folders(train)
    if held_out is None:
        return hold_out(listing, seed, share)
    other = index_class_folders(held_out)
    if odd := sorted(set(listing.classes) ^ set(other.classes)):
        raise DataError(
            f"{train} and {held_out} do not have the same classes: {odd[0]} is in one only; add or remove it"
        )
    return listing, other


def split_places(folder: Path) -> tuple[Path, Path | None]:
    """The folders of what to train on and of what to hold out; None: it lies with the rest."""
    train = folder / "train" if (folder / "train").is_dir() else folder
    if train.name != "train":
        return train, None
    return train, next((train.parent / name for name in HELD_OUT_NAMES if (train.parent / name).is_dir()), None)


def index_class_folders(folder: Path) -> Listing:
    """The images of an ImageFolder. Raises DataError for no classes, one class, or a class without images."""
    classes, loose = [], []
    for entry in _scan(folder):
        if _is_folder(entry):
            classes.append(entry.name)
        elif not entry.name.startswith(".") and Path(entry.name).suffix.lower() in SUFFIXES:
            loose.append(Path(entry.path))
    classes = sorted(name for name in classes if not name.startswith("."))
    if len(classes) < 2:
        raise DataError(
            f"{folder} holds {len(classes)} class folders; a classifier needs two: {folder}/CLASS/image.jpg"
        )
    if {name.lower() for name in classes} <= SPLIT_NAMES:
        raise DataError(
            f"the folders {', '.join(classes)} in {folder} look like parts of a split and not like classes; call them "
            "train and val, with one folder per class in each"
        )
    names, labels, ignored = [], [], loose
    for label, name in enumerate(classes):
        check_name(folder / name)
        inside = sorted(walk(folder / name, os.path.realpath(folder)), key=str)
        found = [path for path in inside if path.suffix.lower() in SUFFIXES]
        if not found:
            raise DataError(
                f"the class folder {folder / name} holds no image; add some ({', '.join(sorted(SUFFIXES))}) "
                "or remove the folder"
            )
        for path in found:
            check_name(path)
            names.append(str(path.relative_to(folder)))
        labels += [label] * len(found)
        ignored += [path for path in inside if path.suffix.lower() not in SUFFIXES]
    return Listing(folder, classes, names, labels, lambda number: open_file(folder / names[number]), ignored)


def walk(folder: Path, *above: str) -> Iterator[Path]:
    """Every file below a folder, links followed, hidden ones left out. Raises DataError for a folder it can't read.

    A link to one of the folders above holds nothing new. What neither opens nor ends, such as a pipe, is no file.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in _scan(folder):
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from walk(Path(entry.path), *above, real)
        elif (entry.is_symlink() and not Path(entry.path).exists()) or entry.is_file():  # opening the former says why
            yield Path(entry.path)


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
        raise DataError(f"cannot read {folder}: {error.strerror}; give it to the user who trains") from error
