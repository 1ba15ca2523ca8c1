# SPDX-License-Identifier: Apache-2.0
"""Generated images for tests, and datasets opened as a rank opens them."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from shoestring_core.task import TaskData
from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.data.sources import DatasetSource, open_dataset
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.task import LocalTask

COLOURS = {"blue": (40, 60, 200), "red": (200, 50, 40), "yellow": (220, 210, 50)}
SINGLE_PROCESS = DistributedContext(0, 1, 0, torch.device("cpu"))


def sample_image(colour: tuple[int, int, int], number: int, mode: str = "RGB") -> Image.Image:
    """Return an image of one colour with noise that depends on `number`."""
    noise = np.random.default_rng(number).integers(-30, 30, (24, 20, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).convert(mode)


def save_image(path: Path, colour: tuple[int, int, int], number: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sample_image(colour, number, mode).save(path, quality=95)


def encode(image: Image.Image, kind: str = "jpeg", **options) -> bytes:
    """Return the bytes of an image file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def open_source(
    path: Path,
    seed: int = 1,
    kind: str = "imagefolder",
    data_format: str = "imagefolder",
    scratch: Path | None = None,
    place: DistributedContext = SINGLE_PROCESS,
    **settings,
) -> DatasetSource:
    """Open `data: {train: path, format: data_format}` as a rank does; images are decoded beside `path`."""
    task = LocalTask(
        format=1, folder=path.parent, job="job", generation=1, recipe="imagefolder/any", seed=seed, scratch=scratch,
        data=TaskData(train=str(path), format=data_format),
    )  # fmt: skip
    return open_dataset(kind, task, seed, replace(Settings(image_size=16, batch_size=1), **settings), place)


def load(path: Path, seed: int = 1, *, rectangular: bool = False, **options) -> ImageDataset:
    """Return the dataset of `open_source`, at the size of the settings."""
    return open_source(path, seed, **options)(0, rectangular)
