# SPDX-License-Identifier: Apache-2.0
"""Pack a data set into shards, with progress on stderr and a summary on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import monotonic

from shoestring_core.terminal_text import printable
from shoestring_core.wording.units import counted

from shoestring_trainer.training.data.image_folder import index_folders, list_folders
from shoestring_trainer.training.data.image_index import ImageIndex
from shoestring_trainer.training.data.prepare_shards import PrepareOptions, Progress, prepare_shards
from shoestring_trainer.training.data.shard_folder import require_apart
from shoestring_trainer.training.data.shard_list import ShardIndex, Split
from shoestring_trainer.training.data.webdataset import index_shards
from shoestring_trainer.training.errors import UserError

REPORT_INTERVAL_S = 10.0


def print_preparation(
    source: Path, folder: Path, options: PrepareOptions, *, processes: int, as_json: bool
) -> None:  # fmt: skip
    """Prepare `folder` and print what it holds. Raises TrainerError, with what to do."""
    require_apart(source, folder)
    sources = index_source(source, skip=options.skip_damaged)
    index = prepare_shards(sources, folder, options, processes, ProgressLine())
    for line in index.skipped:
        sys.stderr.write(f"{printable(f'skipped: {line}')}\n")
    sys.stdout.write(f"{json.dumps(_summary(folder, index)) if as_json else printable(_describe(folder, index))}\n")


def index_source(source: Path, *, skip: bool) -> dict[Split, ImageIndex]:
    """Return the images of a folder of class folders, or of tar shards, by split. Raises TrainerError.

    skip  leave out samples without a label or an image
    """
    if not source.exists() and source.suffix != ".tar":
        raise UserError(f"{source} does not exist; give a folder of class folders, or of tar files")
    folders = [source, *list_folders(source)] if source.is_dir() else []
    shards = not folders or any(path.suffix == ".tar" for folder in folders for path in folder.iterdir())
    train, val = index_shards(source, skip=skip) if shards else index_folders(source)
    return {"train": train, "val": val} if val else {"train": train}


class ProgressLine:
    """Write progress to stderr: a line that changes on a terminal, else one every REPORT_INTERVAL_S."""

    def __init__(self) -> None:
        self._began = self._last = monotonic()

    def __call__(self, progress: Progress) -> None:
        now, complete = monotonic(), progress.shards == progress.total_shards
        terminal = sys.stderr.isatty()
        if not (terminal or complete or now - self._last > REPORT_INTERVAL_S):
            return
        self._last = now
        rate = (progress.images - progress.at_start) / max(now - self._began, 1e-3)
        rest = f", {(progress.total_images - progress.images) / rate / 60:.0f} min left" if rate else ""
        text = (
            f"{progress.images:,} of {counted(progress.total_images, 'image')} in {progress.shards:,} of "
            f"{counted(progress.total_shards, 'shard')}, {rate:,.0f} images/s{'; verifying' if complete else rest}"
        )
        sys.stderr.write((f"\r\x1b[K{text}" if terminal else text) + ("\n" if complete or not terminal else ""))
        sys.stderr.flush()


def _summary(folder: Path, index: ShardIndex) -> dict[str, object]:
    return {
        "folder": str(folder), "shards": len(index.shards), "bytes": sum(shard.bytes for shard in index.shards),
        "images": {split: sum(counts) for split, counts in index.class_images.items()},
        "classes": len(index.classes), "skipped": index.skipped,
    }  # fmt: skip


def _describe(folder: Path, index: ShardIndex) -> str:
    images = " and ".join(f"{counted(sum(counts), f'{split} image')}" for split, counts in index.class_images.items())
    size = sum(shard.bytes for shard in index.shards)
    skipped = f"; left out: {counted(len(index.skipped), 'damaged image')}" if index.skipped else ""
    return (
        f"{folder} holds {images} of {len(index.classes):,} classes in {counted(len(index.shards), 'shard')}, "
        f"{size:,} bytes, verified{skipped}. Train on them with data.train={folder.absolute()}"
    )
