# SPDX-License-Identifier: Apache-2.0
"""The layout of image data, decided by names of folders and files: checked when a job is submitted, where the service
reads the data's folder, and again on the machine.

All raise LayoutError, naming the folder and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shoestring_core.data_splits import (
    LayoutError,
    ShardView,
    Splits,
    find_splits,
    find_twin,
    folder_role,
    require_class_names,
    spellings,
)
from shoestring_core.shard_checks import SHARD_INDEX
from shoestring_core.wording.units import counted

CIFAR10_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
"""Folders in the data's folder that hold the files."""
CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
"""Their names without `.bin`, the test data last."""
IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


class ImageView(ShardView, Protocol):
    def count_images(self, folder: Path, at_most: int) -> int:
        """Images in a folder or below it, by their extensions; no more than `at_most` are counted.

        Links back to where the folder lies aren't followed.
        """


@dataclass(frozen=True)
class ClassFolders:
    """Where the class folders lie that are trained on and, unless a share of these is held out, validated on."""

    train: Path
    val: Path | None
    classes: Sequence[str]
    unused: Sequence[Path]


def require_layout(folder: Path, view: ImageView) -> None:
    """Refuse what the machine would refuse before it opens an image."""
    found = find_class_folders(folder, view)
    for part in (found.train, found.val) if found.val else (found.train,):
        for name in found.classes:
            images = view.count_images(part / name, 2)
            if images == 0:
                raise empty_class(part / name)
            if images == 1 and not found.val:
                raise too_few_images(name, part)


def find_class_folders(folder: Path, view: ImageView) -> ClassFolders:
    """Return the folders of train/CLASS/… and val/CLASS/… (or test, or other words for them), or of CLASS/… alone."""
    splits = _find_splits(folder, view)
    train = splits.train[0]
    classes = list_classes(train, view)
    if splits.val and _is_unlabelled_test(splits.val[0], classes, view):
        splits = Splits(splits.train, [], [*splits.val, *splits.unused])
    if not splits.val:
        return ClassFolders(train, None, classes, splits.unused)
    val = splits.val[0]
    val_classes = list_classes(val, view)
    if only_in_one := sorted(set(classes) ^ set(val_classes)):
        name = only_in_one[0]
        twin = find_twin(name, [*classes, *val_classes])
        how = spellings(name, twin) if twin else f"{name} is in one only; add or remove it"
        raise LayoutError(f"{train} and {val} do not have the same classes: {how}")
    return ClassFolders(train, val, classes, splits.unused)


def _find_splits(folder: Path, view: ImageView) -> Splits:
    roles = {child: role for child in view.below(folder) if (role := folder_role(child))}
    if set(roles.values()) == {"train"} and all(not view.below(path) and _has_image(path, view) for path in roles):
        return Splits([folder], [], [])  # a class called train: it holds images, and no classes
    return find_splits(folder, view, lambda place: _has_image(place, view))


def _has_image(folder: Path, view: ImageView) -> bool:
    return view.count_images(folder, 1) > 0


def list_classes(folder: Path, view: ShardView) -> list[str]:
    """Return the names of the class folders: two at least."""
    classes = [path.name for path in view.below(folder)]
    if len(classes) < 2 and (shards := view.shards(folder)):
        raise LayoutError(
            f"{folder} holds shards, such as {shards[0].name}, and no {SHARD_INDEX}: if `shoestring data prepare` "
            "makes them, let the same command end; others need format: webdataset"
        )
    if len(classes) < 2:
        raise LayoutError(
            f"{folder} holds {counted(len(classes), 'class folder')}; a classifier needs two: {folder}/CLASS/image.jpg"
        )
    require_class_names(classes, folder)
    return classes


def empty_class(folder: Path) -> LayoutError:
    extensions = ", ".join(sorted(IMAGE_EXTENSIONS))
    return LayoutError(f"the class folder {folder} holds no image; add some ({extensions}) or remove the folder")


def too_few_images(name: str, folder: Path) -> LayoutError:
    return LayoutError(f'class "{name}" in {folder} has too few valid images for a train/val split; add some')


def no_cifar10(folder: Path) -> LayoutError:
    return LayoutError(
        f"{folder} doesn't hold CIFAR-10: data_batch_1.bin … data_batch_5.bin and test_batch.bin (binary version) "
        "or the same names without .bin (Python version); give the folder that does as data.train"
    )


def leads_out(path: Path) -> LayoutError:
    return LayoutError(
        f"{path} leads out of the folders that jobs may read; copy what it links to, or start the service with a "
        "--data-root that holds it"
    )


def _is_unlabelled_test(folder: Path, classes: Sequence[str], view: ShardView) -> bool:
    """Return whether a test folder has no class folders: at most one sub-folder, which is none of the classes."""
    below = [path.name for path in view.below(folder)]
    return folder_role(folder) == "test" and len(below) < 2 and not set(below) & set(classes)
