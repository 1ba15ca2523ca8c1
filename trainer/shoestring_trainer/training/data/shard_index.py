# SPDX-License-Identifier: Apache-2.0
"""The index of a folder of shards that `prepare_shards` has made: where each image lies, its class and its size.

Two files: `shards.json` for people and for what belongs to the whole, `shards.npy` with one row for each image. A row
takes 28 bytes and is memory-mapped, so that a million images neither delay the first step nor fill the memory.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from shoestring_core.regular_files import open_regular
from shoestring_core.shard_checks import require_indexed
from shoestring_core.wording.units import counted

from shoestring_trainer.training.data.confined_files import open_confined
from shoestring_trainer.training.data.image_folder import refuse_layout
from shoestring_trainer.training.data.shard_list import SAMPLES_FILE, Shard, ShardIndex, Split
from shoestring_trainer.training.errors import DataError

SAMPLE = np.dtype(
    [("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4"), ("label", "<u4"), ("width", "<u4"), ("height", "<u4")]
)
"""A row: the shard's place in the list, the image file's place in the shard, its class, and width and height of the
original image as it is shown. Rows are in the order of the shards."""

BLOCK_BYTES = 1 << 20
_HEADER_BYTES = 1 << 16
"""The most that NumPy's format has before the rows."""


def sample_key(number: int) -> str:
    """Return the key of a sample: WebDataset's word for the name of its files without their extensions."""
    return f"{number:08d}"


def map_samples(folder: Path, index: ShardIndex) -> npt.NDArray[Any]:
    """Memory-map the rows of `shards.npy`. Raises DataError if it isn't the one that belongs to the index."""
    file, images = folder / SAMPLES_FILE, sum(shard.images for shard in index.shards)
    try:
        with open_confined(file) as opened:
            if (size := os.fstat(opened.fileno()).st_size) > _HEADER_BYTES + images * SAMPLE.itemsize:
                raise ValueError(f"it has {size:,} bytes for {counted(images, 'image')}")
            # block by block: a rank keeps what it has once taken of the memory
            digest = hashlib.sha256()
            while block := opened.read(BLOCK_BYTES):
                digest.update(block)
        if digest.hexdigest() != index.samples_sha256:
            raise ValueError("another SHA-256 than shards.json says")
        rows: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is missing or damaged ({error}); prepare the shards again") from error
    return rows


def count_labels(rows: npt.NDArray[Any], shards: Sequence[Shard], split: Split, classes: int) -> list[int]:
    """Return how many images each class has in a split."""
    in_split = np.array([shard.split == split for shard in shards])[rows["shard"]]
    counts: list[int] = np.bincount(rows["label"][in_split], minlength=classes).tolist()
    return counts


def verify_shard(folder: Path, shard: Shard, rows: npt.NDArray[Any]) -> str:
    """Return what is wrong with a shard, whose rows of the index these are; empty: nothing."""
    expected = iter(rows)
    try:
        with open_regular(folder / shard.name) as file:
            if os.fstat(file.fileno()).st_size != shard.bytes:
                return "another size than when it was written"
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                return "another SHA-256 than when it was written"
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members = iter(tar)
                for image, label in zip(members, members, strict=True):
                    content, row = tar.extractfile(label), next(expected, None)
                    if row is None or not content or int(content.read()) != row["label"]:
                        return f"another label of {image.name} than in the index"
                    if (image.offset_data, image.size) != (row["offset"], row["bytes"]):
                        return f"{image.name} lies elsewhere than the index says"
    except (OSError, tarfile.TarError, ValueError) as error:
        return str(error)
    return "fewer images than in the index" if next(expected, None) is not None else ""


def require_whole_shards(folder: Path, index: ShardIndex) -> None:
    """Raise DataError for a shard that is missing or has another size. Their contents are verified when prepared."""
    stored: dict[str, int | None] = {}
    for shard in index.shards:
        with suppress(OSError):
            stored[shard.name] = (folder / shard.name).stat().st_size
    with refuse_layout():
        require_indexed(folder, {shard.name: shard.bytes for shard in index.shards}, stored)
