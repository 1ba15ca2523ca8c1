# SPDX-License-Identifier: Apache-2.0
"""A dataset in shards: images are decoded as steps and evaluations take them, at any size, without a cache."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from shoestring_core.wording.units import counted
from torch import Tensor

from shoestring_trainer.data_sync.shard_requests import ShardRequests
from shoestring_trainer.training.data.augment import (
    RandomResizedCrop,
    are_flipped,
    crop_boxes,
    crop_draws,
    flips_come_first,
)
from shoestring_trainer.training.data.dataset import (
    ImageDataset,
    LabeledImages,
    channel_statistics,
    stratified_split,
)
from shoestring_trainer.training.data.decode_workers import CHUNK_SIZE, DecodeWorkers, ImageStream
from shoestring_trainer.training.data.decoded_cache import group_by_aspect_ratio
from shoestring_trainer.training.data.decoding import MAX_VALUE, ResizeSpec
from shoestring_trainer.training.data.shard_feed import ShardFeed
from shoestring_trainer.training.data.shard_list import SHUFFLED_TOGETHER, ShardIndex
from shoestring_trainer.training.data.shard_order import ShardOrder
from shoestring_trainer.training.data.shard_reader import Chunk, ShardReader
from shoestring_trainer.training.data.stalls import InputStalls
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule, Phase
from shoestring_trainer.training.randomness import Samples
from shoestring_trainer.training.settings import Settings

EVALUATED_AHEAD = 256
"""Validation images to decode ahead of what is evaluated."""
STATISTICS_IMAGES = 500
"""Training images that mean and standard deviation are taken of, at least; decoding them takes a core about a second.
"""


@dataclass(frozen=True)
class ShardedImages:
    """Images of one size that are decoded when they are asked for: in this process one by one, or ahead by workers.

    rows_N  their rows of the index
    flips   whether samples are flipped as they are decoded, by their draws
    """

    reader: ShardReader
    workers: DecodeWorkers
    rows_N: npt.NDArray[np.int32]
    spec: ResizeSpec
    flips: bool = False

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self), 3, self.spec.height, self.spec.width])

    def __getitem__(self, indices: Tensor | slice | int) -> Tensor:
        """Return images center-cropped, uint8 NCHW; one image as CHW."""
        places = indices.numpy() if isinstance(indices, Tensor) else indices
        chunk = self.reader.chunk(np.atleast_1d(self.rows_N[places]), self.spec)
        images_NCHW = self.reader.decode(chunk).permute(0, 3, 1, 2)
        return images_NCHW[0] if isinstance(indices, int) else images_NCHW

    def stream(self, parts: Iterable[tuple[ShardedImages, Tensor]]) -> ImageStream:
        """Begin to decode images of this and of others of the same workers, those at the given indices."""
        return self.workers.stream(
            chunk for images, indices_N in parts for chunk in images._chunks(images.rows_N[indices_N.numpy()])
        )

    def stream_samples(self, samples: Iterable[Samples], phase: Phase) -> ImageStream:
        """Begin to decode samples of a phase, each in the random crop that its draws give, if the phase has crops.

        They are flipped too, if a flip comes first of what else is done to them: here it takes a fifth of the time.
        """
        return self.workers.stream(chunk for batch in samples for chunk in self._sample_chunks(batch, phase))

    def _sample_chunks(self, samples: Samples, phase: Phase) -> Iterator[Chunk]:
        rows_N = self.rows_N[samples.ids_N.numpy()]
        changes: dict[str, npt.NDArray[Any]] = {}
        if phase.crop_scale:
            shapes_N = self.reader.samples[rows_N]
            ratios_N = torch.from_numpy((shapes_N["width"] / shapes_N["height"]).astype(np.float32))
            crop = RandomResizedCrop(self.spec.width, phase.crop_scale, ratios_N)
            sides_N2, centers_N2 = crop_boxes(crop_draws(samples.host_draws_NK), crop)
            changes["boxes_N4"] = torch.cat([(1 + centers_N2 - sides_N2) / 2, sides_N2], dim=1).numpy()
        if self.flips:
            changes["flips_N"] = are_flipped(samples.host_draws_NK).numpy()
        return self._chunks(rows_N, **changes)

    def _chunks(self, rows_N: npt.NDArray[np.int32], **changes: npt.NDArray[Any]) -> Iterator[Chunk]:
        for start in range(0, len(rows_N), CHUNK_SIZE):
            some = slice(start, start + CHUNK_SIZE)
            yield self.reader.chunk(rows_N[some], self.spec, **{name: each_N[some] for name, each_N in changes.items()})


class ShardedDataset:
    """The images of a folder of shards, on one rank.

    index       of the shards in the folder
    requests    asks for shards that are streamed; None: all of them are there
    processes   that decode; they are forked here
    is_on_gpu   whether the images go to a GPU
    """

    def __init__(
        self, folder: Path, index: ShardIndex, settings: Settings, *, world_size: int, processes: int, is_on_gpu: bool,
        requests: ShardRequests | None = None,
    ) -> None:  # fmt: skip
        self._settings, self._requests = settings, requests
        self._feed: ShardFeed | None = None
        self.reader = ShardReader(folder, index, requests)
        share = settings.batch_size // world_size
        self._train_workers = DecodeWorkers(self.reader, processes, ahead=2 * share, pin=is_on_gpu)
        self._val_workers = DecodeWorkers(self.reader, processes, ahead=EVALUATED_AHEAD, pin=is_on_gpu)
        atexit.register(self.close)

    def split(self, seed: int, *, log: bool, peers: DistributedContext, start_step: int = 0) -> None:
        """Choose what is trained and what is validated on: as the shards say, or else by `seed`.

        Of streamed shards the first one is there afterwards, on all ranks, and those that training needs from
        `start_step` on are asked for.
        """
        labels = self.reader.samples["label"]
        train_N, val_N = self.reader.rows_of("train"), self.reader.rows_of("val")
        self._val_rows_N = val_N
        if not len(val_N):
            train, val = stratified_split(
                torch.from_numpy(labels[train_N].astype(np.int64)), seed, self._settings.val_fraction
            )
            train_N, self._val_rows_N = train_N[train.numpy()], train_N[val.numpy()]
        self._train_rows_N, self._split = train_N, {"data": "shards", "plan": self.reader.index.plan, "seed": seed}
        classes = self.reader.index.classes
        for rows_N in (self._train_rows_N, self._val_rows_N):
            counts = np.bincount(labels[rows_N], minlength=len(classes))
            if not counts.all():
                raise DataError(
                    f'class "{classes[int(counts.argmin())]}" in {self.reader.folder} has too few images for a '
                    "train/val split; add some and prepare the shards again"
                )
        if self._requests:
            self._split["shuffled_together"] = SHUFFLED_TOGETHER
            schedule = HyperparamSchedule.from_settings(self._settings, len(self._train_rows_N))
            counts = np.bincount(self._shards(self._train_rows_N), minlength=len(self.reader.index.shards))
            order = ShardOrder(seed, torch.from_numpy(counts), schedule.samples_per_epoch)
            val_shards = np.unique(self._shards(self._val_rows_N)).tolist()
            samples = schedule.samples_before(schedule.total_steps)
            self._feed = ShardFeed(self._requests, order, val_shards, samples, peers)
            self._feed.begin(schedule.samples_before(start_step))
        if log:
            place = "in shards of their own" if len(val_N) else "held out of the same"
            sys.stdout.write(
                f"training on {counted(len(self._train_rows_N), 'image')} of {len(classes)} classes in "
                f"{counted(len(self.reader.index.shards), 'shard')} in {self.reader.folder}, validating on "
                f"{len(self._val_rows_N):,} {place}\n"
            )

    def load(self, size: int, rectangular: bool) -> ImageDataset:
        """Return the images with `size` pixels a side (0: as the settings say), as `DecodedCache.load`."""
        settings, size = self._settings, size or self._settings.image_size
        train = ShardedImages(
            self.reader, self._train_workers, self._train_rows_N, ResizeSpec(size, size), flips_come_first(settings)
        )
        val_size = settings.eval_image_size or size
        spec = ResizeSpec(val_size, val_size, zoom=settings.eval_resize_factor)
        val = ShardedImages(self.reader, self._val_workers, self._val_rows_N, spec)
        mean, std = channel_statistics(self._statistics_images(train), MAX_VALUE)
        split = {**self._split, "val": self.reader.names(self._val_rows_N)}
        label_type = np.int16 if len(self.reader.index.classes) <= np.iinfo(np.int16).max else np.int32
        return ImageDataset(
            LabeledImages(train, self._labels(train, label_type)), LabeledImages(val, self._labels(val, np.int64)),
            self.reader.index.classes, float(MAX_VALUE), mean, std, split, skipped=len(self.reader.index.skipped),
            val_batches=self._rectangular_batches(val) if rectangular else (), feed=self._feed,
        )  # fmt: skip

    def _statistics_images(self, train: ShardedImages) -> Tensor:
        """Return the images for mean and deviation: evenly spaced, or of streamed ones those that are there first.

        All processes decode them: one would delay the first step, and each phase.
        """
        indices_N = torch.arange(0, len(train), max(1, len(train) // STATISTICS_IMAGES))
        if self._requests:
            first = self._shards(self._train_rows_N)
            indices_N = torch.arange(min(STATISTICS_IMAGES, int((first == first[0]).sum())))
        return train.stream([(train, indices_N)]).take(len(indices_N), torch.device("cpu"), InputStalls())

    def close(self) -> None:
        """End the processes that decode, and take back what has been asked for."""
        atexit.unregister(self.close)
        if self._requests:
            self._requests.close()  # first: it ends the waits of those processes
        for workers in (self._train_workers, self._val_workers):
            workers.close()

    def _shards(self, rows_N: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
        """Return the shard of each of these rows."""
        shards_N: npt.NDArray[np.uint32] = self.reader.samples["shard"][rows_N]
        return shards_N

    def _labels(self, images: ShardedImages, kind: npt.DTypeLike) -> Tensor:
        return torch.from_numpy(self.reader.samples["label"][images.rows_N].astype(kind))

    def _rectangular_batches(self, val: ShardedImages) -> list[tuple[Tensor, ShardedImages]]:
        shapes_N = self.reader.samples[val.rows_N]
        groups = group_by_aspect_ratio(
            (shapes_N["width"] / shapes_N["height"]).tolist(), val.spec.height, val.spec.zoom
        )
        return [(torch.tensor(group), replace(val, rows_N=val.rows_N[group], spec=spec)) for group, spec in groups]
