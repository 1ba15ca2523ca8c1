# SPDX-License-Identifier: Apache-2.0
"""Index of a dataset's images before any is decoded: names and labels, in a reproducible order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shoestring_core.image_folders import too_few_images
from shoestring_core.wording.units import counted

from shoestring_trainer.training.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ImageIndex:
    """Names and labels of images that are not decoded yet.

    root     the folder the names are relative to
    open     open an image by its index, without decoding it; raises what file access and Pillow raise
    ignored  files beside the images whose extension is not an image's
    skipped  number of samples left out because they are invalid, for example without a label
    source   what users call the place of the images; empty: the root
    unused   parts of the data set that are neither trained nor validated on
    sizes    bytes of each image's file; empty: they are files of their own
    """

    root: Path
    classes: list[str]
    names: list[str]
    labels: list[int]
    open: Callable[[int], Image.Image]
    ignored: Sequence[Path] = ()
    skipped: int = 0
    source: str = ""
    unused: Sequence[Path] = ()
    sizes: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return the path that identifies an image to users."""
        return self.root / self.names[index]

    def subset(self, indices: Sequence[int]) -> ImageIndex:
        """Return the index of the images at `indices`, in that order."""
        return replace(
            self,
            names=[self.names[index] for index in indices],
            labels=[self.labels[index] for index in indices],
            open=lambda index: self.open(indices[index]),
            sizes=[self.sizes[index] for index in indices] if self.sizes else (),
        )


def split_train_val(images: ImageIndex, seed: int, val_fraction: float) -> tuple[ImageIndex, ImageIndex]:
    """Split into (train, val): the same fraction of each class, drawn by `seed`."""
    import torch  # not at the top: shards are prepared without it

    from shoestring_trainer.training.data.dataset import stratified_split

    train, val = stratified_split(torch.tensor(images.labels), seed, val_fraction)
    return images.subset(train.tolist()), replace(images.subset(val.tolist()), ignored=(), skipped=0)


def describe_splits(train: ImageIndex, val: ImageIndex) -> str:
    """Return a line for the log: which images are trained on, which are validated on, and which aren't used."""
    place, other = train.source or str(train.root), val.source or str(val.root)
    where = f"in {other}" if other != place else "held out of the same"
    unused = f"; not used: {', '.join(map(str, train.unused))}" if train.unused else ""
    return (
        f"training on {counted(len(train), 'image')} of {len(train.classes)} classes in {place}, validating on "
        f"{len(val):,} {where}{unused}"
    )


def describe_ignored(*parts: ImageIndex) -> str:
    """Return a line for the log: which files beside the images are none; empty if there is no such file."""
    ignored = sorted({path for part in parts for path in part.ignored})
    reason = "not images by their extension, or outside the class folders"
    return f"ignored {counted(len(ignored), 'file')} ({reason}); the first is {ignored[0]}" if ignored else ""


def validate_classes(images: ImageIndex) -> None:
    """Raise DataError if a label belongs to no class, or a class has no image."""
    labels = set(images.labels)
    if invalid := labels - set(range(len(images.classes))):
        index = next(index for index, label in enumerate(images.labels) if label in invalid)
        raise DataError(
            f"{images.path(index)} has the label {images.labels[index]}, the classes go from 0 to "
            f"{len(images.classes) - 1}; correct the label or remove the image"
        )
    for label, name in enumerate(images.classes):
        if label not in labels:
            raise DataError(str(too_few_images(name, images.root)))


def validate_utf8(path: Path) -> None:
    """Raise DataError for a path that isn't valid UTF-8: split.json could not hold it."""
    if not str(path).isascii():
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise DataError(f"the name {str(path)!a} isn't UTF-8; rename it") from None
