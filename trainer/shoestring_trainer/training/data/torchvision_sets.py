# SPDX-License-Identifier: Apache-2.0
"""torchvision's data sets of labelled images as listings. They are read from a folder, never downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring_trainer.training.data.decoding import open_file
from shoestring_trainer.training.data.listing import Listing, check_name, hold_out
from shoestring_trainer.training.errors import DataError

PREFIX = "torchvision/"


@dataclass(frozen=True)
class Published:
    """What a set's class in torchvision is called with for the two parts, and what it looks for in the folder.

    held_out  None: the set has no such part, and a share is held out
    """

    train: Mapping[str, Any]
    held_out: Mapping[str, Any] | None
    files: str


def _two(argument: str, train: object, held_out: object, files: str) -> Published:
    return Published({argument: train}, {argument: held_out}, files)


SETS = {
    "CIFAR10": _two("train", True, False, "cifar-10-batches-py/"),
    "CIFAR100": _two("train", True, False, "cifar-100-python/train, test and meta"),
    "Country211": _two("split", "train", "valid", "country211/train/ and valid/"),
    "DTD": _two("split", "train", "val", "dtd/dtd/images/ and labels/"),
    "EuroSAT": Published({}, None, "eurosat/2750/"),
    "FER2013": _two("split", "train", "test", "fer2013/icml_face_data.csv, or train.csv and test.csv"),
    "FGVCAircraft": _two("split", "trainval", "test", "fgvc-aircraft-2013b/data/"),
    "FashionMNIST": _two("train", True, False, "FashionMNIST/raw/train-images-idx3-ubyte and its three companions"),
    "Flowers102": _two("split", "train", "val", "flowers-102/jpg/, imagelabels.mat and setid.mat"),
    "Food101": _two("split", "train", "test", "food-101/images/ and meta/"),
    "GTSRB": _two("split", "train", "test", "gtsrb/GTSRB/Training/, Final_Test/ and GT-final_test.csv"),
    "Imagenette": _two("split", "train", "val", "imagenette2/train/ and val/"),
    "KMNIST": _two("train", True, False, "KMNIST/raw/train-images-idx3-ubyte and its three companions"),
    "MNIST": _two("train", True, False, "MNIST/raw/train-images-idx3-ubyte and its three companions"),
    "OxfordIIITPet": _two("split", "trainval", "test", "oxford-iiit-pet/images/ and annotations/"),
    "RenderedSST2": _two("split", "train", "val", "rendered-sst2/train/ and valid/"),
    "STL10": _two("split", "train", "test", "stl10_binary/train_X.bin, train_y.bin, test_X.bin and test_y.bin"),
    "SUN397": Published({}, None, "SUN397/ with ClassName.txt"),
    "SVHN": _two("split", "train", "test", "train_32x32.mat and test_32x32.mat"),
    "StanfordCars": _two("split", "train", "test", "stanford_cars/ with devkit/, cars_train/ and cars_test/"),
    "USPS": _two("train", True, False, "usps.bz2 and usps.t.bz2"),
}
"""By the name of torchvision's class. Where it has both val and test, val is held out and test stays unseen."""


def split_torchvision(name: str, folder: Path, seed: int, share: float) -> tuple[Listing, Listing]:
    """What to train on and what to hold out of the set called `name`, from `folder`, its root for torchvision.

    Raises DataError that names what is missing or damaged and the remedy.
    """
    if name not in SETS:
        raise DataError(f"this trainer doesn't know torchvision's {name!r}; it knows {', '.join(SETS)}")
    published = SETS[name]
    whole = _list(name, folder, "train", published.train)
    if published.held_out is None:
        return hold_out(whole, seed, share)
    return whole, _list(name, folder, "held-out", published.held_out)


def _list(name: str, folder: Path, part: str, arguments: Mapping[str, Any]) -> Listing:
    """One part of a set. Where the set's images are files, it is asked for their paths and none is opened."""
    from shoestring_trainer.training.vision_compat import datasets

    kind = getattr(datasets, name)
    files = "loader" in inspect.signature(kind).parameters
    try:
        found = kind(str(folder), **arguments, **({"loader": Path} if files else {}))
        labels, paths = [], []
        for number in range(len(found)):
            content, label = found[number]
            labels.append(int(label))
            if files:
                paths.append(content)
        if len(getattr(found, "targets", labels)) != len(labels):
            raise ValueError(f"{len(labels)} images and {len(found.targets)} labels")
    except ImportError as error:
        raise DataError(f"torchvision's {name} needs another package: {error}") from error
    except Exception as error:  # a damaged set raises anything
        raise DataError(
            f"{folder} doesn't hold torchvision's {name} ({type(error).__name__}: {str(error)[:300]}); it looks for "
            f"{SETS[name].files} there. Where there is internet, torchvision.datasets.{name}({str(folder)!r}, "
            "download=True) fetches it, for those that can still be downloaded; then give that folder as data.train"
        ) from error
    classes = _classes(found, labels)
    if not files:
        names = [f"{part}/{number}" for number in range(len(labels))]
        return Listing(folder / name, classes, names, labels, lambda number: found[number][0])
    for path in paths:
        check_name(path)
    names = [str(path.relative_to(folder)) for path in paths]
    return Listing(folder, classes, names, labels, lambda number: open_file(paths[number]))


def _classes(found: Any, labels: list[int]) -> list[str]:
    """The names of the classes as the set has them, else their numbers. Some sets give several words for one class."""
    named = getattr(found, "classes", None)
    if named is None:
        return [str(number) for number in range(max(labels, default=-1) + 1)]
    return [name if isinstance(name, str) else ", ".join(name) for name in named]
