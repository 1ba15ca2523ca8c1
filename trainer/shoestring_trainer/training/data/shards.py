# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards as a listing: tar files whose members of one name are a sample, KEY.jpg with KEY.cls or KEY.json.

Shards are indexed and then read in place. Nothing is extracted, and no member's name is ever a path.
"""

from __future__ import annotations

import json
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import TarInfo

from PIL import Image

from shoestring_trainer.training.data.decoding import LARGEST_BYTES, open_bytes
from shoestring_trainer.training.data.folders import split_places
from shoestring_trainer.training.data.listing import HELD_OUT_NAMES, SUFFIXES, Listing, check_name, hold_out
from shoestring_trainer.training.errors import DataError

CLASS_FILES = ("classes.txt", "classnames.txt")
LABEL_KEYS = ("label", "cls", "class")
LARGEST_LABEL = 1 << 20
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WORD = re.compile(r"[a-z]+")

Label = int | str


def split_shards(place: Path, seed: int, share: float, *, skip: bool) -> tuple[Listing, Listing]:
    """What to train on and what to hold out.

    place   a folder with train/*.tar beside val/*.tar (or test), or with shards that have these words in their names,
            or else with shards of which a share is held out; or a pattern such as /data/train-{000..127}.tar
    skip    a sample that can't be used is left out and counted
    raises  DataError, naming the shard, the sample and the remedy
    """
    train, held_out = find_shards(place)
    folder = train[0].parent
    names = _read_classes([folder, folder.parent] if folder.name == "train" else [folder])
    parts = [_Index(folder, skip), _Index(held_out[0].parent if held_out else folder, skip)]
    for index, shards in zip(parts, (train, held_out), strict=True):
        for shard in shards:
            index.add(shard)
    classes = names or _derive_classes(parts)
    listings = [index.listing(classes) for index in parts if index.shards]
    return (listings[0], listings[1]) if held_out else hold_out(listings[0], seed, share)


def find_shards(place: Path) -> tuple[list[Path], list[Path]]:
    """Shards to train on, and to hold out: none if they lie with the others. Raises DataError if there are none."""
    if braces := _BRACES.search(place.name):
        first, last = braces.groups()
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        wanted = [place.with_name(place.name.replace(braces[0], number, 1)) for number in numbers]
        if missing := [shard for shard in wanted if not shard.is_file()]:
            raise DataError(f"there is no {missing[0]}, one of {len(missing)} that {place.name} names; fetch it")
        if not wanted:
            raise DataError(f"{place.name} names no shard; give the smaller number first")
        return wanted, []
    if place.is_file():
        return [place], []
    train, held_out = split_places(place)
    if held_out:
        return _tars(train), _tars(held_out)
    shards = _tars(train)
    words = [set(_WORD.findall(shard.stem.lower())) for shard in shards]
    name = next((name for name in HELD_OUT_NAMES if any(name in found for found in words)), None)
    to_train_on = [shard for shard, found in zip(shards, words, strict=True) if "train" in found]
    if name is None or not to_train_on:
        return shards, []
    return to_train_on, [shard for shard, found in zip(shards, words, strict=True) if name in found]


def _tars(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and path.name[0] != ".")
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}; give the folder of the shards") from error
    if not found:
        raise DataError(f"{folder} holds no .tar file; give the folder of the shards, or use format: imagefolder")
    return found


def _read_classes(folders: Sequence[Path]) -> list[str]:
    """The names of the classes, one a line, if a file beside the shards has them."""
    for path in (folder / name for folder in folders for name in CLASS_FILES):
        if path.is_file():
            try:
                names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
            except (OSError, ValueError) as error:
                raise DataError(f"cannot read {path} ({error}); give one class name a line, in UTF-8") from error
            if len(set(names)) < max(2, len(names)):
                raise DataError(f"{path} must name at least two classes, each once; correct it")
            return names
    return []


def _derive_classes(parts: Sequence[_Index]) -> list[str]:
    """Class names from the labels themselves: words, or numbers from 0 with none left out."""
    found = {label: index.path(number) for index in parts for number, label in enumerate(index.labels)}
    words = sorted(label for label in found if isinstance(label, str))
    if words and len(words) < len(found):
        raise DataError(
            f"the label of {found[words[0]]} is {words[0]!r}, where others are numbers; correct it, or name the "
            f"classes in {CLASS_FILES[0]}"
        )
    if len(found) < 2:
        raise DataError(f"all samples in {parts[0].place} have one label; a classifier needs two")
    if words:
        return words
    missing = next((number for number in range(len(found)) if number not in found), None)
    if missing is not None:
        odd = max(found, key=int)
        raise DataError(
            f"no sample has the label {missing}, but {found[odd]} has {odd}; labels are 0, 1, 2 and so on: correct "
            f"them, or name the classes in {CLASS_FILES[0]} beside the shards, one a line"
        )
    return [str(number) for number in range(len(found))]


@dataclass
class _Sample:
    image: TarInfo | None = None
    label: Label | None = None
    faults: list[str] = field(default_factory=list)


class _Index:
    """Where each sample's image lies in the shards, and its label as it was given."""

    def __init__(self, place: Path, skip: bool) -> None:
        self.place, self._skip = place, skip
        self.shards: list[Path] = []
        self.labels: list[Label] = []
        self.names: list[str] = []
        self._shard, self._offset, self._size = array("i"), array("q"), array("q")
        self._skipped = 0

    def path(self, number: int) -> Path:
        return self.place / self.names[number]

    def add(self, shard: Path) -> None:
        """Take up a shard's samples. Raises DataError for a damaged one and, unless they are skipped, for a sample
        without an image or label.
        """
        samples: dict[str, _Sample] = {}
        for member, content in _members(shard):
            _take(samples, member, content)
        for key, sample in samples.items():
            if sample.image and sample.label is not None and not sample.faults:
                self._keep(shard, sample.image, sample.label)
            elif sample.image or sample.label is not None or sample.faults:
                lacks = "it has no label (.cls or .json)" if sample.image else "it has no image"
                self._leave_out(f"the sample {key} in {shard} can't be used: {(sample.faults or [lacks])[0]}")
        self.shards.append(shard)

    def listing(self, classes: list[str]) -> Listing:
        """The samples with their labels as numbers of these classes."""
        numbers = {name: number for number, name in enumerate(classes)}
        labels, kept = [], []
        for at, label in enumerate(self.labels):
            number = numbers.get(label, -1) if isinstance(label, str) else label
            if 0 <= number < len(classes):
                kept.append(at)
                labels.append(number)
            else:
                self._leave_out(
                    f"the label of {self.path(at)} is {label!r}, which is none of the {len(classes)} classes "
                    f"(0 to {len(classes) - 1})"
                )
        if not kept:
            raise DataError(f"the shards in {self.place} hold no sample that can be used; make them anew")
        whole = Listing(self.place, classes, self.names, labels, self._open, skipped=self._skipped)
        if len(kept) == len(self.names):
            return whole
        names = [self.names[at] for at in kept]
        return Listing(self.place, classes, names, labels, lambda at: self._open(kept[at]), skipped=self._skipped)

    def _keep(self, shard: Path, image: TarInfo, label: Label) -> None:
        self.names.append(f"{shard.name}/{image.name}")
        self.labels.append(label)
        self._shard.append(len(self.shards))
        self._offset.append(image.offset_data)
        self._size.append(image.size)

    def _leave_out(self, why: str) -> None:
        if not self._skip:
            raise DataError(f"{why}; correct it, or set on_corrupt: skip")
        self._skipped += 1
        print(f"left out: {why}")

    def _open(self, number: int) -> Image.Image:
        with self.shards[self._shard[number]].open("rb") as file:
            file.seek(self._offset[number])
            return open_bytes(file.read(self._size[number]))


def _members(shard: Path) -> Iterator[tuple[TarInfo, bytes]]:
    """The members of a shard, those that hold a label with their content, up to its proper end."""
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, "r:", errorlevel=2) as tar:
            for member in tar:
                if member.offset_data + member.size > size and member.isreg():
                    raise tarfile.ReadError(f"{member.name} is cut short")
                readable = _is_label(member.name) and member.isreg() and member.size <= LARGEST_LABEL
                reader = tar.extractfile(member) if readable else None
                yield member, reader.read() if reader else b""
            end = tar.offset
        with shard.open("rb") as file:
            file.seek(end)
            rest = file.read(2 * tarfile.BLOCKSIZE)
            if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
                raise tarfile.ReadError(f"no end mark and no member at byte {end}")
            while rest := file.read(1 << 20):
                if rest.strip(b"\0"):
                    raise tarfile.ReadError(f"more follows its end at byte {end}: were several put together?")
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{shard} isn't a whole, uncompressed tar file ({error}); fetch or make it again") from error


def _is_label(name: str) -> bool:
    return name.lower().endswith((".cls", ".json"))


def _take(samples: dict[str, _Sample], member: TarInfo, content: bytes) -> None:
    """Give a member to its sample: what comes before the first dot of its name is the key, what follows its kind."""
    found = _KEY.fullmatch(member.name)
    if not found or member.isdir():
        return
    sample, kind = samples.setdefault(found[1], _Sample()), found[2].lower()
    if f".{kind}" in SUFFIXES:
        check_name(Path(member.name))
        if sample.image:
            sample.faults.append("it has two images")
        elif not member.isreg() or member.issparse():
            sample.faults.append(f"{member.name} is a link or no plain file")
        elif not 0 < member.size <= LARGEST_BYTES:
            sample.faults.append(f"{member.name} has {member.size} bytes")
        sample.image = member
    elif kind in ("cls", "json"):
        try:
            label = _read_label(content, kind)
        except ValueError as error:
            sample.faults.append(f"{member.name} holds no label ({error})")
            return
        if label is not None and sample.label is not None and label != sample.label:
            sample.faults.append(f"it has two labels, {sample.label!r} and {label!r}")
        sample.label = label if sample.label is None else sample.label


def _read_label(content: bytes, kind: str) -> Label | None:
    """A whole number or a word; None if JSON says nothing about it. Raises ValueError."""
    if kind == "cls":
        value: object = content.decode("utf-8").strip()
    else:
        try:
            value = json.loads(content)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if isinstance(value, dict):
            value = next((value[key] for key in LABEL_KEYS if key in value), None)
            if value is None:
                return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 200:
        raise ValueError("neither a whole number nor a word")
    return int(value) if re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()) else value.strip()
