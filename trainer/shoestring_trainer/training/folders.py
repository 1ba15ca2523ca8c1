# SPDX-License-Identifier: Apache-2.0
"""Any folder of pictures, one sub-folder per class, decoded once per machine into memory that its ranks share."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shoestring_trainer.training.faults import DataError
from shoestring_trainer.training.pictures import DataSet, Pictures, describe, split_by_class
from shoestring_trainer.training.settings import Settings

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
HELD_OUT_NAMES = ("val", "valid", "validation", "test")
WHITE = 255
LARGEST_PIXELS = 100_000_000
"""A picture that claims more pixels is taken for a decompression bomb."""


SQUEEZED = 1.25
"""Where random crops are cut out, pictures are kept so much larger than a crop's side: as imagenet18's 160 for 128."""
LIKE_PICTURES = 128
"""Held-out pictures of like shape that are shown together."""


@dataclass(frozen=True)
class Frame:
    """What a picture is decoded to: scaled so that it covers `zoom` times the frame, and the centre cut out.

    squeezed  instead, the whole picture is scaled to the frame, whatever its shape
    """

    height: int
    width: int
    zoom: float = 1.0
    squeezed: bool = False


@dataclass(frozen=True)
class Decoded:
    """Pictures of one file, end to end; indices of those that could be read, and their width / height."""

    bytes: Tensor
    kept: list[int]
    aspects: list[float]


@dataclass(frozen=True)
class Listing:
    """Files and their classes, in an order that depends on names alone. `files` are relative to `folder`.

    ignored  files among them that are no pictures by their names
    """

    folder: Path
    classes: list[str]
    files: list[str]
    labels: list[int]
    ignored: list[Path]

    def only(self, indices: Sequence[int]) -> Listing:
        """The part of the listing at `indices`."""
        return Listing(
            self.folder,
            self.classes,
            [self.files[index] for index in indices],
            [self.labels[index] for index in indices],
            self.ignored,
        )


def load_folder(
    folder: Path, seed: int, settings: Settings, *, scratch: Path, first_on_machine: bool, meet: Callable[[], None],
    rectangular: bool = False,
) -> DataSet:  # fmt: skip
    """Pictures below `folder`: train/CLASS/… beside val/CLASS/… (or test), or CLASS/… with a share held out.

    Where the settings crop at random, training pictures are squeezed whole into squares somewhat larger than a crop;
    else their centres are kept.

    scratch           folder for the decoded pictures, seen by every rank of this machine
    first_on_machine  this rank decodes; the others map what it wrote
    meet              returns when every rank has called it
    rectangular       the held-out pictures also come in their own shapes, in batches of like ones
    raises            DataError that names the folder or file and the remedy
    """
    listings = split_folder(folder, seed, settings.holdout)
    size, shown = settings.size, settings.eval_size or settings.size
    squeezed = bool(settings.crop_scale or settings.crop_schedule)
    side = round(SQUEEZED * size) if squeezed else size

    def decoded(name: str, listing: Listing, frames: Sequence[Frame]) -> Decoded:
        store = scratch / f"pictures-{name}"
        if first_on_machine:
            _decode_to(store, listing, frames, skip=settings.on_corrupt == "skip")
        meet()
        found = _map(store, frames)
        meet()
        if first_on_machine:  # the mapping lives on; the names would only fill the disk
            store.unlink()
            _kept_path(store).unlink()
        return found

    def squares(name: str, listing: Listing, frame: Frame) -> tuple[Pictures, Listing]:
        found = decoded(name, listing, [frame] * len(listing.files))
        readable = listing if len(found.kept) == len(listing.files) else listing.only(found.kept)
        pictures_NCHW = found.bytes.view(len(listing.files), 3, frame.height, frame.width)
        aspects_N = torch.tensor(found.aspects) if frame.squeezed else None
        if readable is not listing:
            pictures_NCHW = pictures_NCHW[found.kept]
        return Pictures(pictures_NCHW, torch.tensor(readable.labels), aspects_N), readable

    train, _ = squares("train", listings[0], Frame(side, side, squeezed=squeezed))
    held_out, readable = squares("held-out", listings[1], Frame(shown, shown, zoom=settings.eval_zoom))
    batches: list[tuple[Tensor, Tensor]] = []
    if rectangular:
        groups = like_shapes([_aspect(readable.folder / file) for file in readable.files], shown, settings.eval_zoom)
        order, frames = zip(*((index, frame) for group, frame in groups for index in group), strict=True)
        flat = decoded("rectangles", readable.only(order), frames).bytes
        for group, frame in groups:
            count = len(group) * 3 * frame.height * frame.width
            batches.append((torch.tensor(group), flat[:count].view(len(group), 3, frame.height, frame.width)))
            flat = flat[count:]
    _check_classes(train, listings[0])
    _check_classes(held_out, listings[1])
    split = {"data": "imagefolder", "seed": seed, "held_out": readable.files}
    skipped = sum(map(len, (listing.files for listing in listings))) - len(train) - len(held_out)
    if skipped and first_on_machine:
        sys.stdout.write(f"{skipped} pictures could not be read and are left out\n")
    if (ignored := sorted({*listings[0].ignored, *listings[1].ignored})) and first_on_machine:
        sys.stdout.write(f"{len(ignored)} files are no pictures by their names and are left out; first {ignored[0]}\n")
    data = describe(train, held_out, listings[0].classes, white=float(WHITE), split=split, skipped=skipped)
    return replace(data, batches=batches)


def like_shapes(aspects: Sequence[float], size: int, zoom: float) -> list[tuple[list[int], Frame]]:
    """Pictures in batches of like shape, each batch with the shape that all of it is shown in.

    Sorted by width / height and cut into batches; a batch's shape is that of the mean: `size` by `size` times the mean,
    or by its inverse for upright ones, rounded down to a multiple of 8. Source: imagenet18's rectangular validation.
    """
    order = sorted(range(len(aspects)), key=lambda index: (aspects[index], index))
    groups = []
    for start in range(0, len(order), LIKE_PICTURES):
        group = order[start : start + LIKE_PICTURES]
        mean = sum(aspects[index] for index in group) / len(group)
        longer = max(size, int(size * max(mean, 1 / mean)) // 8 * 8)
        groups.append((group, Frame(longer if mean < 1 else size, size if mean < 1 else longer, zoom=zoom)))
    return groups


def is_image_folder(folder: Path) -> bool:
    """Whether `folder` has the training pictures of an ImageFolder beside held-out ones."""
    return (folder / "train").is_dir() and any((folder / name).is_dir() for name in HELD_OUT_NAMES)


def split_folder(folder: Path, seed: int, share: float) -> tuple[Listing, Listing]:
    """What to train on and what to hold out. Raises DataError if the folder is not laid out as one of pictures."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the path of a folder of pictures as data.train")
    train = folder / "train" if (folder / "train").is_dir() else folder
    beside = train.parent if train.name == "train" else None
    held_out = next((beside / name for name in HELD_OUT_NAMES if (beside / name).is_dir()), None) if beside else None
    listing = list_pictures(train)
    if held_out is None:
        chosen, out = split_by_class(torch.tensor(listing.labels), seed, share)
        return listing.only(chosen.tolist()), listing.only(out.tolist())
    other = list_pictures(held_out)
    if odd := sorted(set(listing.classes) ^ set(other.classes)):
        raise DataError(
            f"{train} and {held_out} do not have the same classes: {odd[0]} is in one only; add or remove it"
        )
    return listing, other


def list_pictures(folder: Path) -> Listing:
    """The pictures of an ImageFolder. Raises DataError for no classes, one class, or a class without pictures."""
    try:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}; give the path of a folder of pictures") from error
    if len(classes) < 2:
        raise DataError(
            f"{folder} holds {len(classes)} class folders; a classifier needs two: {folder}/CLASS/picture.jpg"
        )
    files, labels, ignored = [], [], []
    for label, name in enumerate(classes):
        inside = sorted((folder / name).rglob("*"), key=str)
        found = [path for path in inside if path.suffix.lower() in SUFFIXES]
        if not found:
            raise DataError(
                f"the class folder {folder / name} holds no picture; add some ({', '.join(sorted(SUFFIXES))}) "
                "or remove the folder"
            )
        files += [str(path.relative_to(folder)) for path in found]
        labels += [label] * len(found)
        ignored += [
            path for path in inside if path.suffix.lower() not in SUFFIXES and path.is_file() and path.name[0] != "."
        ]
    return Listing(folder, classes, files, labels, ignored)


def decode(path: Path, size: int) -> Tensor:
    """One picture as RGB bytes, CHW: shorter side scaled to `size`, then the centre. Grey and CMYK are converted.

    Raises DataError if it cannot be read as a picture.
    """
    return decode_to(path, Frame(size, size))[0]


def decode_to(path: Path, frame: Frame) -> tuple[Tensor, float]:
    """One picture as RGB bytes, CHW, in its frame, and the width / height it had. Grey and CMYK are converted.

    Raises DataError if it cannot be read as a picture.
    """
    from PIL import Image, ImageOps

    size = (frame.width, frame.height)
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            if opened.width * opened.height > LARGEST_PIXELS:
                raise DataError(f"{path} claims {opened.width} x {opened.height} pixels; scale it down or remove it")
            if opened.mode[0] in "IF":
                raise DataError(f"{path} has more than 8 bits a channel; convert it to 8 bits, or set on_corrupt: skip")
            aspect = opened.width / opened.height
            # JPEG may be decoded smaller, which is several times faster
            opened.draft("RGB", (math.ceil(2 * frame.zoom * frame.width), math.ceil(2 * frame.zoom * frame.height)))
            if frame.squeezed:
                picture = opened.convert("RGB").resize(size, Image.Resampling.BILINEAR)
            else:
                border = (1 - 1 / frame.zoom) / 2
                picture = ImageOps.fit(opened.convert("RGB"), size, Image.Resampling.BILINEAR, bleed=border)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read as a picture ({why}); repair or remove it, or set on_corrupt: skip"
        ) from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1), aspect


def _aspect(path: Path) -> float:
    """Width / height of a picture that could be decoded."""
    from PIL import Image

    with Image.open(path) as opened:
        return float(opened.width / opened.height)


def _decode_to(store: Path, listing: Listing, frames: Sequence[Frame], *, skip: bool) -> None:
    """Write the decoded pictures as raw bytes, and beside them which could be read, and their shapes."""
    ends = list(itertools.accumulate(3 * frame.height * frame.width for frame in frames))
    needed, free = ends[-1], _free_bytes(store.parent)
    if needed > free:
        raise DataError(
            f"{listing.folder} needs {needed >> 20} MiB as pictures of {frames[0].height} x {frames[0].width}, "
            f"{store.parent} has {free >> 20} MiB; "
            "lower size, use fewer pictures, or rent machines with a larger disk"
        )
    pictures = torch.from_file(str(store), shared=True, size=needed, dtype=torch.uint8)
    kept: list[int] = []
    aspects: list[float] = []

    def read(index: int) -> DataError | float:
        try:
            picture_CHW, aspect = decode_to(listing.folder / listing.files[index], frames[index])
        except DataError as error:
            return error
        pictures[ends[index] - picture_CHW.numel() : ends[index]] = picture_CHW.flatten()
        return aspect

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # PIL decodes outside the interpreter's lock
        for index, found in enumerate(pool.map(read, range(len(listing.files)))):
            if isinstance(found, float):
                kept.append(index)
                aspects.append(found)
            elif not skip:
                pool.shutdown(cancel_futures=True)
                raise found
            else:
                sys.stdout.write(f"left out: {found}\n")
    _kept_path(store).write_text(json.dumps({"kept": kept, "aspects": aspects}))


def _map(store: Path, frames: Sequence[Frame]) -> Decoded:
    size = sum(3 * frame.height * frame.width for frame in frames)
    found = json.loads(_kept_path(store).read_text())
    return Decoded(torch.from_file(str(store), shared=True, size=size, dtype=torch.uint8), **found)


def _kept_path(store: Path) -> Path:
    return store.with_name(store.name + ".json")


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _check_classes(pictures: Pictures, listing: Listing) -> None:
    counts = torch.bincount(pictures.labels_N, minlength=len(listing.classes)).tolist()
    if 0 in counts:
        name = listing.classes[counts.index(0)]
        raise DataError(
            f"the class {name} in {listing.folder} has too few readable pictures to train on and measure; add some"
        )
