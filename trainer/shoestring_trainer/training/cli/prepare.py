# SPDX-License-Identifier: Apache-2.0
"""Pack a data set into shards, with progress on stderr and a summary on stdout.

Either side may be in S3: what is downloaded, and shards that are to be uploaded, lie in a folder of the cache until all
is done, so that the same command goes on where it was interrupted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from time import monotonic

from shoestring_core.terminal_text import printable
from shoestring_core.wording.units import counted

from shoestring_trainer.data_sync.datasets import is_remote, sync_dataset
from shoestring_trainer.data_sync.errors import DataUnavailable
from shoestring_trainer.training.data.image_folder import Folders, index_folders, list_folders
from shoestring_trainer.training.data.image_index import ImageIndex, describe_ignored
from shoestring_trainer.training.data.prepare_shards import Progress, prepare_shards
from shoestring_trainer.training.data.shard_folder import require_apart
from shoestring_trainer.training.data.shard_list import ShardIndex, Split
from shoestring_trainer.training.data.shard_plan import PrepareOptions
from shoestring_trainer.training.data.stored_image import SKIP_OPTION
from shoestring_trainer.training.data.webdataset import index_shards
from shoestring_trainer.training.errors import UserError

REPORT_INTERVAL_S = 10.0


def print_preparation(
    source: str, destination: str, options: PrepareOptions, *, processes: int, as_json: bool
) -> None:  # fmt: skip
    """Prepare a folder, here or in S3, and print what it holds. Raises TrainerError, with what to do."""
    try:
        index = _prepare(source, destination, options, processes)
    except DataUnavailable as error:
        raise UserError(str(error)) from error
    for line in index.skipped:
        sys.stderr.write(f"{printable(f'skipped: {line}')}\n")
    text = json.dumps(_summary(destination, index)) if as_json else printable(_describe(destination, index))
    sys.stdout.write(f"{text}\n")


def _prepare(source: str, destination: str, options: PrepareOptions, processes: int) -> ShardIndex:
    """Raise TrainerError or DataUnavailable."""
    uploads = is_remote(destination)
    work = _work_folder(source, destination)
    folder = work / "shards" if uploads else Path(destination)
    if uploads == is_remote(source):
        require_apart(source, destination)
    if uploads:  # before hours of work
        from shoestring_trainer.data_sync.shard_upload import require_place_for_shards, upload_shards

        asyncio.run(require_place_for_shards(destination, os.environ))
    local = Path(source)
    if is_remote(source):
        local = asyncio.run(sync_dataset(source, work / "source", os.environ, _report, _report))
    index = prepare_shards(
        index_source(local, skip=options.skip_damaged), folder, options, processes, ProgressLine(), _report
    )  # fmt: skip
    if uploads:
        asyncio.run(upload_shards(folder, destination, os.environ, _report))
    shutil.rmtree(work, ignore_errors=True)
    return index


def _work_folder(source: str, destination: str) -> Path:
    """Where the files of this command lie until it is done: beside the copies that `train` makes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoestring"
    named = source if is_remote(source) else os.path.realpath(source)
    return cache / f"prepare-{hashlib.sha256(f'{named} {destination}'.encode()).hexdigest()[:12]}"


def _report(message: str) -> None:
    sys.stderr.write(f"{printable(message)}\n")
    sys.stderr.flush()


def index_source(source: Path, *, skip: bool) -> dict[Split, ImageIndex]:
    """Return the images of a folder of class folders, or of tar shards, by split. Raises TrainerError.

    skip  leave out samples without a label or an image
    """
    if not source.exists() and source.suffix != ".tar":
        raise UserError(f"{source} does not exist; give a folder of class folders, or of tar files")
    folders = list_folders(source) if source.is_dir() else []
    tars = [path for folder in (source, *folders) if folder.is_dir() for path in folder.iterdir() if _is_tar(path)]
    if tars and (images := [folder for folder in folders if Folders().count_images(folder, 1)]):
        raise UserError(
            f"{source} holds tar files, such as {min(tars)}, and folders of images, such as {images[0]}; move what is "
            "not to be packed elsewhere"
        )
    train, val = (
        index_folders(source)
        if source.is_dir() and not tars
        else index_shards(source, skip=skip, report=_report, skip_option=SKIP_OPTION)
    )
    if ignored := describe_ignored(*filter(None, (train, val))):
        _report(ignored)
    if train.unused:
        _report(f"not packed: {', '.join(map(str, train.unused))}")
    return {"train": train, "val": val} if val else {"train": train}


def _is_tar(path: Path) -> bool:
    return path.suffix == ".tar"


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


def _summary(folder: str, index: ShardIndex) -> dict[str, object]:
    return {
        "folder": folder, "shards": len(index.shards), "bytes": sum(shard.bytes for shard in index.shards),
        "images": {split: sum(counts) for split, counts in index.class_images.items()},
        "classes": len(index.classes), "skipped": index.skipped,
    }  # fmt: skip


def _describe(folder: str, index: ShardIndex) -> str:
    images = " and ".join(f"{counted(sum(counts), f'{split} image')}" for split, counts in index.class_images.items())
    size = sum(shard.bytes for shard in index.shards)
    skipped = f"; left out: {counted(len(index.skipped), 'damaged image')}" if index.skipped else ""
    use = f"data.train={folder} data.stream=true" if is_remote(folder) else f"data.train={Path(folder).absolute()}"
    return (
        f"{folder} holds {images} of {len(index.classes):,} classes in {counted(len(index.shards), 'shard')}, "
        f"{size:,} bytes, verified{skipped}. Train on them with {use}"
    )
