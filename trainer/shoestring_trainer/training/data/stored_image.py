# SPDX-License-Identifier: Apache-2.0
"""An image as shards hold it: its file as it is, or scaled down and encoded again if it is larger than needed."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from shoestring_trainer.training.data.image_files import (
    REPAIR,
    TRANSPOSED_ORIENTATIONS,
    file_content,
    read_exif_orientation,
    require_decodable,
    turns,
    unreadable,
)
from shoestring_trainer.training.errors import DataError

SKIP_OPTION = "--on-corrupt skip"
_REMEDY = f"{REPAIR}, or leave it out with {SKIP_OPTION}"
_EXTENSIONS = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm",
}  # fmt: skip
"""By Pillow's format. Images of other formats are always encoded again: readers of shards may not know them."""


@dataclass(frozen=True)
class StoredImage:
    """The bytes of an image's file, and width and height of the original as it is shown."""

    content: bytes
    extension: str
    width: int
    height: int


def store_image(opener: Callable[[], Image.Image], path: Path, side: int, quality: int) -> StoredImage:
    """Return the image as shards hold it. Raises DataError, naming `path`, if any part of it can't be decoded.

    side     pixels: an image whose shorter side is longer is scaled down to it, and saved as JPEG
    quality  of that JPEG
    """
    try:
        with opener() as opened:
            return _store(opened, path, side, quality)
    except DataError:
        raise
    except Exception as error:  # a damaged image can raise anything
        raise unreadable(path, error, _REMEDY) from error


def _store(opened: Image.Image, path: Path, side: int, quality: int) -> StoredImage:
    require_decodable(opened, path, _REMEDY)
    content, format_ = file_content(opened), opened.format or ""
    orientation = read_exif_orientation(opened)
    size = opened.size[::-1] if orientation in TRANSPOSED_ORIENTATIONS else opened.size
    if min(size) <= side and format_ in _EXTENSIONS:
        opened.load()
        return StoredImage(content, _EXTENSIONS[format_], *size)
    factor = min(1.0, side / min(size))
    width, height = (max(1, round(factor * pixels)) for pixels in opened.size)
    opened.draft(None, (2 * width, 2 * height))  # a JPEG is decoded at a reduced size, of twice as many pixels at least
    image = opened.convert("L" if opened.mode == "L" else "RGB")
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    if orientation != 1:
        image = image.transpose(turns()[orientation])
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return StoredImage(file.getvalue(), "jpg", *size)
