# SPDX-License-Identifier: Apache-2.0
"""Decode one image, from a file or bytes, to RGB uint8 at a given size.

Image files are foreign: a damaged one makes Pillow raise nearly any exception. Whatever goes wrong in one image is
raised as a DataError that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from shoestring_trainer.training.data.image_files import (
    REPAIR,
    TRANSPOSED_ORIENTATIONS,
    open_image_file,
    read_exif_orientation,
    require_decodable,
    turns,
    unreadable,
)
from shoestring_trainer.training.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MAX_VALUE = 255


@dataclass(frozen=True)
class ResizeSpec:
    """The size an image is decoded to: it is scaled to cover `zoom` times that size, then center-cropped.

    stretch  scale the whole image to the size instead, ignoring its aspect ratio
    """

    height: int
    width: int
    zoom: float = 1.0
    stretch: bool = False

    @property
    def bytes(self) -> int:
        return 3 * self.height * self.width


def decode_crop(
    opener: Callable[[], Image.Image], path: Path, box: Sequence[float], size: int, remedy: str = REPAIR
) -> Tensor:  # fmt: skip
    """Return a crop of an image as RGB uint8, HWC, resized to a square of `size` pixels a side with antialiasing.

    A JPEG is decoded at the smallest of the sizes that its DCT offers at which the crop has no fewer pixels than the
    result, and resized once.

    box  left, top, width and height of the crop, as fractions of the image as it is shown
    """
    try:
        with opener() as opened:
            return _decode_crop(opened, path, box, size, remedy)
    except DataError:
        raise
    except Exception as error:
        raise unreadable(path, error, remedy) from error


def _decode_crop(opened: Image.Image, path: Path, box: Sequence[float], size: int, remedy: str) -> Tensor:
    from PIL import Image

    require_decodable(opened, path, remedy)
    orientation = read_exif_orientation(opened)
    left, top, width, height = box
    draft_size = (math.ceil(size / width), math.ceil(size / height))
    opened.draft("RGB", draft_size[::-1] if orientation in TRANSPOSED_ORIENTATIONS else draft_size)
    image: Image.Image = opened if opened.mode == "RGB" else opened.convert("RGB")
    if orientation != 1:
        image = image.transpose(turns()[orientation])
    right, bottom = min(1.0, left + width), min(1.0, top + height)
    pixels = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=pixels)))


def decode_image(
    opener: Callable[[], Image.Image], path: Path, resize: ResizeSpec, remedy: str = REPAIR
) -> tuple[Tensor, float]:  # fmt: skip
    """Return an image as RGB uint8, CHW, at the size of `resize`, and its original width / height.

    Applies the EXIF orientation, converts grayscale and CMYK, drops transparency, and takes the first frame of an
    animation. Raises DataError, naming `path`, and with this remedy, if the image can't be read.
    """
    try:
        with opener() as opened:
            return _decode(opened, path, resize, remedy)
    except DataError:
        raise
    except Exception as error:
        raise unreadable(path, error, remedy) from error


def _decode(opened: Image.Image, path: Path, resize: ResizeSpec, remedy: str) -> tuple[Tensor, float]:
    from PIL import Image, ImageOps

    require_decodable(opened, path, remedy)
    orientation = read_exif_orientation(opened)
    transposed = orientation in TRANSPOSED_ORIENTATIONS
    aspect_ratio = opened.height / opened.width if transposed else opened.width / opened.height
    draft_size = (math.ceil(2 * resize.zoom * resize.width), math.ceil(2 * resize.zoom * resize.height))
    # JPEG can be decoded at a reduced size, which is several times faster
    opened.draft("RGB", draft_size[::-1] if transposed else draft_size)
    image = opened.convert("RGB")
    if orientation != 1:
        image = image.transpose(turns()[orientation])
    size = (resize.width, resize.height)
    if resize.stretch:
        image = image.resize(size, Image.Resampling.BILINEAR)
    else:
        border = (1 - 1 / resize.zoom) / 2
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR, bleed=border)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), aspect_ratio


def decode_file(path: Path, resize: ResizeSpec) -> tuple[Tensor, float]:
    """Decode an image file, see `decode_image`."""
    return decode_image(partial(open_image_file, path), path, resize)
