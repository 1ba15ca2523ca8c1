# SPDX-License-Identifier: Apache-2.0
"""What `shards.json` says of a folder of shards that `prepare_shards` has made. Free of numpy: agents read it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError
from shoestring_core.data_splits import LayoutError, require_class_names

from shoestring_trainer.training.data.confined_files import read_confined
from shoestring_trainer.training.errors import DataError

FORMAT, VERSION = "shoestring-shards", 1
INDEX_FILE, SAMPLES_FILE = "shards.json", "shards.npy"
SHUFFLED_TOGETHER = 16
"""Shards of streamed data among which images are shuffled, so that these few are enough for a while."""

Split = Literal["train", "val"]
ShardName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar$", max_length=200)]


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file.

    first          the number that is the key of its first sample; the others follow without gaps
    source_sha256  a digest of the images' files that it was made from; empty: made before there was one
    """

    name: ShardName
    split: Split
    first: int
    images: int
    bytes: int
    sha256: str
    source_sha256: str = ""


class ShardIndex(BaseModel):
    """What `shards.json` holds.

    plan            a digest of the options and of the source's images, by which the same command is known again
    class_images    number of images of each class, by split
    skipped         images that were left out because they are damaged, and why
    samples_sha256  of `shards.npy`
    """

    format: str = FORMAT
    version: int = VERSION
    plan: str
    side: int
    quality: int
    classes: list[str]
    class_images: dict[Split, list[int]]
    shards: list[Shard]
    skipped: list[str]
    samples_sha256: str


def has_shard_index(folder: Path) -> bool:
    return (folder / INDEX_FILE).is_file()


def read_shard_index(folder: Path, remedy: str = "prepare the shards again") -> ShardIndex:
    """Return what `shards.json` holds. Raises DataError if it is damaged or of another version, with this remedy."""
    file = folder / INDEX_FILE
    try:
        index = ShardIndex.model_validate_json(read_confined(file))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except ValidationError as error:
        raise DataError(f"{file} is damaged, or no index of shards ({error.errors()[0]['msg']}); {remedy}") from error
    try:
        require_class_names(index.classes, file)
    except LayoutError as error:
        raise DataError(str(error)) from error
    if (index.format, index.version) != (FORMAT, VERSION):
        raise DataError(
            f"{file} has the format {index.format} {index.version}, this trainer reads {FORMAT} {VERSION}; {remedy}, "
            "or use the version of Shoestring that made them"
        )
    return index


def least_streaming_bytes(shards: Sequence[Shard]) -> int:
    """Return the disk space without which streamed shards can't be used: those of an evaluation, or of two windows.

    A batch may begin in one window of shards that are shuffled together and end in the next.
    """
    train = sorted((shard.bytes for shard in shards if shard.split == "train"), reverse=True)
    val = sum(shard.bytes for shard in shards if shard.split == "val")
    return max(sum(train[: 2 * SHUFFLED_TOGETHER]), val)
