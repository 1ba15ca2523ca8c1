# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_trainer predict MODEL IMAGE…`: classify images with a trained model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shoestring_trainer.training.data.decoding import MAX_VALUE, ResizeSpec, decode_file
from shoestring_trainer.training.data.image_folder import walk_files
from shoestring_trainer.training.data.image_index import IMAGE_EXTENSIONS
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.results.exports import Model, read_model

BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What the model holds an image for: (class, probability), likeliest first."""

    file: Path
    guesses: list[tuple[str, float]]


def print_predictions(model: Path, images: Sequence[Path], *, top: int, as_json: bool, skip: bool) -> int:
    """Print a line, or with `as_json` an object in one list, for each image; the number of those left out.

    Raises DataError, naming the file and the remedy, for a model or, without `skip`, an image that can't be read.
    """
    network = read_model(model)
    left_out: list[Path] = []
    found = predict(network, list_files(images), top=top, left_out=left_out if skip else None)
    if as_json:
        print(json.dumps([_as_json(prediction) for prediction in found], indent=1))
    else:
        for prediction in found:
            classes = "  ".join(f"{name} {100 * probability:.1f} %" for name, probability in prediction.guesses)
            print(f"{prediction.file}  {classes}", flush=True)
    return len(left_out)


def predict(
    model: Model, files: Sequence[Path], *, top: int = 1, left_out: list[Path] | None = None
) -> Iterator[Prediction]:
    """Each file's `top` likeliest classes. Images are scaled as the trainer scales them.

    left_out  collects the files that can't be read; None: such a file raises DataError
    """
    top = min(top, len(model.classes))
    for start in range(0, len(files), BATCH):
        readable, images = [], []
        for file in files[start : start + BATCH]:
            try:
                images.append(read_image(file, model.shape, model.zoom))
                readable.append(file)
            except DataError:
                if left_out is None:
                    raise
                left_out.append(file)
        if not images:
            continue
        likeliest = model.logits(torch.stack(images)).softmax(1).topk(top)
        for file, shares, numbers in zip(readable, likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
            guesses = [(model.classes[number], share) for number, share in zip(numbers, shares, strict=True)]
            yield Prediction(file, guesses)


def read_image(file: Path, shape: tuple[int, int, int], zoom: float = 1.0) -> Tensor:
    """An image as a model takes it, CHW, float32 in [0, 1]: short side scaled, then the centre; grey for one channel.

    Raises DataError that names the file.
    """
    channels, height, width = shape
    pixels_CHW = decode_file(file, ResizeSpec(height, width, zoom=zoom))[0].float() / MAX_VALUE
    if channels == 1:
        pixels_CHW = (pixels_CHW * torch.tensor(LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    return pixels_CHW


LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601."""


def list_files(paths: Sequence[Path]) -> list[Path]:
    """The images at `paths`, those below a folder in the order of their names. Raises DataError if one has none."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(file for file in walk_files(path) if file.suffix.lower() in IMAGE_EXTENSIONS)
            if not below:
                raise DataError(f"the folder {path} holds no image; give images, or a folder with some")
            files += below
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"there is no {path}; give images, or a folder with some")
    return files


def _as_json(prediction: Prediction) -> dict[str, object]:
    ranked = [{"class": name, "probability": round(share, 6)} for name, share in prediction.guesses]
    return {"file": str(prediction.file), **ranked[0], "top": ranked}
