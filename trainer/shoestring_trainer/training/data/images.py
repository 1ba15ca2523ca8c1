# SPDX-License-Identifier: Apache-2.0
"""Labelled images, decoded once into one uint8 tensor, and their split into training and held-out."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.randomness import generator
from shoestring_trainer.training.settings import Settings

_STATISTICS_BYTES = 16_000_000
_RESIZED_AT_ONCE = 1000


@dataclass(frozen=True)
class LabeledImages:
    """Images as bytes and their classes as numbers.

    aspects_N  width / height that each had before it was squeezed into its square; None: nothing was squeezed
    """

    images_NCHW: Tensor
    labels_N: Tensor
    aspects_N: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class DataSet:
    """Everything a classifier needs to know about its data.

    white    the byte that means 1.0
    split    how the held-out images were chosen, and which they are: JSON for the artifact split.json
    skipped  unreadable files left out
    batches  the held-out images once more, in batches of like shape: which they are, and their bytes
    """

    train: LabeledImages
    held_out: LabeledImages
    classes: list[str]
    white: float
    mean: list[float]
    std: list[float]
    split: dict[str, Any]
    skipped: int = 0
    batches: Sequence[tuple[Tensor, Tensor]] = ()

    @property
    def size(self) -> int:
        return int(self.train.images_NCHW.shape[-1])

    @property
    def held_out_names(self) -> list[str]:
        """What each held-out image is called where it comes from: its file, or its number."""
        named = self.split["held_out"]
        if isinstance(named, list):
            return [name if isinstance(name, str) else f"row {name}" for name in named]
        return [f"{named} {number}" for number in range(len(self.held_out))]

    @property
    def fingerprint(self) -> str:
        """Changes when the classes, the split or the number of images does."""
        text = json.dumps([self.classes, self.split, len(self.train), len(self.held_out)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load_digits(seed: int, settings: Settings) -> DataSet:
    """scikit-learn's 1,797 handwritten digits, 8×8, read from its package without importing it."""
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DataError("the digits come with scikit-learn, which is not installed; pip install scikit-learn")
    table = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not table.exists():
        raise DataError(f"{table} is missing; install scikit-learn again")
    rows_NC = _read_numbers(table)
    images = LabeledImages(rows_NC[:, :64].reshape(-1, 1, 8, 8).to(torch.uint8), rows_NC[:, 64].contiguous())
    train, held_out = split_by_class(images.labels_N, seed, settings.val_fraction)
    split = {"data": "sklearn.datasets.load_digits", "seed": seed, "held_out": held_out.tolist()}
    return describe(
        select(images, train),
        select(images, held_out),
        [str(digit) for digit in range(10)],
        white=16.0,
        split=split,
    )


def split_by_class(labels_N: Tensor, seed: int, share: float) -> tuple[Tensor, Tensor]:
    """Indices (train, held out): of each class the same share, at least one image, drawn by `seed` alone."""
    held_out = []
    for label in labels_N.unique().tolist():
        members = (labels_N == label).nonzero().flatten()
        drawn = torch.randperm(len(members), generator=generator(seed, "split", label))
        held_out.append(members[drawn[: max(1, round(share * len(members)))]])
    chosen = torch.cat(held_out).sort().values
    rest = torch.ones(len(labels_N), dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero().flatten(), chosen


def select(images: LabeledImages, indices: Tensor) -> LabeledImages:
    """The images at `indices`."""
    return LabeledImages(images.images_NCHW[indices], images.labels_N[indices])


def resized(data: DataSet, size: int) -> DataSet:
    """The data with images of `size` pixels a side, averaged over what they shrink; as they are for 0."""
    if size in (0, data.size):
        return data
    train, held_out = (
        replace(part, images_NCHW=_resize(part.images_NCHW, size)) for part in (data.train, data.held_out)
    )
    return replace(data, train=train, held_out=held_out)


def _resize(uint8_NCHW: Tensor, size: int) -> Tensor:
    some = (
        F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round_().byte()
        for part in uint8_NCHW.split(_RESIZED_AT_ONCE)
    )
    return torch.cat(list(some))


def describe(
    train: LabeledImages,
    held_out: LabeledImages,
    classes: Sequence[str],
    *,
    white: float,
    split: dict[str, Any],
    skipped: int = 0,
) -> DataSet:
    """A data set with the mean and spread of each channel, taken from evenly spaced training images.

    Raises DataError for labels that belong to no class, or not one for each image.
    """
    for part, images in (("training", train), ("held-out", held_out)):
        check_labels(images, len(classes), part)
    every = max(1, train.images_NCHW.numel() // _STATISTICS_BYTES)
    sample = train.images_NCHW[::every].double() / white
    mean, std = sample.mean(dim=(0, 2, 3)), sample.std(dim=(0, 2, 3), correction=0)
    return DataSet(
        train, held_out, list(classes), white,
        [round(m, 6) for m in mean.tolist()], [round(max(s, 1e-3), 6) for s in std.tolist()], split, skipped,
    )  # fmt: skip


def check_labels(images: LabeledImages, classes: int, part: str) -> None:
    """Raises DataError for labels that belong to no class, or not one for each image."""
    labels_N, count = images.labels_N, len(images.images_NCHW)
    if not count or len(labels_N) != count:
        raise DataError(f"there are {count} {part} images and {len(labels_N)} labels; give one label for each image")
    strange_N = ((labels_N < 0) | (labels_N >= classes)).nonzero().flatten()
    if len(strange_N):
        number = int(strange_N[0])
        raise DataError(
            f"{len(strange_N)} {part} images have labels outside 0 to {classes - 1}, the first is image {number} "
            f"with {int(labels_N[number])}; correct the labels or leave those images out"
        )


def _read_numbers(table: Path) -> Tensor:
    """A gzipped table of whole numbers, comma-separated. (numpy's loadtxt takes ten times as long.)"""
    import gzip

    with gzip.open(table, "rt") as file:
        return torch.tensor([[int(float(cell)) for cell in line.split(",")] for line in file])
