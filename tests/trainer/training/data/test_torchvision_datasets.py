# SPDX-License-Identifier: Apache-2.0
"""torchvision's datasets by name: read from where its download leaves them, never downloaded."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from shoestring_core.spec import DataFormat
from shoestring_trainer.training.data.torchvision_datasets import DATASETS, PREFIX
from shoestring_trainer.training.errors import DataError

from tests.trainer.training.data.sample_images import COLOURS, load, save_image
from tests.trainer.training.gangs import finished


def write_mnist(folder: Path) -> np.ndarray:
    """Write images whose brightness encodes their class, in MNIST's file format; return the test images."""
    draw, raw = np.random.default_rng(1), folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        pixels = np.clip(25 * labels[:, None, None] + draw.integers(0, 25, (count, 28, 28)), 0, 255).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())
    return pixels


def test_the_spec_offers_the_formats_that_the_trainer_reads():
    offered = [form for form in get_args(DataFormat) if form.startswith(PREFIX)]
    assert sorted(offered) == sorted(f"{PREFIX}{name}" for name in DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_dataset_raises_an_error_that_names_the_expected_files(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"doesn't hold torchvision's {name} \((Runtime|FileNotFound)Error.*looks for"):
        load(tmp_path / "empty", data_format=PREFIX + name)
    assert not list((tmp_path / "empty").iterdir())


def test_images_in_arrays_are_unchanged(tmp_path: Path):
    pixels = write_mnist(tmp_path / "data")
    data = load(tmp_path / "data", data_format="torchvision/MNIST", image_size=28)
    assert (len(data.train), len(data.val), data.train.images_NCHW.shape[1:]) == (60, 20, (3, 28, 28))
    assert data.classes[7] == "7 - seven"
    assert data.val.labels_N.tolist() == [number % 10 for number in range(20)]
    assert torch.equal(data.val.images_NCHW[:, 1], torch.from_numpy(pixels))
    assert data.val_names[3] == "val/3"


def test_unreadable_image_files_are_named_or_skipped_and_counted(tmp_path: Path):
    for part, count in (("train", 8), ("valid", 4), ("test", 1)):
        for name, colour in COLOURS.items():
            for number in range(count):
                save_image(tmp_path / "data" / "country211" / part / name / f"{number}.jpg", colour, number)
    broken = tmp_path / "data" / "country211" / "valid" / "red" / "2.jpg"
    broken.write_bytes(b"broken")
    with pytest.raises(DataError, match=f"{broken} cannot be read"):
        load(tmp_path / "data", data_format="torchvision/Country211")
    data = load(tmp_path / "data", data_format="torchvision/Country211", on_corrupt="skip")
    assert (len(data.train), len(data.val), data.skipped) == (24, 11, 1)
    assert data.val_names[0] == "country211/valid/blue/0.jpg"


def test_a_class_whose_name_no_line_can_show_is_refused(tmp_path: Path):
    for name in ("tea", "a\x1b[2J"):
        save_image(tmp_path / "eurosat" / "2750" / name / "1.jpg", (9, 9, 9), 1)
    with pytest.raises(DataError, match=r"has the class 'a\\x1b\[2J', whose name"):
        load(tmp_path, data_format="torchvision/EuroSAT")


def test_a_dataset_without_a_validation_split_is_split_by_class(tmp_path: Path):
    for name, colour in COLOURS.items():
        for number in range(10):
            save_image(tmp_path / "data" / "eurosat" / "2750" / name / f"{number}.jpg", colour, number)
    data = load(tmp_path / "data", data_format="torchvision/EuroSAT")
    assert (len(data.train), len(data.val), data.classes) == (24, 6, sorted(COLOURS))


def test_files_other_than_the_published_ones_are_rejected(tmp_path: Path):
    place = tmp_path / "data" / "cifar-100-python"
    place.mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (place / name).write_bytes(pickle.dumps({"data": []}))
    with pytest.raises(DataError, match="doesn't hold torchvision's CIFAR100"):
        load(tmp_path / "data", data_format="torchvision/CIFAR100")


def test_a_damaged_dataset_is_rejected(tmp_path: Path):
    write_mnist(tmp_path / "data")
    labels = tmp_path / "data" / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-5])
    with pytest.raises(DataError, match="doesn't hold torchvision's MNIST"):
        load(tmp_path / "data", data_format="torchvision/MNIST")


def test_labels_and_images_of_unequal_number_are_rejected(tmp_path: Path):
    write_mnist(tmp_path / "data")
    labels = tmp_path / "data" / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">2I", 0x801, 59) + labels.read_bytes()[8:-1])
    with pytest.raises(DataError, match="doesn't hold torchvision's MNIST"):
        load(tmp_path / "data", data_format="torchvision/MNIST")


def test_a_label_out_of_range_is_named(tmp_path: Path):
    write_mnist(tmp_path / "data")
    labels = tmp_path / "data" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0b")
    with pytest.raises(DataError, match=r"MNIST/val/19 has the label 11, .* 0 to 9"):
        load(tmp_path / "data", data_format="torchvision/MNIST")


def test_nothing_is_ever_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from shoestring_trainer.training.vision_compat import datasets

    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("asked for the internet")

    for name in DATASETS:
        monkeypatch.setattr(getattr(datasets, name), "download", fetch, raising=False)
        monkeypatch.setattr(getattr(datasets, name), "_download", fetch, raising=False)
        with pytest.raises(DataError):
            load(tmp_path / "nothing", data_format=PREFIX + name)


def test_a_recipe_trains_on_a_torchvision_dataset(tmp_path: Path):
    write_mnist(tmp_path / "data")
    params = {"epochs": 2, "batch_size": 16, "width": 4, "image_size": 28, "crop_padding": 2, "cutout": 4}
    data = {"train": str(tmp_path / "data"), "format": "torchvision/MNIST"}
    run = finished(tmp_path / "run", recipe="imagefolder/resnet9", params=params, data=data)
    card = json.loads(run.part("model.json"))
    assert card["images"] == {"train": 60, "val": 20, "skipped": 0}
