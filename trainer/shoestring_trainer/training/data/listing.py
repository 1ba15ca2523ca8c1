# SPDX-License-Identifier: Apache-2.0
"""What images there are, before any is decoded: names and classes, in an order that depends on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shoestring_trainer.training.data.images import split_by_class
from shoestring_trainer.training.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
HELD_OUT_NAMES = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Listing:
    """Images and their classes.

    place    where they lie; with an image's name it says which one is meant
    open     the image with a number, its pixels not read yet; raises what reading and Pillow raise
    ignored  files beside them that are no images by their names
    skipped  samples left out because they can't be used, whatever their images are
    """

    place: Path
    classes: list[str]
    names: list[str]
    labels: list[int]
    open: Callable[[int], Image.Image]
    ignored: Sequence[Path] = ()
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def path(self, number: int) -> Path:
        """What to call an image in front of users."""
        return self.place / self.names[number]

    def only(self, numbers: Sequence[int]) -> Listing:
        """The images at `numbers`, in that order."""
        return replace(
            self,
            names=[self.names[number] for number in numbers],
            labels=[self.labels[number] for number in numbers],
            open=lambda number: self.open(numbers[number]),
        )


def hold_out(listing: Listing, seed: int, share: float) -> tuple[Listing, Listing]:
    """The listing in two, (train, held out): of each class the same share, drawn by `seed`."""
    train, held_out = split_by_class(torch.tensor(listing.labels), seed, share)
    return listing.only(train.tolist()), replace(listing.only(held_out.tolist()), ignored=(), skipped=0)


def check_classes(listing: Listing) -> None:
    """Raises DataError for a label of no class, or a class without an image."""
    found = set(listing.labels)
    if strange := found - set(range(len(listing.classes))):
        number = next(number for number, label in enumerate(listing.labels) if label in strange)
        raise DataError(
            f"{listing.path(number)} has the label {listing.labels[number]}, the classes go from 0 to "
            f"{len(listing.classes) - 1}; correct it or leave it out"
        )
    for label, name in enumerate(listing.classes):
        if label not in found:
            raise DataError(
                f"the class {name} in {listing.place} has too few readable images to train on and measure; add some"
            )


def check_name(path: Path) -> None:
    """Raises DataError for a name that isn't text: it could stand in no list of what was held out."""
    if not str(path).isascii():
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise DataError(f"the name {str(path)!a} isn't UTF-8; rename it") from None
