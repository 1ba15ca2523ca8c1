# SPDX-License-Identifier: Apache-2.0
"""Where a recipe's images come from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from shoestring_trainer.training.data.cifar10 import load_cifar10
from shoestring_trainer.training.data.decoded_cache import Copies
from shoestring_trainer.training.data.folders import is_image_folder, split_folder
from shoestring_trainer.training.data.images import DataSet, load_digits, resized
from shoestring_trainer.training.data.listing import Listing, check_classes
from shoestring_trainer.training.data.nvjpeg import nvjpeg
from shoestring_trainer.training.data.shards import split_shards
from shoestring_trainer.training.data.torchvision_sets import PREFIX, split_torchvision
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.optim.schedules import Plan
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.task import Task

Source = Callable[[int, bool], DataSet]
"""Gives the images with so many pixels a side (0: as the settings or the data say); whether rectangular ones too."""


def open_source(kind: str, task: Task, seed: int, settings: Settings, distributed: DistributedContext) -> Source:
    """The images of a recipe whose data are of this kind, listed but not decoded.

    Raises DataError, naming the file or folder and the remedy, if the task names none where one is needed, if they
    aren't laid out as its format says, or if the machine's disk can't take them; UserError if they are to be decoded by
    a GPU and there is none.
    """
    if kind == "digits":
        digits = load_digits(seed, settings)
        return lambda size, _: resized(digits, size)
    if not task.data_path:
        raise DataError(_WANTED[kind])
    if kind == "cifar10":
        if task.data_format == "imagefolder" and not is_image_folder(task.data_path):
            published = load_cifar10(task.data_path, settings)
            return lambda size, _: resized(published, size)
        if settings.verify_checksums:
            raise DataError(
                f"{task.data_path} holds image files, which can't be compared with CIFAR-10 as published "
                "(JPEG copies lose accuracy); give its binary or Python version as data.train, or set "
                "verify_checksums: false"
            )
    train, held_out = _split(task.data_format, task.data_path, seed, settings)
    for listing in (train, held_out):
        check_classes(listing)
    first = distributed.local_rank == 0
    if (ignored := sorted({*train.ignored, *held_out.ignored})) and first:
        what = "are no images by their names, or in no class, and are left out"
        sys.stdout.write(f"{len(ignored)} files {what}; first {ignored[0]}\n")
    about: dict[str, object] = {"data": task.data_format, "seed": seed}
    scratch, kept = task.scratch or task.folder, task.scratch is not None
    on_gpu = nvjpeg(distributed.device) if first and settings.decode_device == "gpu" else None
    copies = Copies(train, held_out, settings, about, scratch, kept, first, distributed.barrier, on_gpu)
    copies.check_room(phase.view for phase in Plan.of(settings, len(train)).phases)
    return copies.at


_WANTED = {
    "cifar10": "this recipe trains on CIFAR-10; give the folder of its binary or Python version as data.train",
    "imagefolder": "this recipe trains on your images; give the path of their folder as data.train",
}


def _split(form: str, place: Path, seed: int, settings: Settings) -> tuple[Listing, Listing]:
    """What to train on and what to hold out."""
    match form:
        case "imagefolder":
            return split_folder(place, seed, settings.val_fraction)
        case "webdataset":
            return split_shards(place, seed, settings.val_fraction, skip=settings.on_corrupt == "skip")
        case _ if form.startswith(PREFIX):
            return split_torchvision(form.removeprefix(PREFIX), place, seed, settings.val_fraction)
        case _:
            raise DataError(f"this trainer cannot read data of the format {form!r}; bring trainer and server together")
