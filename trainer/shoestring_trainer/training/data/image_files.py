# SPDX-License-Identifier: Apache-2.0
"""Open image files without decoding them. Free of torch, so that shards are prepared without it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shoestring_trainer.training.data.confined_files import read_confined
from shoestring_trainer.training.data.file_signatures import describe_signature
from shoestring_trainer.training.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000
"""An image that claims more pixels is treated as a decompression bomb."""
MAX_FILE_BYTES = 1 << 29
REPAIR = "repair or remove it"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "DDS", "AVIF")
"""Formats that are decoded, whatever a file is called. Not EPS: for that, Pillow runs Ghostscript on the content."""
_EXIF_ORIENTATION = 0x0112
TRANSPOSED_ORIENTATIONS = range(5, 9)
"""EXIF orientations whose stored width and height are swapped."""


def open_image_file(path: Path) -> Image.Image:
    """Open an image file, read into memory, without decoding it."""
    return open_image_bytes(read_confined(path, MAX_FILE_BYTES))


def open_image_bytes(content: bytes) -> Image.Image:
    """Open an image from the bytes of its file, without decoding it. For other content, the error says what it is."""
    from PIL import Image, UnidentifiedImageError

    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES >> 20} MiB")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(describe_signature(content)) from None


def require_decodable(opened: Image.Image, path: Path, remedy: str) -> None:
    """Raise DataError for an image with too many pixels, or with more than 8 bits of gray."""
    if opened.width * opened.height > MAX_PIXELS:
        raise DataError(f"{path} claims {opened.width} x {opened.height} pixels, more than {MAX_PIXELS:,}; {remedy}")
    if opened.mode[0] in "IF":
        raise DataError(f"{path} has more than 8 bits a channel, which must be converted to 8; {remedy}")


def unreadable(path: Path, error: Exception, remedy: str) -> DataError:
    """Return the error of an image that can't be decoded."""
    why = error.strerror if isinstance(error, OSError) else None
    return DataError(f"{path} cannot be read as an image ({why or first_line(error)}); {remedy}")


def file_content(opened: Image.Image) -> bytes:
    """Return the bytes of the file of an image that is not decoded yet; none if it isn't from bytes in memory."""
    file = getattr(opened, "fp", None)
    return file.getvalue() if isinstance(file, io.BytesIO) else b""


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


def turns() -> dict[int, Image.Transpose]:
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
