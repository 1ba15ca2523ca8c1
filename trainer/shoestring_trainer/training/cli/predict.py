# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_trainer predict MODEL IMAGE…`: classify images with a trained model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from shoestring_core.image_folders import IMAGE_EXTENSIONS
from shoestring_core.terminal_text import printable
from shoestring_core.wording.units import counted
from torch import Tensor

from shoestring_trainer.training.data.decoding import MAX_VALUE, ResizeSpec, decode_file
from shoestring_trainer.training.data.image_files import ignored_pillow_warnings
from shoestring_trainer.training.data.image_folder import walk_files
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.results.exports import Model, read_model

BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """The predicted classes of an image as (class, probability), most probable first."""

    file: Path
    classes: list[tuple[str, float]]


def print_predictions(model: Path, images: Sequence[Path], *, top: int, as_json: bool, skip: bool) -> int:
    """Print a line per image, or with `as_json` a list of objects; return the number of images skipped.

    Raises DataError, with the file and the remedy, for an unreadable model and, unless `skip`, for an unreadable image.
    """
    network = read_model(model)
    skipped: list[Path] = []
    predictions = predict(network, list_files(images), top=top, skipped=skipped if skip else None)
    if as_json:
        print(json.dumps([_as_json(prediction) for prediction in predictions], indent=1))
    else:
        for prediction in predictions:
            classes = "  ".join(f"{name} {100 * probability:.1f} %" for name, probability in prediction.classes)
            print(printable(f"{prediction.file}  {classes}").replace("\n", "\\n"), flush=True)
    return len(skipped)


def predict(
    model: Model, files: Sequence[Path], *, top: int = 1, skipped: list[Path] | None = None
) -> Iterator[Prediction]:
    """Yield the `top` most probable classes of each file. Images are resized as for validation in training.

    skipped  collects the files that can't be read; None: such a file raises DataError
    """
    top = min(top, len(model.classes))
    for start in range(0, len(files), BATCH):
        readable, images = [], []
        for file in files[start : start + BATCH]:
            try:
                with ignored_pillow_warnings():
                    images.append(read_image(file, model.shape, model.zoom))
                readable.append(file)
            except DataError as error:
                if skipped is None:
                    raise
                skipped.append(file)
                sys.stderr.write(f"skipped: {printable(str(error))}\n")
        if not images:
            continue
        logits_NK = model.logits(torch.stack(images))
        if logits_NK.shape[1:] != (len(model.classes),):
            raise DataError(
                f"the model's outputs have the shape {tuple(logits_NK.shape[1:])}, and its description names "
                f"{counted(len(model.classes), 'class', 'classes')}; put the model.json of its job beside it, or "
                "download it again"
            )
        best = logits_NK.softmax(1).topk(top)
        for file, probabilities, indices in zip(readable, best.values.tolist(), best.indices.tolist(), strict=True):
            classes = [(model.classes[index], share) for index, share in zip(indices, probabilities, strict=True)]
            yield Prediction(file, classes)


def read_image(file: Path, shape: tuple[int, int, int], zoom: float = 1.0) -> Tensor:
    """Return an image as model input, CHW, float32 in [0, 1]: resized, center-cropped, grey if it has one channel.

    Raises DataError that names the file.
    """
    channels, height, width = shape
    pixels_CHW = decode_file(file, ResizeSpec(height, width, zoom=zoom))[0].float() / MAX_VALUE
    if channels == 1:
        pixels_CHW = (pixels_CHW * torch.tensor(LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    return pixels_CHW


LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value (ITU-R BT.601)."""


def list_files(paths: Sequence[Path]) -> list[Path]:
    """Return the images at `paths`, those in a folder sorted by path. Raises DataError for a missing or empty path."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(file for file in walk_files(path) if file.suffix.lower() in IMAGE_EXTENSIONS)
            if not below:
                raise DataError(f"the folder {path} contains no images; give images, or a folder of images")
            files += below
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path} does not exist; give images, or a folder of images")
    return files


def _as_json(prediction: Prediction) -> dict[str, object]:
    ranked = [{"class": name, "probability": round(share, 6)} for name, share in prediction.classes]
    return {"file": str(prediction.file), **ranked[0], "top": ranked}
