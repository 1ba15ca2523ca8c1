# SPDX-License-Identifier: Apache-2.0
"""The code that recipes reproduce, fetched into .peers/, which git ignores, and CIFAR-10 as it wants it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
REPOSITORIES = {
    "cifar10-airbench": (
        "https://github.com/KellerJordan/cifar10-airbench",
        "f1c599c4af24aca803e3e65a6a7e52a502e09d0e",
    ),
    "cifar10-fast": ("https://github.com/davidcpage/cifar10-fast", "f79e8b89bb2994b5caaaf7289c68903d15a37c2e"),
}


def fetch_references(*names: str) -> tuple[Path, list[str]]:
    """Return the folder of the reference code, and notes on what of `names` couldn't be fetched."""
    if folder := os.environ.get("REFERENCE"):
        return Path(folder).resolve(), []
    references, notes = ROOT / ".peers", []
    for name in names:
        repository, commit = REPOSITORIES[name]
        if (references / name).exists():
            continue
        clone = ["git", "clone", "-q", repository, str(references / name)]
        checkout = ["git", "-C", str(references / name), "checkout", "-q", commit]
        try:
            for command in (clone, checkout):
                subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        except subprocess.SubprocessError as error:
            shutil.rmtree(references / name, ignore_errors=True)
            said = getattr(error, "stderr", None) or str(error)
            notes.append(f"{name} could not be fetched ({said.strip()[-200:]}); give its folder in REFERENCE")
    return references, notes


def convert_cifar10(data: Path, folder: Path) -> None:
    """Write CIFAR-10 as cifar10-airbench caches it: folder/cifar10/{train,test}.pt."""
    source = next(path for path in (data / "cifar-10-batches-bin", data) if (path / "test_batch.bin").exists())
    (folder / "cifar10").mkdir()
    for name, parts in (("train", [f"data_batch_{number}" for number in range(1, 6)]), ("test", ["test_batch"])):
        content = np.concatenate([np.fromfile(source / f"{part}.bin", np.uint8).reshape(-1, 3073) for part in parts])
        pixels = content[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = torch.from_numpy(content[:, 0].astype(np.int64))
        saved = {"images": torch.from_numpy(pixels.copy()), "labels": labels, "classes": [str(n) for n in range(10)]}
        torch.save(saved, folder / "cifar10" / f"{name}.pt")


def write_noise_cifar10(folder: Path, images_per_file: int = 64) -> Path:
    """Write images of noise in the layout of CIFAR-10: five files to train on, one to validate with."""
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    draw = np.random.default_rng(1)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        content = draw.integers(0, 256, (images_per_file, 3073), dtype=np.uint8)
        content[:, 0] %= 10
        content.tofile(folder / "cifar-10-batches-bin" / f"{name}.bin")
    return folder
