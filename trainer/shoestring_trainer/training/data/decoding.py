# SPDX-License-Identifier: Apache-2.0
"""One image, from whatever holds it to RGB bytes in a frame."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from shoestring_trainer.training.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

WHITE = 255
LARGEST_PIXELS = 100_000_000
"""An image that claims more pixels is taken for a decompression bomb."""
LARGEST_BYTES = 1 << 29
_ORIENTATION = 0x0112
LYING = range(5, 9)
"""EXIF orientations of images that are stored on their side."""


@dataclass(frozen=True)
class Frame:
    """What an image is decoded to: scaled so that it covers `zoom` times the frame, and the centre cut out.

    squeezed  instead, the whole image is scaled to the frame, whatever its shape
    """

    height: int
    width: int
    zoom: float = 1.0
    squeezed: bool = False

    @property
    def bytes(self) -> int:
        return 3 * self.height * self.width


def decode(opener: Callable[[], Image.Image], path: Path, frame: Frame) -> tuple[Tensor, float]:
    """One image as RGB bytes, CHW, in its frame, and the width / height it had.

    It is turned upright where its EXIF data say how it was held. Grey and CMYK are converted, transparency is dropped,
    and of an animation the first image is taken. Raises DataError, calling it `path`, if it can't be read.
    """
    from PIL import Image, ImageOps

    size = (frame.width, frame.height)
    try:
        with opener() as opened:
            if opened.width * opened.height > LARGEST_PIXELS:
                raise DataError(f"{path} claims {opened.width} x {opened.height} pixels; scale it down or remove it")
            if opened.mode[0] in "IF":
                raise DataError(f"{path} has more than 8 bits a channel; convert it to 8 bits, or set on_corrupt: skip")
            turned = read_orientation(opened)
            aspect = opened.height / opened.width if turned in LYING else opened.width / opened.height
            enough = (math.ceil(2 * frame.zoom * frame.width), math.ceil(2 * frame.zoom * frame.height))
            # JPEG may be decoded smaller, which is several times faster
            opened.draft("RGB", enough[::-1] if turned in LYING else enough)
            image = opened.convert("RGB")
            if turned != 1:
                image = ImageOps.exif_transpose(image)
            if frame.squeezed:
                image = image.resize(size, Image.Resampling.BILINEAR)
            else:
                border = (1 - 1 / frame.zoom) / 2
                image = ImageOps.fit(image, size, Image.Resampling.BILINEAR, bleed=border)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read as an image ({why}); repair or remove it, or set on_corrupt: skip"
        ) from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), aspect


def decode_file(path: Path, frame: Frame) -> tuple[Tensor, float]:
    """`decode` of a file."""
    return decode(partial(open_file, path), path, frame)


def open_file(path: Path) -> Image.Image:
    """An image file, whole in memory, its pixels not decoded yet."""
    with path.open("rb") as file:
        return open_bytes(file.read(LARGEST_BYTES + 1))


def open_bytes(content: bytes) -> Image.Image:
    """An image from the bytes of its file."""
    from PIL import Image

    if len(content) > LARGEST_BYTES:
        raise ValueError(f"more than {LARGEST_BYTES >> 20} MiB")
    return Image.open(io.BytesIO(content))


def read_orientation(opened: Image.Image) -> int:
    """How the camera was held, 1 to 8, by the EXIF data; 1, upright, if they don't say or can't be read.

    TIFF is left to Pillow, which turns it as it decodes.
    """
    if opened.format == "TIFF":
        return 1
    try:
        turned = opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a damaged EXIF block raises anything, and says nothing
        return 1
    return int(turned) if turned in range(1, 9) else 1
