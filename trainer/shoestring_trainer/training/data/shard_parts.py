# SPDX-License-Identifier: Apache-2.0
"""What is known of single shards while a folder of them is prepared: a file for each, beside the shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydantic import BaseModel, ValidationError
from shoestring_core.regular_files import open_regular, read_regular

from shoestring_trainer.training.data.image_files import file_content
from shoestring_trainer.training.data.image_index import ImageIndex
from shoestring_trainer.training.data.shard_folder import replace_file
from shoestring_trainer.training.data.shard_list import Shard, ShardIndex
from shoestring_trainer.training.data.shard_plan import ShardPlan

SOURCES_FILE = "sources.tsv"


class Part(BaseModel):
    """A shard that is written. `rows`: as in the index, but for the shard's place; `sources`: the images' names."""

    shard: Shard
    rows: list[tuple[int, int, int, int, int]]
    sources: list[str]
    skipped: list[str]


def part_file(parts: Path, shard: str) -> Path:
    return parts / f"{shard}.json"


def read_part(parts: Path, shard: str) -> Part | None:
    """None: the shard isn't written, or what is known of it is damaged."""
    try:
        return Part.model_validate_json(read_regular(part_file(parts, shard)))
    except (FileNotFoundError, ValidationError):
        return None


def write_part(parts: Path, part: Part) -> None:
    replace_file(part_file(parts, part.shard.name), part.model_dump_json().encode())


def restore_parts(
    folder: Path, parts: Path, plans: Sequence[ShardPlan], index: ShardIndex, rows: npt.NDArray[Any]
) -> None:
    """Write the parts of a folder that was complete, so that only shards that aren't right are written anew.

    None, if its files don't fit one another: then all are.
    """
    with suppress(FileNotFoundError, UnicodeDecodeError):
        with open_regular(folder / SOURCES_FILE) as file:
            lines = file.read().decode().split("\n")[:-1]
        _restore(parts, plans, index, rows, lines)


def _restore(
    parts: Path, plans: Sequence[ShardPlan], index: ShardIndex, rows: npt.NDArray[Any], lines: Sequence[str]
) -> None:
    left_out = [len(plan.members) - shard.images for plan, shard in zip(plans, index.shards, strict=False)]
    fit = (
        [plan.name for plan in plans] == [shard.name for shard in index.shards]
        and len(lines) == len(rows) == sum(shard.images for shard in index.shards)
        and sum(left_out) == len(index.skipped)
    )
    if not fit:
        return
    skipped, first = iter(index.skipped), 0
    for shard, count in zip(index.shards, left_out, strict=True):
        of_shard = slice(first, first + shard.images)
        write_part(
            parts,
            Part(
                shard=shard, rows=[row[1:] for row in rows[of_shard].tolist()], sources=list(lines[of_shard]),
                skipped=list(islice(skipped, count)),
            ),
        )  # fmt: skip
        first += shard.images


def source_digest(source: ImageIndex, members: Sequence[int]) -> str:
    """Return what tells whether one of these images' files has changed. Dates don't: a copy or a download has others.

    Reading a file takes a small part of the time in which it is decoded and packed.
    """
    digest = hashlib.sha256()
    for member in members:
        try:
            with source.open(member) as opened:
                content = file_content(opened)
        except Exception as error:  # noqa: BLE001 - a damaged image can raise anything; mended, it raises nothing
            content = f"{type(error).__name__}: {error}".encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
