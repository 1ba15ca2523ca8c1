# SPDX-License-Identifier: Apache-2.0
"""Say what a file is that was expected to be an image, by its first bytes."""

from __future__ import annotations

from collections.abc import Sequence

_KINDS: Sequence[tuple[bytes, str]] = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the image: run `git lfs pull`"),
    (b"\xff\xd8", "a JPEG that is damaged or cut off"),
    (b"\x89PNG", "a PNG that is damaged or cut off"),
    (b"GIF8", "a GIF that is damaged or cut off"),
    (b"BM", "a BMP that is damaged or cut off"),
    (b"II*\0", "a TIFF that is damaged or cut off"),
    (b"MM\0*", "a TIFF that is damaged or cut off"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "PostScript, which can't be read: convert it to JPEG or PNG"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\0\0\0\x0cJXL ", "JPEG XL, which can't be read: convert it to JPEG or PNG"),
    (b"\xff\x0a", "JPEG XL, which can't be read: convert it to JPEG or PNG"),
)
_ISO_MEDIA = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
"""Formats by the brand after `ftyp`."""


def describe_signature(content: bytes) -> str:
    """Return what `content`, which no decoder knows, seems to be."""
    if not content:
        return "it is empty"
    if not content.strip(b"\0"):
        return "it holds zeros only: was it copied to its end?"
    if content[4:8] == b"ftyp":
        name = _ISO_MEDIA.get(content[8:12])
        return f"it is {name}, which can't be read: convert it to JPEG or PNG" if name else "it is a video"
    if content[:4] == b"RIFF":
        return "it is a WebP that is damaged or cut off" if content[8:12] == b"WEBP" else "it is sound or video"
    if kind := next((kind for start, kind in _KINDS if content.startswith(start)), None):
        return f"it is {kind}"
    text = content[:1000].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "it is an HTML page, as a failed download leaves it"
    if text.startswith((b"<svg", b"<?xml")):
        return "it is SVG or other XML"
    return f"it is in no known format; its first bytes are {content[:12]!r}"
