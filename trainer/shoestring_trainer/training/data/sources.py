# SPDX-License-Identifier: Apache-2.0
"""Open a recipe's dataset, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from shoestring_trainer.data_sync.shard_requests import ShardRequests
from shoestring_trainer.terminal import say
from shoestring_trainer.training.checkpoint.files import read_step
from shoestring_trainer.training.data.cifar10 import load_cifar10
from shoestring_trainer.training.data.dataset import ImageDataset, load_digits, resize_dataset
from shoestring_trainer.training.data.decoded_cache import DecodedCache
from shoestring_trainer.training.data.file_list import list_files, read_file_list
from shoestring_trainer.training.data.image_folder import index_image_folder, is_split_image_folder
from shoestring_trainer.training.data.image_index import (
    ImageIndex,
    describe_ignored,
    describe_splits,
    validate_classes,
)
from shoestring_trainer.training.data.nvjpeg import nvjpeg_decoder
from shoestring_trainer.training.data.shard_list import has_shard_index, read_shard_index
from shoestring_trainer.training.data.sharded_dataset import ShardedDataset
from shoestring_trainer.training.data.torchvision_datasets import PREFIX, index_torchvision_dataset
from shoestring_trainer.training.data.webdataset import index_webdataset
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.task import LocalTask

DatasetSource = Callable[[int, bool], ImageDataset]
"""Return the dataset with this many pixels a side (0: as the settings or the data say), and whether validation images
also come at their own aspect ratios.
"""


def open_shards(
    kind: str, task: LocalTask, settings: Settings, place: DistributedContext
) -> ShardedDataset | None:  # fmt: skip
    """Open a task's shards, if its data are a folder that `prepare_shards` has made, and fork what decodes them.

    To be called before the process group is joined. Raises DataError, naming the file and the remedy.
    """
    is_folder = task.data_format in ("imagefolder", "webdataset")
    if kind != "imagefolder" or not task.data_path or not is_folder or not has_shard_index(task.data_path):
        return None
    index = read_shard_index(task.data_path)
    requests = None
    if task.data and task.data.stream and task.data.requests:
        requests = ShardRequests(
            Path(task.data.requests), task.data_path, [shard.name for shard in index.shards], task.data.source or "",
            log=say,
        )  # fmt: skip
    return ShardedDataset(
        task.data_path, index, settings, world_size=place.world_size, processes=torch.get_num_threads(),
        is_on_gpu=place.device.type == "cuda", requests=requests,
    )  # fmt: skip


def open_dataset(
    kind: str, task: LocalTask, seed: int, settings: Settings, distributed: DistributedContext,
    shards: ShardedDataset | None = None,
) -> DatasetSource:  # fmt: skip
    """Index a recipe's dataset of this kind, without decoding images; `shards`: what `open_shards` returns for it.

    Raises DataError, naming the file or folder and the remedy, if the task names no data where the recipe needs some,
    if the layout doesn't match the format, or if the machine's disk is too small; UserError if images are to be decoded
    on a GPU and there is none.
    """
    if kind == "digits":
        digits = load_digits(seed, settings)
        return lambda size, _: resize_dataset(digits, size)
    if not task.data_path:
        raise DataError(_MISSING_DATA[kind])
    if kind == "cifar10":
        if task.data_format == "imagefolder" and not is_split_image_folder(task.data_path):
            cifar10 = load_cifar10(task.data_path, settings)
            return lambda size, _: resize_dataset(cifar10, size)
        if settings.verify_checksums:
            raise DataError(
                f"{task.data_path} holds image files, which can't be verified against CIFAR-10 as published (JPEG "
                "copies lower the accuracy); give its binary or Python version as data.train, or set "
                "verify_checksums: false"
            )
    if shards:
        shards.split(
            seed, log=distributed.local_rank == 0, peers=distributed,
            start_step=read_step(task.resume.manifest) if task.resume else 0,
        )  # fmt: skip
        return shards.load
    return _open_images(task, task.data_path, seed, settings, distributed)


def _open_images(
    task: LocalTask, path: Path, seed: int, settings: Settings, distributed: DistributedContext
) -> DatasetSource:
    """Index the images at `path`, or those of them that a resumed run trained on before."""
    files = read_file_list(task.resume) if task.resume and task.data_format == "imagefolder" else None
    train, val = files.open(path) if files else _index(task.data_format, path, seed, settings)
    for images in (train, val):
        validate_classes(images)
    is_local_rank_0 = distributed.local_rank == 0
    if is_local_rank_0:
        say(describe_splits(train, val))
        if files:
            files.report_additions(path)
    if files is None and distributed.rank == 0 and task.data_format == "imagefolder":  # which writes the checkpoints
        files = list_files(path, train, val)
    if is_local_rank_0 and (ignored := describe_ignored(train, val)):
        say(ignored)
    cache = DecodedCache(
        train, val, settings,
        split_info={"data": task.data_format, "seed": seed},
        scratch=task.scratch or task.folder,
        keep=task.scratch is not None,
        is_local_rank_0=is_local_rank_0,
        peers=distributed,
        files=files.packed() if files else None,
        gpu_decoder=nvjpeg_decoder(distributed.device) if is_local_rank_0 and settings.decode_device == "gpu" else None,
    )  # fmt: skip
    phases = HyperparamSchedule.from_settings(settings, len(train)).phases
    cache.check_disk_space(phase.image_format for phase in phases)
    return cache.load


_MISSING_DATA = {
    "cifar10": "this recipe trains on CIFAR-10; give the folder of its binary or Python version as data.train",
    "imagefolder": "this recipe trains on your images; give the path of their folder as data.train",
}


def _index(data_format: str, path: Path, seed: int, settings: Settings) -> tuple[ImageIndex, ImageIndex]:
    """Return the (train, val) indices of a dataset of this format."""
    match data_format:
        case "imagefolder":
            return index_image_folder(path, seed, settings.val_fraction)
        case "webdataset":
            return index_webdataset(path, seed, settings.val_fraction, skip=settings.on_corrupt == "skip")
        case _ if data_format.startswith(PREFIX):
            return index_torchvision_dataset(data_format.removeprefix(PREFIX), path, seed, settings.val_fraction)
        case _:
            raise DataError(
                f"this trainer doesn't support the data format {data_format!r}; use the same version of trainer and "
                "server"
            )
