# SPDX-License-Identifier: Apache-2.0
"""Labeled images in uint8 tensors, split into training and validation images."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
import torch.nn.functional as F
from shoestring_core.wording.units import counted
from torch import Tensor

from shoestring_trainer.training.data.stalls import InputStalls
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.randomness import generator
from shoestring_trainer.training.settings import Settings

if TYPE_CHECKING:
    from shoestring_trainer.training.data.shard_feed import ShardFeed
    from shoestring_trainer.training.hyperparam_schedule import Phase
    from shoestring_trainer.training.randomness import Samples

_STATISTICS_BYTES = 16_000_000
_RESIZE_CHUNK = 1000


class ImageStream(Protocol):
    """Images that are decoded ahead, in order."""

    def take(self, count: int, device: torch.device, stalls: InputStalls) -> Tensor:
        """Return the next images on the device, uint8 NCHW; add what it waits for."""


class LazyImages(Protocol):
    """Images that are decoded when they are asked for."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, indices: Tensor | slice | int) -> Tensor: ...

    def stream(self, parts: Iterable[tuple[Self, Tensor]]) -> ImageStream:
        """Begin to decode images of this and others, those at the given indices."""

    def stream_samples(self, samples: Iterable[Samples], phase: Phase) -> ImageStream:
        """Begin to decode the samples of steps, in their random crops, and flipped if `flips_come_first`."""


@dataclass(frozen=True)
class LabeledImages:
    """Images as uint8 and their class numbers; those of training images in any integer type, for there may be many.

    aspect_ratios_N  width / height of each image before it was stretched to a square; None: none was stretched
    """

    images_NCHW: Tensor | LazyImages
    labels_N: Tensor
    aspect_ratios_N: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    def subset(self, indices: Tensor) -> LabeledImages:
        """Return the images at `indices`, without aspect ratios."""
        return LabeledImages(self.images_NCHW[indices], self.labels_N[indices])


@dataclass(frozen=True)
class ImageDataset:
    """Training and validation images, and what a classifier needs to know about them.

    max_value    the pixel value that means 1.0
    split        how the validation images were chosen, and which they are: JSON for the artifact split.json
    skipped      number of unreadable or invalid samples left out
    val_batches  the validation images in batches of similar aspect ratio: their indices and uint8 images
    files        the packed list of its files, see file_list.py; None: it has none
    feed         asks for the shards that are streamed; None: all images are on this machine
    """

    train: LabeledImages
    val: LabeledImages
    classes: list[str]
    max_value: float
    mean: list[float]
    std: list[float]
    split: dict[str, Any]
    skipped: int = 0
    val_batches: Sequence[tuple[Tensor, Tensor | LazyImages]] = ()
    files: bytes | None = None
    feed: ShardFeed | None = None

    @property
    def size(self) -> int:
        return int(self.train.images_NCHW.shape[-1])

    @property
    def val_names(self) -> list[str]:
        """Each validation image's file name, or its number in the source."""
        names = self.split["val"]
        if isinstance(names, list):
            return [name if isinstance(name, str) else f"row {name}" for name in names]
        return [f"{names} {number}" for number in range(len(self.val))]

    @property
    def fingerprint(self) -> str:
        """A hash that changes with the classes, the split or the number of images."""
        text = json.dumps([self.classes, self.split, len(self.train), len(self.val)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load_digits(seed: int, settings: Settings) -> ImageDataset:
    """Load scikit-learn's 1,797 handwritten digits, 8×8, from its package without importing it."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("the digits come with scikit-learn, which is not installed; pip install scikit-learn")
    table = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not table.exists():
        raise DataError(f"{table} is missing; install scikit-learn again")
    rows_NC = _read_csv(table)
    digits = LabeledImages(rows_NC[:, :64].reshape(-1, 1, 8, 8).to(torch.uint8), rows_NC[:, 64].contiguous())
    train, val = stratified_split(digits.labels_N, seed, settings.val_fraction)
    split = {"data": "sklearn.datasets.load_digits", "seed": seed, "val": val.tolist()}
    classes = [str(digit) for digit in range(10)]
    return build_dataset(digits.subset(train), digits.subset(val), classes, max_value=16.0, split=split)


def stratified_split(labels_N: Tensor, seed: int, val_fraction: float) -> tuple[Tensor, Tensor]:
    """Return (train, val) indices: the same fraction of each class, at least one image, determined by `seed` alone."""
    val = []
    for label in labels_N.unique().tolist():
        members = (labels_N == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "split", label))
        val.append(members[order[: max(1, round(val_fraction * len(members)))]])
    val_indices = torch.cat(val).sort().values
    is_train = torch.ones(len(labels_N), dtype=torch.bool)
    is_train[val_indices] = False
    return is_train.nonzero().flatten(), val_indices


def resize_dataset(dataset: ImageDataset, size: int) -> ImageDataset:
    """Resize all images to `size` pixels a side, with antialiasing; 0 leaves them as they are."""
    if size in (0, dataset.size):
        return dataset
    train, val = (replace(part, images_NCHW=_resize(part.images_NCHW, size)) for part in (dataset.train, dataset.val))
    return replace(dataset, train=train, val=val)


def _resize(images_NCHW: Tensor | LazyImages, size: int) -> Tensor:
    if not isinstance(images_NCHW, Tensor):
        raise TypeError("lazy images are decoded at their size")
    chunks = (
        F.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True).round_().byte()
        for chunk in images_NCHW.split(_RESIZE_CHUNK)
    )
    return torch.cat(list(chunks))


def build_dataset(
    train: LabeledImages,
    val: LabeledImages,
    classes: Sequence[str],
    *,
    max_value: float,
    split: dict[str, Any],
    skipped: int = 0,
) -> ImageDataset:
    """Return a dataset with the mean and standard deviation of each channel, over evenly spaced training images.

    Raises DataError if a label belongs to no class, or if images and labels differ in number.
    """
    for part, images in (("training", train), ("validation", val)):
        validate_labels(images, len(classes), part)
    every = max(1, train.images_NCHW.shape.numel() // _STATISTICS_BYTES)
    mean, std = channel_statistics(train.images_NCHW[::every], max_value)
    return ImageDataset(train, val, list(classes), max_value, mean, std, split, skipped)


def channel_statistics(images_NCHW: Tensor, max_value: float) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of uint8 images, of which `max_value` is 1."""
    sample = images_NCHW.double() / max_value
    mean, std = sample.mean(dim=(0, 2, 3)), sample.std(dim=(0, 2, 3), correction=0)
    return [round(m, 6) for m in mean.tolist()], [round(max(s, 1e-3), 6) for s in std.tolist()]


def validate_labels(images: LabeledImages, classes: int, part: str) -> None:
    """Raise DataError if a label belongs to no class, or if images and labels differ in number."""
    labels_N, count = images.labels_N, len(images.images_NCHW)
    if not count or len(labels_N) != count:
        raise DataError(
            f"the {part} data hold {counted(count, 'image')} and {counted(len(labels_N), 'label')}; give one label for "
            "each image"
        )
    invalid_N = ((labels_N < 0) | (labels_N >= classes)).nonzero().flatten()
    if len(invalid_N):
        number = int(invalid_N[0])
        raise DataError(
            f"labels outside 0 to {classes - 1} in {counted(len(invalid_N), f'{part} image')}; the first is image "
            f"{number} with {int(labels_N[number])}; correct the labels or remove those images"
        )


def _read_csv(table: Path) -> Tensor:
    """Read a gzipped CSV file of integers. (numpy's loadtxt takes ten times as long.)"""
    import gzip

    with gzip.open(table, "rt") as file:
        return torch.tensor([[int(float(cell)) for cell in line.split(",")] for line in file])
