# SPDX-License-Identifier: Apache-2.0
"""Any folder of pictures, one sub-folder per class, decoded once per machine into memory that its ranks share."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    folder: Path, seed: int, settings: Settings, *, scratch: Path, first_on_machine: bool, meet: Callable[[], None]
) -> DataSet:
    """Pictures below `folder`: train/CLASS/… beside val/CLASS/… (or test), or CLASS/… with a share held out.

    scratch           folder for the decoded pictures, seen by every rank of this machine
    first_on_machine  this rank decodes; the others map what it wrote
    meet              returns when every rank has called it
    raises            DataError that names the folder or file and the remedy
    """
    listings = split_folder(folder, seed, settings.holdout)
    stores = [scratch / "pictures-train", scratch / "pictures-held-out"]
    if first_on_machine:
        for listing, store in zip(listings, stores, strict=True):
            _decode_to(store, listing, settings)
    meet()
    train, held_out = (_map(store, listing, settings.size) for listing, store in zip(listings, stores, strict=True))
    readable = listings[1].only(json.loads(_kept_path(stores[1]).read_text()))
    meet()
    if first_on_machine:
        for store in stores:  # the mappings live on; the names would only fill the disk
            store.unlink()
            _kept_path(store).unlink()
    _check_classes(train, listings[0])
    _check_classes(held_out, listings[1])
    split = {"data": "imagefolder", "seed": seed, "held_out": readable.files}
    skipped = sum(map(len, (listing.files for listing in listings))) - len(train) - len(held_out)
    if skipped and first_on_machine:
        sys.stdout.write(f"{skipped} pictures could not be read and are left out\n")
    if (ignored := sorted({*listings[0].ignored, *listings[1].ignored})) and first_on_machine:
        sys.stdout.write(f"{len(ignored)} files are no pictures by their names and are left out; first {ignored[0]}\n")
    return describe(train, held_out, listings[0].classes, white=float(WHITE), split=split, skipped=skipped)


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
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            if opened.width * opened.height > LARGEST_PIXELS:
                raise DataError(f"{path} claims {opened.width} x {opened.height} pixels; scale it down or remove it")
            if opened.mode[0] in "IF":
                raise DataError(f"{path} has more than 8 bits a channel; convert it to 8 bits, or set on_corrupt: skip")
            opened.draft("RGB", (2 * size, 2 * size))  # JPEG may be decoded smaller, which is several times faster
            picture = ImageOps.fit(opened.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read as a picture ({why}); repair or remove it, or set on_corrupt: skip"
        ) from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _decode_to(store: Path, listing: Listing, settings: Settings) -> None:
    """Write the decoded pictures as raw bytes, and beside them the indices of those that could be read."""
    size, skip = settings.size, settings.on_corrupt == "skip"
    shape = (len(listing.files), 3, size, size)
    needed, free = math.prod(shape), _free_bytes(store.parent)
    if needed > free:
        raise DataError(
            f"{listing.folder} needs {needed >> 20} MiB as pictures of {size} x {size}, "
            f"{store.parent} has {free >> 20} MiB; "
            "lower size, use fewer pictures, or rent machines with a larger disk"
        )
    pictures = torch.from_file(str(store), shared=True, size=needed, dtype=torch.uint8).view(shape)
    kept: list[int] = []

    def read(index: int) -> DataError | None:
        try:
            pictures[index] = decode(listing.folder / listing.files[index], size)
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # PIL decodes outside the interpreter's lock
        for index, error in enumerate(pool.map(read, range(len(listing.files)))):
            if error is None:
                kept.append(index)
            elif not skip:
                pool.shutdown(cancel_futures=True)
                raise error
            else:
                sys.stdout.write(f"left out: {error}\n")
    _kept_path(store).write_text(json.dumps(kept))


def _map(store: Path, listing: Listing, size: int) -> Pictures:
    shape = (len(listing.files), 3, size, size)
    pictures = torch.from_file(str(store), shared=True, size=math.prod(shape), dtype=torch.uint8).view(shape)
    labels, kept = (
        torch.tensor(listing.labels),
        torch.tensor(json.loads(_kept_path(store).read_text()), dtype=torch.int64),
    )
    return Pictures(pictures, labels) if len(kept) == len(labels) else Pictures(pictures[kept], labels[kept])


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
