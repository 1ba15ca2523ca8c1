# SPDX-License-Identifier: Apache-2.0
"""Decode images into one file of raw pixels that all ranks of a machine memory-map: it may exceed their memory."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from shoestring_core.wording.units import counted
from torch import Tensor

from shoestring_trainer.terminal import say
from shoestring_trainer.training.data.decoding import ResizeSpec, decode_image
from shoestring_trainer.training.data.image_files import REPAIR, ignored_pillow_warnings
from shoestring_trainer.training.data.image_index import ImageIndex
from shoestring_trainer.training.data.nvjpeg import JpegDecoder, decode_jpegs
from shoestring_trainer.training.errors import DataError

DECODE_CHUNK_SIZE = 64
"""Images that a thread decodes at a time."""
GIB = 1 << 30
NAMED_BROKEN = 5
"""Unreadable images that an error names; it counts the others."""
LOOK_ON = 10_000
"""Images that are decoded after the first unreadable one, to name others as well: not the hours of a large set."""
_REMEDY = f"{REPAIR}, or leave it out with the parameter on_corrupt=skip"


@dataclass(frozen=True)
class MappedImages:
    """The pixels of one file, image after image; the indices of the readable images, and their width / height."""

    pixels: Tensor
    readable: list[int]
    aspect_ratios: list[float]


def decode_to_file(
    file: Path, images: ImageIndex, specs: Sequence[ResizeSpec], gpu_decoder: JpegDecoder | None, *, skip: bool,
    give_up: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Write the decoded images as raw pixels; then, beside them, which images are readable and their aspect ratios.

    skip     leave out unreadable images; else they raise DataError, which names the first of them
    give_up  whether to return although some are missing; then nothing is written beside them
    """
    ends = list(itertools.accumulate(spec.bytes for spec in specs))
    _allocate(file, ends[-1], images)
    pixels = torch.from_file(str(file), shared=True, size=ends[-1], dtype=torch.uint8)
    remedy = REPAIR if skip else _REMEDY

    def write_image(index: int, decoded: tuple[Tensor, float] | None) -> DataError | float:
        try:
            image_CHW, aspect_ratio = decoded or decode_image(
                partial(images.open, index), images.path(index), specs[index], remedy
            )
        except DataError as error:
            return error
        pixels[ends[index] - image_CHW.numel() : ends[index]] = image_CHW.flatten()
        return aspect_ratio

    def decode_chunk(start: int) -> list[DataError | float]:
        indices = range(start, min(start + chunk_size, len(images)))
        decoded: list[tuple[Tensor, float] | None] = [None] * len(indices)
        if gpu_decoder:
            openers = [partial(images.open, index) for index in indices]
            decoded = decode_jpegs(openers, [specs[index] for index in indices], gpu_decoder)
        pillow_counts.append(decoded.count(None))
        return list(map(write_image, indices, decoded))

    pillow_counts: list[int] = []
    threads = max(1, torch.get_num_threads())
    chunk_size = max(1, min(DECODE_CHUNK_SIZE, len(images) // (4 * threads)))
    aspect_ratios: dict[int, float] = {}
    broken: dict[int, DataError] = {}
    with ignored_pillow_warnings(), ThreadPoolExecutor(threads) as pool:  # Pillow releases the GIL while it decodes
        chunks = pool.map(decode_chunk, range(0, len(images), chunk_size))
        for index, result in enumerate(itertools.chain.from_iterable(chunks)):
            looked_enough = bool(broken) and index - min(broken) > LOOK_ON
            if index % chunk_size == 0 and (looked_enough or give_up()):
                pool.shutdown(cancel_futures=True)
                _require_none(broken, images, index)
                return
            if isinstance(result, float):
                aspect_ratios[index] = result
            elif not skip:
                broken[index] = result
            else:
                say(f"skipped: {result}")
    _require_none(broken, images, len(images))
    if gpu_decoder:
        nvjpeg_count = len(images) - sum(pillow_counts)
        sys.stdout.write(f"nvJPEG decoded {nvjpeg_count} of {counted(len(images), 'image')}, Pillow the rest\n")
        torch.cuda.empty_cache()  # return the memory that decoding took
    if len(aspect_ratios) < len(images):
        _close_gaps(pixels, [(ends[index] - specs[index].bytes, ends[index]) for index in aspect_ratios])
    draft = file.with_name(f"{file.name}.tmp")
    draft.write_text(json.dumps({"readable": list(aspect_ratios), "aspect_ratios": list(aspect_ratios.values())}))
    draft.replace(metadata_path(file))


def map_file(file: Path, specs: Sequence[ResizeSpec]) -> MappedImages:
    """Memory-map a file that `decode_to_file` has written with these specs."""
    metadata = json.loads(metadata_path(file).read_text())
    size = sum(specs[index].bytes for index in metadata["readable"])
    return MappedImages(torch.from_file(str(file), shared=True, size=size, dtype=torch.uint8), **metadata)


def metadata_path(file: Path) -> Path:
    """Return the path of a file's metadata. It is written last: without it the file is incomplete."""
    return file.with_name(file.name + ".json")


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that holds `folder`."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _allocate(file: Path, size: int, images: ImageIndex) -> None:
    """Allocate the disk space now: writing to a mapped file on a full disk ends the process with SIGBUS."""
    try:
        with file.open("wb") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise DataError(
            f"the decoded images of {images.root} need {size / GIB:,.1f} GiB under {file.parent}, which has "
            f"{free_bytes(file.parent) / GIB:,.1f} GiB left ({error.strerror}); lower image_size, use fewer images, or "
            "rent machines with a larger disk"
        ) from error


def _require_none(broken: dict[int, DataError], images: ImageIndex, seen: int) -> None:
    """Raise the first of the errors, by the indices of their images, naming some of the other images."""
    if not broken:
        return
    (_, first), *others = broken.items()
    if not others:
        raise first
    named = ", ".join(str(images.path(index)) for index, _ in others[: NAMED_BROKEN - 1])
    unnamed = len(others) - (NAMED_BROKEN - 1)
    more = f" and {unnamed} more" if unnamed > 0 else ""
    raise DataError(f"{first}. {len(broken)} of {counted(seen, 'image')} are unreadable, also {named}{more}") from first


def _close_gaps(pixels: Tensor, spans: Iterable[tuple[int, int]]) -> None:
    """Move the spans to the front, one after another, in place: a copy might not fit into memory."""
    at = 0
    for start, end in spans:
        if start != at:
            pixels[at : at + end - start] = pixels[start:end].clone()
        at += end - start
