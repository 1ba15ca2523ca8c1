# SPDX-License-Identifier: Apache-2.0
"""Listed images, decoded once per machine and size into a file that its ranks map: it may exceed their memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from shoestring_trainer.training.data.decoding import WHITE, Frame, decode
from shoestring_trainer.training.data.images import DataSet, LabeledImages, describe
from shoestring_trainer.training.data.listing import Listing, check_classes
from shoestring_trainer.training.data.nvjpeg import Decoder, decode_jpegs
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.settings import Settings

SQUEEZED = 1.25
"""Where random crops are cut out, images are kept so much larger than a crop's side: as imagenet18's 160 for 128."""
RECTANGULAR_BATCH_SIZE = 128
"""Held-out images of like shape that are shown together."""
AT_ONCE = 64
"""Images that a thread decodes before it takes up others."""
GIB = 1 << 30


@dataclass(frozen=True)
class Decoded:
    """Images of one file, end to end; numbers of those that could be read, and their width / height."""

    bytes: Tensor
    kept: list[int]
    aspects: list[float]


@dataclass(frozen=True)
class Copies:
    """The images of two listings, at any size.

    Where the settings crop at random, training images are squeezed whole into squares somewhat larger than a crop;
    else their centres are kept.

    about             how they were split, for split.json
    scratch           folder for the decoded images, seen by every rank of this machine
    kept              they stay there, and a run that goes on after this one finds them
    first_on_machine  this rank decodes; the others map what it wrote
    meet              returns when every rank has called it
    on_gpu            decodes plain JPEGs; None: Pillow decodes everything
    """

    train: Listing
    held_out: Listing
    settings: Settings
    about: dict[str, object]
    scratch: Path
    kept: bool
    first_on_machine: bool
    meet: Callable[[], None]
    on_gpu: Decoder | None = None

    def at(self, size: int, rectangular: bool) -> DataSet:
        """The images with `size` pixels a side (0: as the settings say). They fill the disk until they are let go.

        rectangular  the held-out images also come in their own shapes, in batches of like ones
        raises       DataError that names the image and the remedy
        """
        framed, shown = self._frames(size)
        place = self.scratch / f"images-{self._digest(framed, shown)}"
        if self.first_on_machine:
            self._make_room(place, self._bytes(size, rectangular))
        try:
            train, _, _ = self._squares(place / "train", self.train, framed)
            held_out, readable, aspects = self._squares(place / "held-out", self.held_out, shown)
            batches = self._rectangles(place / "rectangles", readable, aspects, shown) if rectangular else []
        finally:
            if self.first_on_machine and not self.kept:  # what is mapped lives on, and gives the disk back at its end
                shutil.rmtree(place)
        skipped = self.train.skipped + self.held_out.skipped
        skipped += len(self.train) + len(self.held_out) - len(train) - len(held_out)
        if skipped and self.first_on_machine:
            sys.stdout.write(f"{skipped} images could not be read and are left out\n")
        split = {**self.about, "held_out": readable.names}
        data = describe(train, held_out, self.train.classes, white=float(WHITE), split=split, skipped=skipped)
        return replace(data, batches=batches)

    def check_room(self, views: Iterable[tuple[int, bool]]) -> None:
        """Raises DataError, before anything is decoded, if the disk can't take the images of one of the views."""
        if not self.first_on_machine:
            return
        needed, size = max((self._bytes(*view), view[0]) for view in views)
        size, count = size or self.settings.image_size, len(self.train) + len(self.held_out)
        free = _free_bytes(self.scratch) + sum(file.stat().st_size for at in self._stored() for file in at.iterdir())
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        what = f"{count:,} images of {self.train.place} take {needed / GIB:,.1f} GiB once decoded for size {size}"
        if needed > free:
            raise DataError(
                f"{what}, and the disk under {self.scratch} has {free / GIB:,.1f} GiB left; lower size, use fewer "
                "images, or rent machines with a larger disk"
            )
        if needed > memory:
            sys.stdout.write(
                f"{what}, more than this machine's memory of {memory / GIB:,.1f} GiB: each epoch will read them from "
                "the disk again\n"
            )

    def _frames(self, size: int) -> tuple[Frame, Frame]:
        """Of training images, and of held-out ones."""
        settings, size = self.settings, size or self.settings.image_size
        squeezed = bool(settings.crop_scale or settings.crop_scale_schedule)
        side, shown = round(SQUEEZED * size) if squeezed else size, settings.eval_image_size or size
        return Frame(side, side, squeezed=squeezed), Frame(shown, shown, zoom=settings.eval_resize_factor)

    def _bytes(self, size: int, rectangular: bool) -> int:
        framed, shown = self._frames(size)  # rectangles are somewhat larger than the squares they stand beside
        return len(self.train) * framed.bytes + len(self.held_out) * shown.bytes * (2 if rectangular else 1)

    def _make_room(self, place: Path, needed: int) -> None:
        """Have a folder for copies. Those of other sizes stay for a run that goes on, while there is room for both."""
        for other in set(self._stored()) - {place}:
            if not self.kept or _free_bytes(self.scratch) < 2 * needed:
                shutil.rmtree(other)
        place.mkdir(exist_ok=True)

    def _stored(self) -> Iterator[Path]:
        return self.scratch.glob("images-*")

    def _digest(self, *frames: Frame) -> str:
        """Names these images in these frames: others must not be taken for them."""
        settings = self.settings.on_corrupt, self.settings.decode_device
        told = [self.train.place, settings, frames, self.train.names, self.held_out.names]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def _squares(self, store: Path, listing: Listing, frame: Frame) -> tuple[LabeledImages, Listing, list[float]]:
        found = self._decoded(store, listing, [frame] * len(listing))
        readable = listing if len(found.kept) == len(listing) else listing.only(found.kept)
        check_classes(readable)
        images_NCHW = found.bytes.view(len(readable), 3, frame.height, frame.width)
        aspects_N = torch.tensor(found.aspects) if frame.squeezed else None
        return LabeledImages(images_NCHW, torch.tensor(readable.labels), aspects_N), readable, found.aspects

    def _rectangles(
        self, store: Path, listing: Listing, aspects: Sequence[float], shown: Frame
    ) -> list[tuple[Tensor, Tensor]]:
        groups = like_shapes(aspects, shown.height, shown.zoom)
        order, frames = zip(*((number, frame) for group, frame in groups for number in group), strict=True)
        flat = self._decoded(store, listing.only(order), frames).bytes
        parts = flat.split([len(group) * frame.bytes for group, frame in groups])
        return [
            (torch.tensor(group), part.view(len(group), 3, frame.height, frame.width))
            for (group, frame), part in zip(groups, parts, strict=True)
        ]

    def _decoded(self, store: Path, listing: Listing, frames: Sequence[Frame]) -> Decoded:
        if self.first_on_machine and not _facts_path(store).exists():
            _write(store, listing, frames, self.on_gpu, skip=self.settings.on_corrupt == "skip")
        self.meet()
        found = _map(store, frames)
        self.meet()  # before anybody removes the names
        return found


def like_shapes(aspects: Sequence[float], size: int, zoom: float) -> list[tuple[list[int], Frame]]:
    """Images in batches of like shape, each batch with the shape that all of it is shown in.

    Sorted by width / height and cut into batches; a batch's shape is that of the mean: `size` by `size` times the mean,
    or by its inverse for upright ones, rounded down to a multiple of 8. Source: imagenet18's rectangular validation.
    """
    order = sorted(range(len(aspects)), key=lambda index: (aspects[index], index))
    groups = []
    for start in range(0, len(order), RECTANGULAR_BATCH_SIZE):
        group = order[start : start + RECTANGULAR_BATCH_SIZE]
        mean = sum(aspects[index] for index in group) / len(group)
        longer = max(size, int(size * max(mean, 1 / mean)) // 8 * 8)
        groups.append((group, Frame(longer if mean < 1 else size, size if mean < 1 else longer, zoom=zoom)))
    return groups


def _write(store: Path, listing: Listing, frames: Sequence[Frame], on_gpu: Decoder | None, *, skip: bool) -> None:
    """Write the decoded images as raw bytes; then, beside them, which could be read and their shapes."""
    ends = list(itertools.accumulate(frame.bytes for frame in frames))
    _reserve(store, ends[-1], listing)
    images = torch.from_file(str(store), shared=True, size=ends[-1], dtype=torch.uint8)

    def read(number: int, framed: tuple[Tensor, float] | None) -> DataError | float:
        try:
            image_CHW, aspect = framed or decode(partial(listing.open, number), listing.path(number), frames[number])
        except DataError as error:
            return error
        images[ends[number] - image_CHW.numel() : ends[number]] = image_CHW.flatten()
        return aspect

    def read_some(start: int) -> list[DataError | float]:
        numbers = range(start, min(start + together, len(listing)))
        framed: list[tuple[Tensor, float] | None] = [None] * len(numbers)
        if on_gpu:
            openers = [partial(listing.open, number) for number in numbers]
            framed = decode_jpegs(openers, [frames[number] for number in numbers], on_gpu)
        by_pillow.append(framed.count(None))
        return list(map(read, numbers, framed))

    by_pillow: list[int] = []
    threads = max(1, torch.get_num_threads())
    together = max(1, min(AT_ONCE, len(listing) // (4 * threads)))
    aspects: dict[int, float] = {}
    with ThreadPoolExecutor(threads) as pool:  # PIL decodes outside the interpreter's lock
        some = pool.map(read_some, range(0, len(listing), together))
        for number, found in enumerate(itertools.chain.from_iterable(some)):
            if isinstance(found, float):
                aspects[number] = found
            elif not skip:
                pool.shutdown(cancel_futures=True)
                raise found
            else:
                sys.stdout.write(f"left out: {found}\n")
    if on_gpu:
        by_nvjpeg = len(listing) - sum(by_pillow)
        sys.stdout.write(f"nvJPEG decoded {by_nvjpeg} of {len(listing)} images, Pillow the rest\n")
        torch.cuda.empty_cache()  # what decoding took is there for the images and for training
    if len(aspects) < len(listing):
        _close_gaps(images, [(ends[number] - frames[number].bytes, ends[number]) for number in aspects])
    facts = store.with_name(f"{store.name}.tmp")
    facts.write_text(json.dumps({"kept": list(aspects), "aspects": list(aspects.values())}))
    facts.replace(_facts_path(store))


def _reserve(store: Path, size: int, listing: Listing) -> None:
    """Take the room on the disk now: a mapped file that finds none as it is written ends the process by a signal."""
    try:
        with store.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        store.unlink(missing_ok=True)
        raise DataError(
            f"the decoded images of {listing.place} need {size / GIB:,.1f} GiB under {store.parent}, which has "
            f"{_free_bytes(store.parent) / GIB:,.1f} GiB left ({error.strerror}); lower size, use fewer images, or "
            "rent machines with a larger disk"
        ) from error


def _close_gaps(images: Tensor, spans: Iterable[tuple[int, int]]) -> None:
    """Move what lies in the spans to the front, in place: a copy might not fit into memory."""
    at = 0
    for start, end in spans:
        if start != at:
            images[at : at + end - start] = images[start:end].clone()
        at += end - start


def _map(store: Path, frames: Sequence[Frame]) -> Decoded:
    facts = json.loads(_facts_path(store).read_text())
    size = sum(frames[number].bytes for number in facts["kept"])
    return Decoded(torch.from_file(str(store), shared=True, size=size, dtype=torch.uint8), **facts)


def _facts_path(store: Path) -> Path:
    return store.with_name(store.name + ".json")


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize
