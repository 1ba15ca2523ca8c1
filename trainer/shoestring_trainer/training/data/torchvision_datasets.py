# SPDX-License-Identifier: Apache-2.0
"""torchvision's classification datasets as image indices. They are read from a folder, never downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring_core.data_splits import require_class_names

from shoestring_trainer.training.data.confined_files import confine_opens
from shoestring_trainer.training.data.image_files import open_image_file
from shoestring_trainer.training.data.image_folder import refuse_layout
from shoestring_trainer.training.data.image_index import ImageIndex, split_train_val, validate_utf8
from shoestring_trainer.training.errors import DataError

PREFIX = "torchvision/"


@dataclass(frozen=True)
class SplitArguments:
    """Arguments of a torchvision dataset class for its two splits, and the files it expects in the folder.

    val  None: the dataset has no second split, so a fraction of the training images is used
    """

    train: Mapping[str, Any]
    val: Mapping[str, Any] | None
    files: str


def _two_splits(argument: str, train: object, val: object, files: str) -> SplitArguments:
    return SplitArguments({argument: train}, {argument: val}, files)


DATASETS = {
    "CIFAR10": _two_splits("train", True, False, "cifar-10-batches-py/"),
    "CIFAR100": _two_splits("train", True, False, "cifar-100-python/train, test and meta"),
    "Country211": _two_splits("split", "train", "valid", "country211/train/ and valid/"),
    "DTD": _two_splits("split", "train", "val", "dtd/dtd/images/ and labels/"),
    "EuroSAT": SplitArguments({}, None, "eurosat/2750/"),
    "FER2013": _two_splits("split", "train", "test", "fer2013/icml_face_data.csv, or train.csv and test.csv"),
    "FGVCAircraft": _two_splits("split", "trainval", "test", "fgvc-aircraft-2013b/data/"),
    "FashionMNIST": _two_splits(
        "train", True, False, "FashionMNIST/raw/train-images-idx3-ubyte and its three companions"
    ),
    "Flowers102": _two_splits("split", "train", "val", "flowers-102/jpg/, imagelabels.mat and setid.mat"),
    "Food101": _two_splits("split", "train", "test", "food-101/images/ and meta/"),
    "GTSRB": _two_splits("split", "train", "test", "gtsrb/GTSRB/Training/, Final_Test/ and GT-final_test.csv"),
    "Imagenette": _two_splits("split", "train", "val", "imagenette2/train/ and val/"),
    "KMNIST": _two_splits("train", True, False, "KMNIST/raw/train-images-idx3-ubyte and its three companions"),
    "MNIST": _two_splits("train", True, False, "MNIST/raw/train-images-idx3-ubyte and its three companions"),
    "OxfordIIITPet": _two_splits("split", "trainval", "test", "oxford-iiit-pet/images/ and annotations/"),
    "RenderedSST2": _two_splits("split", "train", "val", "rendered-sst2/train/ and valid/"),
    "STL10": _two_splits("split", "train", "test", "stl10_binary/train_X.bin, train_y.bin, test_X.bin and test_y.bin"),
    "SUN397": SplitArguments({}, None, "SUN397/ with ClassName.txt"),
    "SVHN": _two_splits("split", "train", "test", "train_32x32.mat and test_32x32.mat"),
    "StanfordCars": _two_splits("split", "train", "test", "stanford_cars/ with devkit/, cars_train/ and cars_test/"),
    "USPS": _two_splits("train", True, False, "usps.bz2 and usps.t.bz2"),
}
"""By the name of torchvision's class. Where a dataset has both val and test, val is used and test is never read."""


def index_torchvision_dataset(name: str, root: Path, seed: int, val_fraction: float) -> tuple[ImageIndex, ImageIndex]:
    """Return the (train, val) indices of the dataset called `name` below `root`, as torchvision lays it out there.

    Raises DataError that names what is missing or damaged and the remedy.
    """
    if name not in DATASETS:
        raise DataError(f"this trainer doesn't know torchvision's {name!r}; it knows {', '.join(DATASETS)}")
    arguments = DATASETS[name]
    train = _index_split(name, root, "train", arguments.train)
    if arguments.val is None:
        return split_train_val(train, seed, val_fraction)
    return train, _index_split(name, root, "val", arguments.val)


def _index_split(name: str, root: Path, split: str, arguments: Mapping[str, Any]) -> ImageIndex:
    """Index one split. Where the dataset's images are files, it returns their paths, and none is opened."""
    from shoestring_trainer.training.vision_compat import datasets

    dataset_class = getattr(datasets, name)
    has_files = "loader" in inspect.signature(dataset_class).parameters
    try:
        with confine_opens(root):
            dataset = dataset_class(str(root), **arguments, **({"loader": Path} if has_files else {}))
            labels, paths = [], []
            for index in range(len(dataset)):
                image, label = dataset[index]
                labels.append(int(label))
                if has_files:
                    paths.append(image)
        if len(getattr(dataset, "targets", labels)) != len(labels):
            raise ValueError(f"{len(labels)} images and {len(dataset.targets)} labels")
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"torchvision's {name} needs another package: {error}") from error
    except Exception as error:  # a damaged dataset can raise anything
        raise DataError(
            f"{root} doesn't hold torchvision's {name} ({type(error).__name__}: {str(error)[:300]}); it looks for "
            f"{DATASETS[name].files} there. Where there is internet, torchvision.datasets.{name}({str(root)!r}, "
            "download=True) fetches it, if it can still be downloaded; then give that folder as data.train"
        ) from error
    classes = _class_names(dataset, labels)
    with refuse_layout():
        require_class_names(classes, root)
    if not has_files:
        names = [f"{split}/{index}" for index in range(len(labels))]
        return ImageIndex(root / name, classes, names, labels, lambda index: dataset[index][0])
    for path in paths:
        validate_utf8(path)
    names = [str(path.relative_to(root)) for path in paths]
    return ImageIndex(root, classes, names, labels, lambda index: open_image_file(paths[index]))


def _class_names(dataset: Any, labels: list[int]) -> list[str]:
    """Return the dataset's own class names, else numbers. Some datasets give a tuple of synonyms for one class."""
    classes = getattr(dataset, "classes", None)
    if classes is None:
        return [str(number) for number in range(max(labels, default=-1) + 1)]
    return [name if isinstance(name, str) else ", ".join(name) for name in classes]
