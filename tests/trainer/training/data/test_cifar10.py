# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 from a folder: both versions give the same images, and errors name invalid files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shoestring_trainer.training.data import cifar10
from shoestring_trainer.training.data.cifar10 import TEST, TRAIN, load_cifar10
from shoestring_trainer.training.data.dataset import LabeledImages, build_dataset
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.settings import Settings

from tests.trainer.training.gangs import finished, gang

UNCHECKED = Settings(verify_checksums=False)


def records(number: int, count: int = 20) -> np.ndarray:
    """Return images whose brightness encodes their class, as records of the binary version."""
    draw = np.random.default_rng(number)
    labels = (np.arange(count) % 10).astype(np.uint8)
    pixels = np.clip(25 * labels[:, None] + draw.integers(0, 25, (count, 3072)), 0, 255).astype(np.uint8)
    return np.concatenate([labels[:, None], pixels], axis=1)


def write_binary(folder: Path, count: int = 20) -> Path:
    place = folder / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    for number, name in enumerate((*TRAIN, TEST)):
        (place / f"{name}.bin").write_bytes(records(number, count).tobytes())
    return folder


def write_python(folder: Path, protocol: int = 2) -> Path:
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for number, name in enumerate((*TRAIN, TEST)):
        batch = {b"data": records(number)[:, 1:].copy(), b"labels": records(number)[:, 0].tolist()}
        (place / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return folder


@pytest.mark.parametrize("protocol", [2, 5])
def test_the_binary_and_the_python_version_hold_the_same_images(tmp_path: Path, protocol: int):
    binary = load_cifar10(write_binary(tmp_path / "binary"), UNCHECKED)
    python = load_cifar10(write_python(tmp_path / "python", protocol), UNCHECKED)
    assert binary.split == python.split
    assert torch.equal(binary.train.images_NCHW, python.train.images_NCHW)
    assert torch.equal(binary.val.labels_N, python.val.labels_N)
    assert (len(binary.train), len(binary.val), len(binary.classes)) == (100, 20, 10)
    assert binary.train.images_NCHW.dtype == torch.uint8
    # row by row, plane by plane
    assert torch.equal(binary.train.images_NCHW[3].flatten(), torch.from_numpy(records(0)[3, 1:].copy()))


def test_the_folder_may_hold_the_files_directly(tmp_path: Path):
    inside = write_binary(tmp_path) / "cifar-10-batches-bin"
    assert load_cifar10(inside, UNCHECKED).fingerprint == load_cifar10(tmp_path, UNCHECKED).fingerprint


def test_files_other_than_the_published_ones_are_rejected_unless_allowed(tmp_path: Path, monkeypatch):
    folder = write_binary(tmp_path)
    with pytest.raises(DataError, match=r"data_batch_1\.bin isn't the published file.*verify_checksums"):
        load_cifar10(folder, Settings())
    found = load_cifar10(folder, UNCHECKED).split["sha1"]
    monkeypatch.setattr(cifar10, "SHA1", found)
    assert load_cifar10(folder, Settings()).split["sha1"] == found


def test_different_images_have_a_different_fingerprint(tmp_path: Path):
    first = load_cifar10(write_binary(tmp_path / "a"), UNCHECKED).fingerprint
    other = write_binary(tmp_path / "b") / "cifar-10-batches-bin" / "data_batch_3.bin"
    other.write_bytes(records(99).tobytes())
    assert load_cifar10(tmp_path / "b", UNCHECKED).fingerprint != first


@pytest.mark.parametrize("damage", ["removed", "cut short", "emptied", "label"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str):
    path = write_binary(tmp_path) / "cifar-10-batches-bin" / "data_batch_4.bin"
    match damage:
        case "removed":
            path.unlink()
        case "cut short":
            path.write_bytes(path.read_bytes()[:-7])
        case "emptied":
            path.write_bytes(b"")
        case "label":
            path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(DataError, match=str(path)):
        load_cifar10(tmp_path, UNCHECKED)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({b"data": np.random.default_rng(0).random((20, 3072))}, "float64"),
        ({b"labels": [3] * 19 + [300]}, "0 to 255"),
        ({b"labels": [3] * 19 + [10]}, "record 19.*label 10"),
        ({b"labels": [3] * 19 + [-1]}, "0 to 255"),
        ({b"labels": [3] * 19}, "data_batch_2"),
        ({b"data": np.zeros((20, 1024), np.uint8)}, "data_batch_2"),
    ],
    ids=["floats", "label 300", "label 10", "label -1", "a label too few", "grey"],
)
def test_a_batch_of_invalid_values_is_rejected_by_name(tmp_path: Path, change: dict, why: str):
    path = write_python(tmp_path) / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | change))
    with pytest.raises(DataError, match=why) as refused:
        load_cifar10(tmp_path, UNCHECKED)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, -1, 1], [0, 1]], ids=["above", "below", "too few"])
def test_labels_without_class_or_image_are_rejected_for_any_dataset(labels: list[int]):
    images = LabeledImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))
    with pytest.raises(DataError, match="labels"):
        build_dataset(images, images, ["a", "b"], max_value=255.0, split={})


def test_cifar10_as_image_files_is_rejected_unless_allowed(tmp_path: Path):
    draw = np.random.default_rng(1)
    for part, count in (("train", 8), ("test", 2)):
        for name in cifar10.CLASSES:
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{number}.png")
    params = {"epochs": 1, "width": 4, "batch_size": 16}
    data = {"train": str(tmp_path / "data"), "format": "imagefolder"}
    with gang(tmp_path / "refused", recipe="cifar10/page-resnet9", params=params, data=data) as run:
        assert run.wait() == [1]
    (word,) = run.exits()
    assert word["error"]["kind"] == "data"
    assert "verify_checksums: false" in word["error"]["message"]
    run = finished(
        tmp_path / "run", recipe="cifar10/page-resnet9", params=params | {"verify_checksums": False}, data=data
    )
    card = json.loads(run.part("model.json"))
    assert (card["images"]["train"], card["images"]["val"]) == (80, 20)


def test_code_in_a_pickle_is_not_run(tmp_path: Path):
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    path = write_python(tmp_path) / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(DataError, match="data_batch_2"):
        load_cifar10(tmp_path, UNCHECKED)
    assert not (tmp_path / "touched").exists()


def test_a_folder_without_cifar10_raises_an_error_that_says_what_it_must_hold(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.train"):
        load_cifar10(tmp_path, UNCHECKED)
