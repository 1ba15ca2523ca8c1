# SPDX-License-Identifier: Apache-2.0
"""An ImageFolder, one sub-folder of images per class, as an image index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from shoestring_trainer.training.data.confined_files import require_confined
from shoestring_trainer.training.data.image_files import open_image_file
from shoestring_trainer.training.data.image_index import (
    IMAGE_EXTENSIONS,
    ImageIndex,
    split_train_val,
    validate_utf8,
)
from shoestring_trainer.training.data.splits import (
    Splits,
    find_twin,
    folder_role,
    require_distinct,
    siblings_of,
    spellings,
    split_folders,
)
from shoestring_trainer.training.errors import DataError


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
    splits = find_splits(folder, _holds_image)
    train = index_class_folders(splits.train[0])
    unused = splits.unused
    if splits.val and _is_unlabelled_test(splits.val[0], train.classes):
        splits, unused = Splits(splits.train, [], []), [*splits.val, *unused]
    train = replace(train, unused=unused)
    if not splits.val:
        return train, None
    val = index_class_folders(splits.val[0])
    if only_in_one := sorted(set(train.classes) ^ set(val.classes)):
        name = only_in_one[0]
        twin = find_twin(name, [*train.classes, *val.classes])
        how = spellings(name, twin) if twin else f"{name} is in one only; add or remove it"
        raise DataError(f"{train.root} and {val.root} do not have the same classes: {how}")
    return train, val


def find_splits(folder: Path, has_data: Callable[[Path], bool]) -> Splits:
    """Return the folders below `folder`, or beside it, to train and to validate on; `has_data` tells which matter."""
    children = list_folders(folder)
    roles = {child: role for child in children if (role := folder_role(child))}
    if set(roles.values()) == {"train"} and all(not list_folders(path) and _holds_image(path) for path in roles):
        return Splits([folder], [], [])  # a class called train: it holds images, and no classes
    if splits := split_folders(folder, children, has_data):
        return splits
    if folder_role(folder) != "train":
        return Splits([folder], [], [])
    return siblings_of(folder, [path for path in list_folders(folder.parent) if path.name != folder.name])


def list_folders(folder: Path) -> list[Path]:
    """Return the sub-folders of a folder, by name, without hidden ones."""
    return sorted(Path(entry.path) for entry in _scan(folder) if _is_folder(entry) and not entry.name.startswith("."))


def _holds_image(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_EXTENSIONS for path in walk_files(folder))


def _is_unlabelled_test(folder: Path, classes: Sequence[str]) -> bool:
    """Return whether a test folder has no class folders: at most one sub-folder, which is none of the classes."""
    below = [path.name for path in list_folders(folder)]
    return folder_role(folder) == "test" and len(below) < 2 and not set(below) & set(classes)


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
    require_distinct(classes, folder)
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
