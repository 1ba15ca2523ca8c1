# SPDX-License-Identifier: Apache-2.0
"""Plain JPEGs, decoded many at a time on the GPU and framed there as `decode` frames them. The rest is Pillow's."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import deterministic

from shoestring_trainer.training.data.decoding import LYING, Frame, read_orientation
from shoestring_trainer.training.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Decoder = Callable[[list[Tensor]], list[Tensor]]
"""Files of JPEGs, a row of bytes each, to what they hold: RGB, uint8, CHW, as stored and not turned, on one device.

Raises RuntimeError if one of them can't be decoded.
"""

LARGEST_ON_GPU = 1 << 24
"""Pixels. Of larger images Pillow need decode a fraction only, and a batch of them would fill a small GPU."""
_END = b"\xff\xd9"
_ONE_AT_A_TIME = Lock()
"""Only one thread has its batch on the device, so that there is never more than one there."""
_FLIPS = {1: (), 2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}
"""By EXIF orientation: axes of CHW to flip, after those that lie have been transposed."""


@dataclass(frozen=True)
class _Jpeg:
    encoded: Tensor
    orientation: int


def nvjpeg(device: torch.device) -> Decoder:
    """nvJPEG, by way of torchvision. Raises UserError, with the remedy, if it can't be had here."""
    if device.type != "cuda":
        raise UserError(
            "decode is gpu, and this machine has no CUDA device; rent machines with a GPU, or set decode: cpu"
        )
    from shoestring_trainer.training.vision_compat import io as vision_io

    memory: Any = deterministic

    def decode_all(encoded: list[Tensor]) -> list[Tensor]:
        # It writes on a stream of its own that waits for nothing in ours (pytorch/vision#9606): not for those who still
        # read what the memory held before, nor for the filling of new memory that deterministic algorithms ask for.
        if torch.cuda.is_initialized():
            torch.cuda.synchronize(device)
        filled = memory.fill_uninitialized_memory
        memory.fill_uninitialized_memory = False
        try:
            images: list[Tensor] = vision_io.decode_jpeg(encoded, mode=vision_io.ImageReadMode.RGB, device=device)
        finally:
            memory.fill_uninitialized_memory = filled
        return images

    try:
        decode_all([_smallest_jpeg()])
    except RuntimeError as error:
        raise UserError(
            f"decode is gpu, and torchvision can't decode on this GPU ({str(error).splitlines()[0]}); install the CUDA "
            "builds of torch and torchvision that belong together, or set decode: cpu"
        ) from error
    return decode_all


def decode_jpegs(
    openers: Sequence[Callable[[], Image.Image]], frames: Sequence[Frame], decoder: Decoder
) -> list[tuple[Tensor, float] | None]:
    """What `decode` gives for each image; None: this one is for `decode`, which also says what is wrong with it."""
    jpegs = [(at, jpeg) for at, opener in enumerate(openers) if (jpeg := _read_plain(opener))]
    found: list[tuple[Tensor, float] | None] = [None] * len(openers)
    with _ONE_AT_A_TIME:
        images = _decode([jpeg.encoded for _, jpeg in jpegs], decoder)
        upright = [
            (at, _turn(image_CHW, jpeg.orientation))
            for (at, jpeg), image_CHW in zip(jpegs, images, strict=True)
            if image_CHW is not None
        ]
        framed = [(at, _scale(image_CHW, frames[at]), image_CHW.shape) for at, image_CHW in upright]
        for at, image_CHW, (_, height, width) in framed:  # all are under way before the first is waited for
            found[at] = image_CHW.cpu(), width / height
    return found


def _read_plain(opener: Callable[[], Image.Image]) -> _Jpeg | None:
    """An image's file, if it is a JPEG whose colours nvJPEG can't mistake, and as far as one can tell a whole one."""
    try:
        with opener() as opened:
            content = _content(opened)
            small = opened.width * opened.height <= LARGEST_ON_GPU
            if not small or not _is_plain(opened) or not content.endswith(_END):
                return None
            return _Jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), read_orientation(opened))
    except Exception:  # noqa: BLE001 - `decode` meets it again, and has the words for it
        return None


def _content(opened: Image.Image) -> bytes:
    file = getattr(opened, "fp", None)
    return file.getvalue() if isinstance(file, io.BytesIO) else b""


def _is_plain(opened: Image.Image) -> bool:
    """Grey, or colours stored as nearly all JPEGs have them: some hold RGB as such, by one of two signs, some CMYK."""
    if opened.format != "JPEG" or opened.mode not in ("L", "RGB"):
        return False
    components = bytes(layer[0] for layer in getattr(opened, "layer", ()))
    return opened.mode == "L" or (opened.info.get("adobe_transform", 1) == 1 and components != b"RGB")


def _decode(encoded: list[Tensor], decoder: Decoder) -> list[Tensor | None]:
    """One that can't be decoded takes its whole batch along. Then each is tried by itself: what an image comes to
    must not depend on those beside it, which differ from machine to machine.
    """
    if not encoded:
        return []
    try:
        return list(decoder(encoded))
    except RuntimeError:
        if len(encoded) == 1:
            return [None]
        torch.cuda.empty_cache()  # nvJPEG takes memory of its own, and what training let go of may be kept from it
        return [alone for one in encoded for alone in _decode([one], decoder)]


def _turn(image_CHW: Tensor, orientation: int) -> Tensor:
    if orientation in LYING:
        image_CHW = image_CHW.transpose(1, 2)
    return image_CHW.flip(_FLIPS[orientation])


def _scale(image_CHW: Tensor, frame: Frame) -> Tensor:
    """The frame's part of the image at its size: columns first and in whole bytes between, as Pillow does it."""
    _, height, width = image_CHW.shape
    step = min(height / frame.height, width / frame.width) / frame.zoom
    seen = (height, width) if frame.squeezed else (step * frame.height, step * frame.width)
    rows_HS = _weights(height, seen[0], frame.height, image_CHW.device)
    columns_WS = _weights(width, seen[1], frame.width, image_CHW.device)
    narrow_CHW = (image_CHW.float() @ columns_WS.T).add_(0.5).floor_()
    return (rows_HS @ narrow_CHW).add_(0.5).byte()


def _weights(source: int, seen: float, pixels: int, device: torch.device) -> Tensor:
    """What each of a line's new pixels takes from its `source` old ones, of which the middle `seen` are shown.

    A triangle around its place, two new pixels wide, or two old ones where it is enlarged: Pillow's BILINEAR.
    """
    step = seen / pixels
    new_P = (source - seen) / 2 + (torch.arange(pixels, device=device, dtype=torch.float64) + 0.5) * step
    old_S = torch.arange(source, device=device, dtype=torch.float64) + 0.5
    weights_PS = (1 - (old_S - new_P[:, None]).abs() / max(step, 1.0)).clamp_(min=0)
    return (weights_PS / weights_PS.sum(1, keepdim=True)).float()


def _smallest_jpeg() -> Tensor:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "jpeg")
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
