# SPDX-License-Identifier: Apache-2.0
"""Which images each shard will hold: a function of the images and the options, known before anything is written."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import PIL

from shoestring_trainer.training.data.image_index import ImageIndex
from shoestring_trainer.training.data.shard_list import VERSION, Split

SHUFFLE_SEED = 0
"""Images are shuffled, so that a shard has images of all classes: WebDataset shuffles only within a few shards."""


@dataclass(frozen=True)
class PrepareOptions:
    """side: pixels of the shorter side above which an image is scaled down, and saved as JPEG of this `quality`."""

    side: int
    quality: int
    images_per_shard: int
    skip_damaged: bool


@dataclass(frozen=True)
class ShardPlan:
    """Which images of a split a shard holds. `first`: the place of the first among the split's shuffled images."""

    split: Split
    name: str
    first: int
    members: Sequence[int]


def plan_shards(sources: dict[Split, ImageIndex], options: PrepareOptions) -> list[ShardPlan]:
    """Return what each shard holds."""
    plans = []
    for split, images in sources.items():
        order = list(range(len(images)))
        random.Random(SHUFFLE_SEED).shuffle(order)
        for number, first in enumerate(range(0, len(order), options.images_per_shard)):
            members = order[first : first + options.images_per_shard]
            plans.append(ShardPlan(split, f"{split}-{number:06d}.tar", first, members))
    return plans


def plan_digest(sources: dict[Split, ImageIndex], options: PrepareOptions) -> str:
    """Return what tells whether a folder was begun with the same images, options and JPEG encoder.

    Images by their names and sizes. Not by their dates: a copy of them, or a download, has others.
    """
    digest = hashlib.sha256(json.dumps([VERSION, PIL.__version__, asdict(options)]).encode())
    for split, images in sources.items():
        sizes = list(images.sizes) or [_size(images.path(number)) for number in range(len(images))]
        digest.update(json.dumps([split, images.classes, images.names, images.labels, sizes]).encode())
    return digest.hexdigest()


def _size(file: Path) -> int:
    """0: there is none, as where a link leads to nothing; opening it will tell."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
