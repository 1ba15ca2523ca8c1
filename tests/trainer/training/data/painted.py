# SPDX-License-Identifier: Apache-2.0
"""Images painted for tests, and data sets opened as a rank opens them."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from shoestring_trainer.training.data.images import DataSet
from shoestring_trainer.training.data.sources import Source, open_source
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.task import Task

COLOURS = {"blue": (40, 60, 200), "red": (200, 50, 40), "yellow": (220, 210, 50)}
SINGLE_PROCESS = DistributedContext(0, 1, 0, torch.device("cpu"))


def image(colour: tuple[int, int, int], number: int, mode: str = "RGB") -> Image.Image:
    """An image of one colour with noise that depends on `number`."""
    noise = np.random.default_rng(number).integers(-30, 30, (24, 20, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).convert(mode)


def paint(path: Path, colour: tuple[int, int, int], number: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image(colour, number, mode).save(path, quality=95)


def encoded(image: Image.Image, kind: str = "jpeg", **options) -> bytes:
    """The bytes of an image file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def source(
    place: Path,
    seed: int = 1,
    kind: str = "imagefolder",
    form: str = "imagefolder",
    scratch: Path | None = None,
    **settings,
) -> Source:
    """What a rank that trains alone gets for `data: {train: place, format: form}`; it decodes beside `place`."""
    task = Task(
        place.parent, "job", 1, "imagefolder/any", {}, place, seed, None, None, None, None, None, None,
        data_format=form, scratch=scratch,
    )  # fmt: skip
    return open_source(kind, task, seed, replace(Settings(image_size=16, batch_size=1), **settings), SINGLE_PROCESS)


def load(place: Path, seed: int = 1, *, rectangular: bool = False, **options) -> DataSet:
    """The images of `source`, at the size of the settings."""
    return source(place, seed, **options)(0, rectangular)
