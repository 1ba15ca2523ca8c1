# SPDX-License-Identifier: Apache-2.0
"""Decode one image, from a file or bytes, to RGB uint8 at a given size.

Image files are foreign: a damaged one makes Pillow raise nearly any exception. Whatever goes wrong in one image is
raised as a DataError that names it.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from shoestring_trainer.training.data.confined_files import open_confined
from shoestring_trainer.training.data.file_signatures import describe_signature
from shoestring_trainer.training.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL import Image

MAX_VALUE = 255
MAX_PIXELS = 100_000_000
"""An image that claims more pixels is treated as a decompression bomb."""
MAX_FILE_BYTES = 1 << 29
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "DDS", "AVIF")
"""Formats that are decoded, whatever a file is called. Not EPS: for that, Pillow runs Ghostscript on the content."""
_EXIF_ORIENTATION = 0x0112
TRANSPOSED_ORIENTATIONS = range(5, 9)
"""EXIF orientations whose stored width and height are swapped."""


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


def decode_image(opener: Callable[[], Image.Image], path: Path, resize: ResizeSpec) -> tuple[Tensor, float]:
    """Return an image as RGB uint8, CHW, at the size of `resize`, and its original width / height.

    Applies the EXIF orientation, converts grayscale and CMYK, drops transparency, and takes the first frame of an
    animation. Raises DataError, naming `path`, if the image can't be read.
    """
    try:
        with opener() as opened:
            return _decode(opened, path, resize)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as an image ({first_line(error)}); repair or remove it, or set on_corrupt: skip"
        ) from error


def _decode(opened: Image.Image, path: Path, resize: ResizeSpec) -> tuple[Tensor, float]:
    from PIL import Image, ImageOps

    if opened.width * opened.height > MAX_PIXELS:
        raise DataError(f"{path} claims {opened.width} x {opened.height} pixels; scale it down or remove it")
    if opened.mode[0] in "IF":
        raise DataError(f"{path} has more than 8 bits a channel; convert it to 8 bits, or set on_corrupt: skip")
    orientation = read_exif_orientation(opened)
    transposed = orientation in TRANSPOSED_ORIENTATIONS
    aspect_ratio = opened.height / opened.width if transposed else opened.width / opened.height
    draft_size = (math.ceil(2 * resize.zoom * resize.width), math.ceil(2 * resize.zoom * resize.height))
    # JPEG can be decoded at a reduced size, which is several times faster
    opened.draft("RGB", draft_size[::-1] if transposed else draft_size)
    image = opened.convert("RGB")
    if orientation != 1:
        image = image.transpose(_turns()[orientation])
    size = (resize.width, resize.height)
    if resize.stretch:
        image = image.resize(size, Image.Resampling.BILINEAR)
    else:
        border = (1 - 1 / resize.zoom) / 2
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR, bleed=border)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), aspect_ratio


def _turns() -> dict[int, Image.Transpose]:
    """Return what undoes each EXIF orientation. (Pillow's `exif_transpose` also writes the EXIF block back, which fails
    for values that have nothing to do with the orientation.)"""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip


@contextmanager
def ignored_pillow_warnings() -> Iterator[None]:
    """While images are decoded: Pillow's warnings name no file, and what they are about is read or is an error.

    For the main thread, around the threads that decode: filters are the process's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def decode_file(path: Path, resize: ResizeSpec) -> tuple[Tensor, float]:
    """Decode an image file, see `decode_image`."""
    return decode_image(partial(open_image_file, path), path, resize)


def open_image_file(path: Path) -> Image.Image:
    """Open an image file, read into memory, without decoding it."""
    with open_confined(path) as file:
        return open_image_bytes(file.read(MAX_FILE_BYTES + 1))


def open_image_bytes(content: bytes) -> Image.Image:
    """Open an image from the bytes of its file, without decoding it. For other content, the error says what it is."""
    from PIL import Image, UnidentifiedImageError

    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES >> 20} MiB")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(describe_signature(content)) from None


def read_exif_orientation(opened: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if it is missing or unreadable.

    For TIFF, Pillow applies it while decoding, so this returns 1.
    """
    if opened.format == "TIFF":
        return 1
    try:
        orientation = opened.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a damaged EXIF block can raise anything
        return 1
    return int(orientation) if orientation in range(1, 9) else 1
