# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards as an image index: tar files in which the members KEY.jpg and KEY.cls (or KEY.json) are a sample.

Shards are indexed once, then images are read in place. Nothing is extracted, and no member's name is used as a path.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from tarfile import TarInfo

from PIL import Image

from shoestring_trainer.training.data.decoding import open_image_bytes
from shoestring_trainer.training.data.image_folder import find_split_folders
from shoestring_trainer.training.data.image_index import VAL_SPLIT_NAMES, ImageIndex, split_train_val
from shoestring_trainer.training.data.tar_samples import Label, read_samples
from shoestring_trainer.training.errors import DataError

CLASS_NAME_FILES = ("classes.txt", "classnames.txt")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WORD = re.compile(r"[a-z]+")


def index_webdataset(path: Path, seed: int, val_fraction: float, *, skip: bool) -> tuple[ImageIndex, ImageIndex]:
    """Return the (train, val) indices of a WebDataset.

    path    a folder with train/*.tar and val/*.tar (or test), or with shards that have these words in their names,
            or else with shards that are split by `seed`; or a pattern such as /data/train-{000..127}.tar
    skip    leave out and count invalid samples; else they raise DataError
    raises  DataError, naming the shard, the sample and the remedy
    """
    train_shards, val_shards = find_shards(path)
    folder = train_shards[0].parent
    class_names = _read_class_names([folder, folder.parent] if folder.name == "train" else [folder])
    parts = [_ShardIndex(folder, skip), _ShardIndex(val_shards[0].parent if val_shards else folder, skip)]
    for part, shards in zip(parts, (train_shards, val_shards), strict=True):
        for shard in shards:
            part.add(shard)
    classes = class_names or _infer_classes(parts)
    indices = [part.to_image_index(classes) for part in parts if part.shards]
    return (indices[0], indices[1]) if val_shards else split_train_val(indices[0], seed, val_fraction)


def find_shards(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the training and validation shards; no validation shards if they aren't separate.

    Raises DataError if there are none.
    """
    if braces := _BRACES.search(path.name):
        first, last = braces.groups()
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        shards = [path.with_name(path.name.replace(braces[0], number, 1)) for number in numbers]
        if missing := [shard for shard in shards if not shard.is_file()]:
            raise DataError(f"{missing[0]} is missing, one of {len(missing)} that {path.name} names; fetch it")
        if not shards:
            raise DataError(f"{path.name} names no shard; give the smaller number first")
        return shards, []
    if path.is_file():
        return [path], []
    train_folder, val_folder = find_split_folders(path)
    if val_folder:
        return _list_tars(train_folder), _list_tars(val_folder)
    shards = _list_tars(train_folder)
    words = [set(_WORD.findall(shard.stem.lower())) for shard in shards]
    val_name = next((name for name in VAL_SPLIT_NAMES if any(name in shard_words for shard_words in words)), None)
    train = [shard for shard, shard_words in zip(shards, words, strict=True) if "train" in shard_words]
    if val_name is None or not train:
        return shards, []
    return train, [shard for shard, shard_words in zip(shards, words, strict=True) if val_name in shard_words]


def _list_tars(folder: Path) -> list[Path]:
    try:
        tars = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and path.name[0] != ".")
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}; give the folder of the shards") from error
    if not tars:
        raise DataError(f"{folder} holds no .tar file; give the folder of the shards, or use format: imagefolder")
    return tars


def _read_class_names(folders: Sequence[Path]) -> list[str]:
    """Read the class names, one a line, if there is a file with them beside the shards."""
    for path in (folder / name for folder in folders for name in CLASS_NAME_FILES):
        if path.is_file():
            try:
                names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
            except (OSError, ValueError) as error:
                raise DataError(f"cannot read {path} ({error}); give one class name a line, in UTF-8") from error
            if len(set(names)) < max(2, len(names)):
                raise DataError(f"{path} must name at least two classes, each once; correct it")
            return names
    return []


def _infer_classes(parts: Sequence[_ShardIndex]) -> list[str]:
    """Return class names from the labels themselves: either strings, or integers from 0 without gaps."""
    examples = {label: part.path(index) for part in parts for index, label in enumerate(part.labels)}
    strings = sorted(label for label in examples if isinstance(label, str))
    if strings and len(strings) < len(examples):
        raise DataError(
            f"the label of {examples[strings[0]]} is {strings[0]!r}, where others are integers; correct it, or name "
            f"the classes in {CLASS_NAME_FILES[0]}"
        )
    if len(examples) < 2:
        raise DataError(f"all samples in {parts[0].root} have the same label; a classifier needs two classes")
    if strings:
        return strings
    missing = next((number for number in range(len(examples)) if number not in examples), None)
    if missing is not None:
        largest = max(examples, key=int)
        raise DataError(
            f"no sample has the label {missing}, but {examples[largest]} has {largest}; labels are 0, 1, 2 and so on: "
            f"correct them, or name the classes in {CLASS_NAME_FILES[0]} beside the shards, one a line"
        )
    return [str(number) for number in range(len(examples))]


class _ShardIndex:
    """Position of each sample's image in the shards, and its label as given."""

    def __init__(self, root: Path, skip: bool) -> None:
        self.root, self._skip = root, skip
        self.shards: list[Path] = []
        self.labels: list[Label] = []
        self.names: list[str] = []
        self._shard_numbers, self._offsets, self._sizes = array("i"), array("q"), array("q")
        self._skipped = 0

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    def add(self, shard: Path) -> None:
        """Index a shard. Raises DataError if it is damaged, and for an invalid sample unless those are skipped."""
        for key, sample in read_samples(shard).items():
            if sample.image and sample.label is not None and not sample.problems:
                self._add_sample(shard, sample.image, sample.label)
            elif sample.image or sample.label is not None or sample.problems:
                missing = "it has no label (.cls or .json)" if sample.image else "it has no image"
                self._skip_or_raise(f"the sample {key} in {shard} is invalid: {(sample.problems or [missing])[0]}")
        self.shards.append(shard)

    def to_image_index(self, classes: list[str]) -> ImageIndex:
        """Return the samples with their labels as class numbers."""
        numbers = {name: number for number, name in enumerate(classes)}
        labels, valid = [], []
        for index, label in enumerate(self.labels):
            number = numbers.get(label, -1) if isinstance(label, str) else label
            if 0 <= number < len(classes):
                valid.append(index)
                labels.append(number)
            else:
                self._skip_or_raise(
                    f"the label of {self.path(index)} is {label!r}, which is none of the {len(classes)} classes "
                    f"(0 to {len(classes) - 1})"
                )
        if not valid:
            raise DataError(f"the shards in {self.root} hold no valid sample; create them again")
        if len(valid) == len(self.names):
            return ImageIndex(self.root, classes, self.names, labels, self._open, skipped=self._skipped)
        names = [self.names[index] for index in valid]
        return ImageIndex(
            self.root, classes, names, labels, lambda index: self._open(valid[index]), skipped=self._skipped
        )

    def _add_sample(self, shard: Path, image: TarInfo, label: Label) -> None:
        self.names.append(f"{shard.name}/{image.name}")
        self.labels.append(label)
        self._shard_numbers.append(len(self.shards))
        self._offsets.append(image.offset_data)
        self._sizes.append(image.size)

    def _skip_or_raise(self, reason: str) -> None:
        if not self._skip:
            raise DataError(f"{reason}; correct it, or set on_corrupt: skip")
        self._skipped += 1
        print(f"skipped: {reason}")

    def _open(self, index: int) -> Image.Image:
        with self.shards[self._shard_numbers[index]].open("rb") as file:
            file.seek(self._offsets[index])
            return open_image_bytes(file.read(self._sizes[index]))
