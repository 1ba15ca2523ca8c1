# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 as its authors publish it: a folder in the binary or the Python version, verified by SHA-1."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shoestring_core.image_folders import CIFAR10_FILES, CIFAR10_FOLDERS, no_cifar10

from shoestring_trainer.training.data.confined_files import read_confined, require_confined
from shoestring_trainer.training.data.dataset import ImageDataset, LabeledImages, build_dataset
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.settings import Settings

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
RECORD_BYTES = 1 + 3 * 32 * 32
*TRAIN, TEST = CIFAR10_FILES
SHA1 = {
    "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch": "67eb016db431130d61cd03c7ad570b013799c88c",
}
"""Of each file of the binary version, from MXNet's gluon.data.vision.CIFAR10."""

_ALLOWED_GLOBALS = {
    ("numpy", "dtype"), ("numpy", "ndarray"), ("_codecs", "encode"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"), ("numpy.core.numeric", "_frombuffer"),
}  # fmt: skip


def load_cifar10(folder: Path, settings: Settings) -> ImageDataset:
    """Load CIFAR-10 from `folder`, which holds data_batch_1 … 5 and test_batch (with or without .bin), itself or in
    cifar-10-batches-bin or cifar-10-batches-py. The test batch is the validation set.

    Raises DataError, naming the file and the remedy, if one is missing, truncated or, with `verify_checksums`, differs
    from the published one.
    """
    if settings.image_size != 32:
        raise DataError(
            f"CIFAR-10's images have 32 pixels a side; leave image_size at 32 instead of {settings.image_size}"
        )
    files_folder, suffix = _find_files(folder)
    records = {name: _read_records(files_folder / f"{name}{suffix}") for name in (*TRAIN, TEST)}
    sha1 = {name: hashlib.sha1(record.tobytes(), usedforsecurity=False).hexdigest() for name, record in records.items()}
    if settings.verify_checksums:
        for name, actual in sha1.items():
            if actual != SHA1[name]:
                raise DataError(
                    f"{files_folder / (name + suffix)} isn't the published file (SHA-1 of its records {actual}, "
                    f"published {SHA1[name]}); fetch it again, or set verify_checksums: false to train on it anyway"
                )
    split = {"data": "cifar10", "val": TEST, "sha1": sha1}
    train = np.concatenate([records.pop(name) for name in TRAIN])
    return build_dataset(_to_images(train), _to_images(records[TEST]), CLASSES, max_value=255.0, split=split)


def _find_files(folder: Path) -> tuple[Path, str]:
    """Return the folder that holds the files, and the suffix of their names."""
    for candidate in (folder / name for name in CIFAR10_FOLDERS):
        require_confined(candidate)
        for suffix in (".bin", ""):
            if any((candidate / f"{name}{suffix}").exists() for name in (*TRAIN, TEST)):
                return candidate, suffix
    raise DataError(str(no_cifar10(folder)))


def _read_records(path: Path) -> np.ndarray[Any, Any]:
    """Return a file's records, uint8 N x 3,073: the label, then the red, green and blue planes, row by row."""
    try:
        content = read_confined(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; fetch CIFAR-10 again") from error
    records = _parse_binary(content, path) if path.suffix == ".bin" else _parse_pickle(content, path)
    if (invalid := (records[:, 0] >= len(CLASSES)).nonzero()[0]).size:
        raise DataError(
            f"record {invalid[0]} of {path} has the label {records[invalid[0], 0]}, CIFAR-10 has 0 to 9 "
            f"({invalid.size} records like it); fetch it again"
        )
    return records


def _parse_binary(content: bytes, path: Path) -> np.ndarray[Any, Any]:
    if not content or len(content) % RECORD_BYTES:
        raise DataError(
            f"{path} has {len(content)} bytes, not a multiple of its record's {RECORD_BYTES}; fetch it again"
        )
    return np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)


def _parse_pickle(content: bytes, path: Path) -> np.ndarray[Any, Any]:
    """Unpickle without running code from the file: only numpy arrays are allowed."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = _to_uint8(batch[b"data"]), _to_uint8(batch[b"labels"])
        pixels, labels = pixels.reshape(-1, RECORD_BYTES - 1), labels.reshape(-1, 1)
        if not len(pixels):
            raise ValueError("no images")
        return np.concatenate([labels, pixels], axis=1)
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"{path} isn't a batch of the Python version of CIFAR-10 ({type(error).__name__}: {error}); fetch it again"
        ) from error


def _to_uint8(values: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Convert to uint8. Raises ValueError if values don't fit: pixels scaled to 0 … 1 would all become black."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() <= 255):
        raise ValueError(f"{array.dtype} values that aren't all integers from 0 to 255")
    return array.astype(np.uint8)


class _ArrayUnpickler(pickle.Unpickler):  # noqa: S301 - find_class allows nothing but arrays
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it references {module}.{name}")
        return super().find_class(module, name)


def _to_images(records: np.ndarray[Any, Any]) -> LabeledImages:
    labels, pixels = torch.from_numpy(records[:, 0].astype(np.int64)), torch.from_numpy(records[:, 1:].copy())
    return LabeledImages(pixels.reshape(-1, 3, 32, 32), labels)
