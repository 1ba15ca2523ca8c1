# SPDX-License-Identifier: Apache-2.0
"""Cache of decoded images on a machine's disk: every image is decoded once per machine and size."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from shoestring_core.wording.units import counted
from torch import Tensor

from shoestring_trainer.training.data.dataset import ImageDataset, LabeledImages, build_dataset
from shoestring_trainer.training.data.decoding import MAX_VALUE, ResizeSpec
from shoestring_trainer.training.data.image_index import ImageIndex, validate_classes
from shoestring_trainer.training.data.mapped_images import (
    GIB,
    MappedImages,
    decode_to_file,
    free_bytes,
    map_file,
    metadata_path,
)
from shoestring_trainer.training.data.nvjpeg import JpegDecoder
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.settings import Settings

RANDOM_CROP_MARGIN = 1.25
"""With random resized crops, images are cached this much larger than the crop's side: as imagenet18's 160 for 128."""
RECTANGULAR_BATCH_SIZE = 128
"""Validation images of similar aspect ratio that are evaluated as one batch."""


@dataclass(frozen=True)
class DecodedCache:
    """The images of a training and a validation index, decoded at any size.

    With random resized crops, training images are stretched to squares somewhat larger than a crop; else they are
    center-cropped.

    split_info       how the images were split, for split.json
    scratch          folder for the decoded images, shared by all ranks of this machine
    keep             leave them there, for a later generation on this machine to reuse
    is_local_rank_0  this rank decodes; the others map what it wrote
    peers            the ranks, which wait for each other
    gpu_decoder      decodes ordinary JPEGs; None: Pillow decodes everything
    files            the packed list of the images' files; None: they have none
    """

    train: ImageIndex
    val: ImageIndex
    settings: Settings
    split_info: dict[str, object]
    scratch: Path
    keep: bool
    is_local_rank_0: bool
    peers: DistributedContext
    gpu_decoder: JpegDecoder | None = None
    files: bytes | None = None
    _waits: Iterator[int] = field(default_factory=itertools.count)

    def load(self, size: int, rectangular: bool) -> ImageDataset:
        """Return the images with `size` pixels a side (0: as the settings say). They occupy disk space until released.

        rectangular  also return the validation images at their aspect ratios, in batches of similar ones
        raises       DataError that names the image and the remedy; StopOrdered if a rank is asked to stop meanwhile
        """
        train_spec, val_spec = self._specs(size)
        folder = self.scratch / f"images-{self._digest(train_spec, val_spec)}"
        if self.is_local_rank_0:
            self._make_folder(folder, self._needed_bytes(size, rectangular))
        try:
            train, _, _ = self._square_images(folder / "train", self.train, train_spec)
            val, val_index, aspect_ratios = self._square_images(folder / "val", self.val, val_spec)
            batches = (
                self._rectangular_batches(folder / "rectangular", val_index, aspect_ratios, val_spec)
                if rectangular
                else []
            )
        finally:
            if self.is_local_rank_0 and not self.keep:  # mapped files stay readable, and free their space when unmapped
                shutil.rmtree(folder)
        skipped = self.train.skipped + self.val.skipped
        skipped += len(self.train) + len(self.val) - len(train) - len(val)
        if skipped and self.is_local_rank_0:
            sys.stdout.write(f"skipped {counted(skipped, 'invalid sample')}\n")
        split = {**self.split_info, "val": val_index.names}
        dataset = build_dataset(
            train, val, self.train.classes, max_value=float(MAX_VALUE), split=split, skipped=skipped
        )
        return replace(dataset, val_batches=batches, files=self.files)

    def check_disk_space(self, image_formats: Iterable[tuple[int, bool]]) -> None:
        """Raise DataError, before anything is decoded, if the disk has too little space for one of the formats."""
        if not self.is_local_rank_0:
            return
        needed, size = max((self._needed_bytes(*image_format), image_format[0]) for image_format in image_formats)
        size, count = size or self.settings.image_size, len(self.train) + len(self.val)
        cached = sum(file.stat().st_size for folder in self._cached_folders() for file in folder.iterdir())
        available = free_bytes(self.scratch) + cached
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        what = (
            f"{counted(count, 'image')} of {self.train.root} take {needed / GIB:,.1f} GiB once decoded for size {size}"
        )
        if needed > available:
            raise DataError(
                f"{what}, and the disk under {self.scratch} has {available / GIB:,.1f} GiB left; lower image_size, use "
                "fewer images, or rent machines with a larger disk"
            )
        if needed > memory:
            sys.stdout.write(
                f"{what}, more than this machine's memory of {memory / GIB:,.1f} GiB: each epoch will read them from "
                "the disk again\n"
            )

    def _specs(self, size: int) -> tuple[ResizeSpec, ResizeSpec]:
        """Return the specs of training and of validation images."""
        settings, size = self.settings, size or self.settings.image_size
        stretch = bool(settings.crop_scale or settings.crop_scale_schedule)
        train_size, val_size = round(RANDOM_CROP_MARGIN * size) if stretch else size, settings.eval_image_size or size
        return (
            ResizeSpec(train_size, train_size, stretch=stretch),
            ResizeSpec(val_size, val_size, zoom=settings.eval_resize_factor),
        )

    def _needed_bytes(self, size: int, rectangular: bool) -> int:
        train_spec, val_spec = self._specs(size)  # rectangular images take somewhat more than their squares
        return len(self.train) * train_spec.bytes + len(self.val) * val_spec.bytes * (2 if rectangular else 1)

    def _make_folder(self, folder: Path, needed: int) -> None:
        """Create the folder, and evict other sizes unless they are to be kept and there is room for both."""
        for other in set(self._cached_folders()) - {folder}:
            if not self.keep or free_bytes(self.scratch) < 2 * needed:
                shutil.rmtree(other)
        folder.mkdir(exist_ok=True)

    def _cached_folders(self) -> Iterator[Path]:
        return self.scratch.glob("images-*")

    def _digest(self, *specs: ResizeSpec) -> str:
        """Return a cache key for these images at these sizes."""
        settings = self.settings.on_corrupt, self.settings.decode_device
        content = [self.train.root, settings, specs, self.train.names, self.val.names]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def _square_images(
        self, file: Path, images: ImageIndex, spec: ResizeSpec
    ) -> tuple[LabeledImages, ImageIndex, list[float]]:
        mapped = self._decode(file, images, [spec] * len(images))
        readable = images if len(mapped.readable) == len(images) else images.subset(mapped.readable)
        validate_classes(readable)
        images_NCHW = mapped.pixels.view(len(readable), 3, spec.height, spec.width)
        aspect_ratios_N = torch.tensor(mapped.aspect_ratios) if spec.stretch else None
        labeled = LabeledImages(images_NCHW, torch.tensor(readable.labels), aspect_ratios_N)
        return labeled, readable, mapped.aspect_ratios

    def _rectangular_batches(
        self, file: Path, images: ImageIndex, aspect_ratios: Sequence[float], spec: ResizeSpec
    ) -> list[tuple[Tensor, Tensor]]:
        groups = group_by_aspect_ratio(aspect_ratios, spec.height, spec.zoom)
        order, specs = zip(*((index, spec) for group, spec in groups for index in group), strict=True)
        pixels = self._decode(file, images.subset(order), specs).pixels
        parts = pixels.split([len(group) * spec.bytes for group, spec in groups])
        return [
            (torch.tensor(group), part.view(len(group), 3, spec.height, spec.width))
            for (group, spec), part in zip(groups, parts, strict=True)
        ]

    def _decode(self, file: Path, images: ImageIndex, specs: Sequence[ResizeSpec]) -> MappedImages:
        # not in a collective, which would run into the backend's time limit: decoding may take an hour
        decoded = self._new_words(f"{counted(len(images), f'{file.name} image')} to be decoded")
        if self.is_local_rank_0 and not metadata_path(file).exists():
            decode_to_file(
                file, images, specs, self.gpu_decoder, skip=self.settings.on_corrupt == "skip",
                give_up=partial(self.peers.is_stopping, decoded),
            )  # fmt: skip
        self.peers.wait_for_peers(decoded)
        mapped = map_file(file, specs)
        # before rank 0 removes the files
        self.peers.wait_for_peers(self._new_words(f"the file of decoded images, {file.name}, to be opened"))
        return mapped

    def _new_words(self, what: str) -> str:
        return f"{what}, wait {next(self._waits)}"


def group_by_aspect_ratio(aspect_ratios: Sequence[float], size: int, zoom: float) -> list[tuple[list[int], ResizeSpec]]:
    """Group images into batches of similar aspect ratio; return each batch's indices and the size of all its images.

    Images are sorted by width / height and cut into batches. A batch's shape follows its mean ratio: `size` by `size`
    times the mean, or by its inverse for upright images, rounded down to a multiple of 8. Source: imagenet18's
    rectangular validation.
    """
    order = sorted(range(len(aspect_ratios)), key=lambda index: (aspect_ratios[index], index))
    groups = []
    for start in range(0, len(order), RECTANGULAR_BATCH_SIZE):
        group = order[start : start + RECTANGULAR_BATCH_SIZE]
        mean = sum(aspect_ratios[index] for index in group) / len(group)
        longer = max(size, int(size * max(mean, 1 / mean)) // 8 * 8)
        spec = ResizeSpec(longer if mean < 1 else size, size if mean < 1 else longer, zoom=zoom)
        groups.append((group, spec))
    return groups
