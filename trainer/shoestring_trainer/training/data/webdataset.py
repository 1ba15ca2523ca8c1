# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards as an image index: tar files in which the members KEY.jpg and KEY.cls (or KEY.json) are a sample.

Shards are indexed once, then images are read in place. Nothing is extracted, and no member's name is used as a path.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tarfile import TarInfo

from PIL import Image
from shoestring_core import data_splits
from shoestring_core.data_splits import (
    Splits,
    find_twin,
    folder_role,
    require_class_names,
    spellings,
)
from shoestring_core.shard_checks import expand_pattern
from shoestring_core.spec import SHARD_RANGE

from shoestring_trainer.terminal import say
from shoestring_trainer.training.data.confined_files import open_confined, read_confined
from shoestring_trainer.training.data.image_files import open_image_bytes
from shoestring_trainer.training.data.image_folder import Folders, refuse_layout
from shoestring_trainer.training.data.image_index import ImageIndex, split_train_val
from shoestring_trainer.training.data.tar_samples import Label, decode_text, read_samples
from shoestring_trainer.training.errors import DataError

CLASS_NAME_FILES = ("classes.txt", "classnames.txt")


def index_webdataset(path: Path, seed: int, val_fraction: float, *, skip: bool) -> tuple[ImageIndex, ImageIndex]:
    """Return the (train, val) indices of a WebDataset, split by `seed` if it has no shards to validate on."""
    train, val = index_shards(path, skip=skip)
    return (train, val) if val else split_train_val(train, seed, val_fraction)


def index_shards(
    path: Path, *, skip: bool, report: Callable[[str], object] = say, skip_option: str = "the parameter on_corrupt=skip"
) -> tuple[ImageIndex, ImageIndex | None]:
    """Return the indices of the shards to train and to validate on.

    path         a folder with train/*.tar and val/*.tar (or test, or other words for them), or with shards that have
                 such words in their names, or else with shards to train on; or a pattern such as
                 /data/train-{000..127}.tar
    skip         leave out and count invalid samples, and report each; else they raise DataError
    skip_option  how users ask for that, for messages
    raises       DataError, naming the shard, the sample and the remedy
    """
    splits = find_shards(path)
    folder = splits.train[0].parent
    class_names = _read_class_names([folder, folder.parent] if folder_role(folder) == "train" else [folder])
    parts = [
        _ShardIndex(shards[0].parent, skip, report, skip_option) for shards in (splits.train, splits.val) if shards
    ]
    for part, shards in zip(parts, (splits.train, splits.val), strict=False):
        for shard in shards:
            part.add(shard)
    classes = class_names or _infer_classes(parts, skip=skip, skip_option=skip_option)
    train, *val = [part.to_image_index(classes) for part in parts]
    train = replace(train, unused=splits.unused)
    return train, val[0] if val else None


def find_shards(path: Path) -> Splits:
    """Return the shards to train and to validate on. Raises DataError if there are none, or if it can't be known."""
    if SHARD_RANGE.search(path.name):
        with refuse_layout():
            return Splits(expand_pattern(path, lambda name: path.with_name(name).is_file()), [], [])
    if path.is_file():
        return Splits([path], [], [])
    if not path.is_dir():
        raise DataError(f"{path} is neither a folder nor a shard; give the folder of the shards")
    with refuse_layout():
        return data_splits.find_shards(path, Folders())


def _read_class_names(folders: Sequence[Path]) -> list[str]:
    """Read the class names, one a line, if there is a file with them beside the shards."""
    for path in (folder / name for folder in folders for name in CLASS_NAME_FILES):
        if path.exists():
            try:
                lines = re.split(r"\r\n|\r|\n", decode_text(read_confined(path)).rstrip())
            except OSError as error:
                raise DataError(f"cannot read {path} ({error.strerror}); give one class name a line") from error
            except ValueError as error:
                raise DataError(f"cannot read {path} ({error}); give one class name a line, in UTF-8") from error
            names = [line.strip(" \t") for line in lines]
            if len(names) < 2:
                raise DataError(f"{path} must name at least two classes, one a line; correct it")
            with refuse_layout():
                require_class_names(names, path)
            if twice := next((name for name, count in Counter(names).items() if count > 1), None):
                raise DataError(f"{path} must name each class once, and has {twice} twice; correct it")
            return names
    return []


def _infer_classes(parts: Sequence[_ShardIndex], *, skip: bool, skip_option: str) -> list[str]:
    """Return class names from the labels themselves: either strings, or integers from 0 without gaps.

    skip  negative labels are left out, by `to_image_index`
    """
    examples = {label: part.path(index) for part in parts for index, label in enumerate(part.labels)}
    strings = sorted(label for label in examples if isinstance(label, str))
    if strings and len(strings) < len(examples):
        raise DataError(
            f"the label of {examples[strings[0]]} is {strings[0]!r}, where others are integers; correct it, or name "
            f"the classes in {CLASS_NAME_FILES[0]}"
        )
    with refuse_layout():
        require_class_names(strings, parts[0].root)
    if negative := [label for label in examples if isinstance(label, int) and label < 0]:
        if not skip:
            raise DataError(
                f"the label of {examples[negative[0]]} is {negative[0]}; labels are 0, 1, 2 and so on: correct them, "
                f"or leave out such samples with {skip_option}"
            )
        examples = {label: path for label, path in examples.items() if label not in negative}
    if len(examples) < 2:
        label = f"the label {next(iter(examples))}" if examples else "no label from 0 on"
        raise DataError(f"all samples in {parts[0].root} have {label}; a classifier needs two classes")
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

    def __init__(self, root: Path, skip: bool, report: Callable[[str], object], skip_option: str) -> None:
        self.root, self._skip, self._report, self._skip_option = root, skip, report, skip_option
        self.shards: list[Path] = []
        self.labels: list[Label] = []
        self.names: list[str] = []
        self._shard_numbers, self._offsets, self._sizes = array("i"), array("q"), array("q")
        self._skipped = 0

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    def add(self, shard: Path) -> None:
        """Index a shard. Raises DataError if it is damaged, and for an invalid sample unless those are skipped."""
        samples = read_samples(shard)
        if not samples:
            self._skip_or_raise(f"the shard {shard} is empty: it holds no file that is part of a sample")
        for key, sample in samples.items():
            if sample.image and sample.label is not None and not sample.problems:
                self._add_sample(shard, sample.image, sample.label)
            elif sample.image or sample.label is not None or sample.problems or sample.dotted:
                self._skip_or_raise(f"the sample {key} in {shard} is invalid: {sample.problem}")
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
                twin = find_twin(label, classes) if isinstance(label, str) else None
                what = f"of which one is the same: {spellings(label, twin)}" if isinstance(label, str) and twin else ""
                self._skip_or_raise(
                    f"the label of {self.path(index)} is {label!r}, which is none of the {len(classes)} classes "
                    f"{what or f'(0 to {len(classes) - 1})'}"
                )
        if not valid:
            raise DataError(f"the shards in {self.root} hold no valid sample; create them again")
        if len(valid) == len(self.names):
            return self._image_index(classes, self.names, labels, self._sizes, self._open)
        names, sizes = [self.names[index] for index in valid], [self._sizes[index] for index in valid]
        return self._image_index(classes, names, labels, sizes, lambda index: self._open(valid[index]))

    def _image_index(
        self, classes: list[str], names: list[str], labels: list[int], sizes: Sequence[int],
        opener: Callable[[int], Image.Image],
    ) -> ImageIndex:  # fmt: skip
        first, last = self.shards[0], self.shards[-1]
        source = str(first) if first == last else f"{len(self.shards)} shards, {first} to {last.name}"
        return ImageIndex(
            self.root, classes, names, labels, opener, skipped=self._skipped, source=source, sizes=sizes
        )  # fmt: skip

    def _add_sample(self, shard: Path, image: TarInfo, label: Label) -> None:
        self.names.append(f"{shard.name}/{image.name}")
        self.labels.append(label)
        self._shard_numbers.append(len(self.shards))
        self._offsets.append(image.offset_data)
        self._sizes.append(image.size)

    def _skip_or_raise(self, reason: str) -> None:
        if not self._skip:
            raise DataError(f"{reason}; correct it, or leave it out with {self._skip_option}")
        self._skipped += 1
        self._report(f"skipped: {reason}")

    def _open(self, index: int) -> Image.Image:
        with open_confined(self.shards[self._shard_numbers[index]]) as file:
            file.seek(self._offsets[index])
            return open_image_bytes(file.read(self._sizes[index]))
