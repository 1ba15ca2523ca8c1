# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 from a folder: both layouts give the same pictures, and files that aren't right are named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from shoestring_trainer.training import cifar10
from shoestring_trainer.training.cifar10 import TEST, TRAIN, load_cifar10
from shoestring_trainer.training.faults import DataError
from shoestring_trainer.training.settings import Settings

UNCHECKED = Settings(check_files=False)


def records(number: int, count: int = 20) -> np.ndarray:
    """Pictures whose brightness tells their class, as records of the binary version."""
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
def test_both_layouts_hold_the_same_pictures(tmp_path: Path, protocol: int):
    binary = load_cifar10(write_binary(tmp_path / "binary"), UNCHECKED)
    python = load_cifar10(write_python(tmp_path / "python", protocol), UNCHECKED)
    assert binary.split == python.split
    assert torch.equal(binary.train.bytes_NCHW, python.train.bytes_NCHW)
    assert torch.equal(binary.held_out.labels_N, python.held_out.labels_N)
    assert (len(binary.train), len(binary.held_out), len(binary.classes)) == (100, 20, 10)
    assert binary.train.bytes_NCHW.dtype == torch.uint8
    # row by row, plane by plane
    assert torch.equal(binary.train.bytes_NCHW[3].flatten(), torch.from_numpy(records(0)[3, 1:].copy()))


def test_the_folder_may_be_the_one_with_the_files(tmp_path: Path):
    inside = write_binary(tmp_path) / "cifar-10-batches-bin"
    assert load_cifar10(inside, UNCHECKED).fingerprint == load_cifar10(tmp_path, UNCHECKED).fingerprint


def test_files_that_arent_the_published_ones_are_refused_unless_allowed(tmp_path: Path, monkeypatch):
    folder = write_binary(tmp_path)
    with pytest.raises(DataError, match=r"data_batch_1\.bin isn't the published file.*check_files"):
        load_cifar10(folder, Settings())
    found = load_cifar10(folder, UNCHECKED).split["sha1"]
    monkeypatch.setattr(cifar10, "SHA1", found)
    assert load_cifar10(folder, Settings()).split["sha1"] == found


def test_other_pictures_make_another_fingerprint(tmp_path: Path):
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


def test_a_pickle_that_runs_code_runs_nothing(tmp_path: Path):
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    path = write_python(tmp_path) / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(DataError, match="data_batch_2"):
        load_cifar10(tmp_path, UNCHECKED)
    assert not (tmp_path / "touched").exists()


def test_a_folder_without_cifar10_is_told_what_to_hold(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.train"):
        load_cifar10(tmp_path, UNCHECKED)
