# SPDX-License-Identifier: Apache-2.0
"""Decode ordinary JPEGs in batches on the GPU, and resize them there as `decode_image` does. Pillow does the rest."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import deterministic

from shoestring_trainer.training.data.decoding import ResizeSpec
from shoestring_trainer.training.data.image_files import TRANSPOSED_ORIENTATIONS, file_content, read_exif_orientation
from shoestring_trainer.training.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

JpegDecoder = Callable[[list[Tensor]], list[Tensor]]
"""Decode JPEG files, a 1D uint8 tensor each, to RGB uint8 CHW images on one device, without applying EXIF orientation.

Raises RuntimeError if one of them can't be decoded.
"""

MAX_GPU_PIXELS = 1 << 24
"""Larger images go to Pillow, which decodes them at reduced size; a batch of them would fill a small GPU."""
_END_OF_IMAGE = b"\xff\xd9"
_GPU_LOCK = Lock()
"""Held while a batch is on the device, so that there is never more than one."""
_FLIP_DIMS = {1: (), 2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}
"""By EXIF orientation: dimensions of CHW to flip, after the transposed orientations have been transposed."""


@dataclass(frozen=True)
class _Jpeg:
    encoded: Tensor
    orientation: int


def nvjpeg_decoder(device: torch.device) -> JpegDecoder:
    """Return nvJPEG's decoder, through torchvision. Raises UserError, with the remedy, if it isn't available here."""
    if device.type != "cuda":
        raise UserError(
            "decode_device is gpu, and this machine has no CUDA device; rent machines with a GPU, or set "
            "decode_device: cpu"
        )
    from shoestring_trainer.training.vision_compat import io as vision_io

    memory: Any = deterministic

    def decode_all(encoded: list[Tensor]) -> list[Tensor]:
        # nvJPEG writes on its own stream, which doesn't wait for ours (pytorch/vision#9606): neither for kernels that
        # still read memory about to be reused, nor for the fill of new memory that deterministic algorithms ask for.
        if torch.cuda.is_initialized():
            torch.cuda.synchronize(device)
        fill = memory.fill_uninitialized_memory
        memory.fill_uninitialized_memory = False
        try:
            images: list[Tensor] = vision_io.decode_jpeg(encoded, mode=vision_io.ImageReadMode.RGB, device=device)
        finally:
            memory.fill_uninitialized_memory = fill
        return images

    try:
        decode_all([_probe_jpeg()])
    except RuntimeError as error:
        raise UserError(
            f"decode_device is gpu, and torchvision can't decode on this GPU ({str(error).splitlines()[0]}); install "
            "matching CUDA builds of torch and torchvision, or set decode_device: cpu"
        ) from error
    return decode_all


def decode_jpegs(
    openers: Sequence[Callable[[], Image.Image]], specs: Sequence[ResizeSpec], decoder: JpegDecoder
) -> list[tuple[Tensor, float] | None]:
    """Return for each image what `decode_image` returns; None if `decode_image` must decode it, or report its error."""
    jpegs = [(index, jpeg) for index, opener in enumerate(openers) if (jpeg := _read_if_supported(opener))]
    results: list[tuple[Tensor, float] | None] = [None] * len(openers)
    with _GPU_LOCK:
        images = _decode([jpeg.encoded for _, jpeg in jpegs], decoder)
        upright = [
            (index, _apply_orientation(image_CHW, jpeg.orientation))
            for (index, jpeg), image_CHW in zip(jpegs, images, strict=True)
            if image_CHW is not None
        ]
        resized = [(index, _resize(image_CHW, specs[index]), image_CHW.shape) for index, image_CHW in upright]
        for index, image_CHW, (_, height, width) in resized:  # all kernels are queued before the first copy waits
            results[index] = image_CHW.cpu(), width / height
    return results


def _read_if_supported(opener: Callable[[], Image.Image]) -> _Jpeg | None:
    """Read an image's file, if it is a complete JPEG that nvJPEG can't misinterpret; else return None."""
    try:
        with opener() as opened:
            content = file_content(opened)
            small = opened.width * opened.height <= MAX_GPU_PIXELS
            if not small or not _is_common(opened) or not content.endswith(_END_OF_IMAGE):
                return None
            return _Jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), read_exif_orientation(opened))
    except Exception:  # noqa: BLE001 - `decode_image` raises the same error again, with a message for users
        return None


def _is_common(opened: Image.Image) -> bool:
    """Return whether nvJPEG decodes a JPEG right: grayscale or YCbCr, as nearly all are.

    Some store RGB (marked in one of two ways) or CMYK. Grayscale with sampling factors of 2 x 2, which mean nothing for
    a single component, comes out of nvJPEG with its blocks in the wrong order.
    """
    if opened.format != "JPEG" or opened.mode not in ("L", "RGB"):
        return False
    layers = getattr(opened, "layer", ())
    if opened.mode == "L":
        return [layer[1:3] for layer in layers] == [(1, 1)]
    return opened.info.get("adobe_transform", 1) == 1 and bytes(layer[0] for layer in layers) != b"RGB"


def _decode(encoded: list[Tensor], decoder: JpegDecoder) -> list[Tensor | None]:
    """Decode a batch; if it fails, decode each image alone, and return None for those that fail again.

    An image's result must not depend on the others in its batch, which differ from machine to machine.
    """
    if not encoded:
        return []
    try:
        return list(decoder(encoded))
    except RuntimeError:
        if len(encoded) == 1:
            return [None]
        torch.cuda.empty_cache()  # nvJPEG allocates outside PyTorch's caching allocator, which may hold freed memory
        return [image for jpeg in encoded for image in _decode([jpeg], decoder)]


def _apply_orientation(image_CHW: Tensor, orientation: int) -> Tensor:
    if orientation in TRANSPOSED_ORIENTATIONS:
        image_CHW = image_CHW.transpose(1, 2)
    return image_CHW.flip(_FLIP_DIMS[orientation])


def _resize(image_CHW: Tensor, spec: ResizeSpec) -> Tensor:
    """Resize and crop as Pillow does: columns first, rounded to whole bytes in between."""
    _, height, width = image_CHW.shape
    step = min(height / spec.height, width / spec.width) / spec.zoom
    visible = (height, width) if spec.stretch else (step * spec.height, step * spec.width)
    rows_HS = _bilinear_weights(height, visible[0], spec.height, image_CHW.device)
    columns_WS = _bilinear_weights(width, visible[1], spec.width, image_CHW.device)
    narrow_CHW = (image_CHW.float() @ columns_WS.T).add_(0.5).floor_()
    return (rows_HS @ narrow_CHW).add_(0.5).byte()


def _bilinear_weights(source: int, visible: float, pixels: int, device: torch.device) -> Tensor:
    """Return the weight of each of a line's `source` pixels in each of `pixels` output pixels, over the middle
    `visible` pixels.

    A triangle filter, two output pixels wide, or two source pixels when enlarging: Pillow's BILINEAR.
    """
    step = visible / pixels
    output_P = (source - visible) / 2 + (torch.arange(pixels, device=device, dtype=torch.float64) + 0.5) * step
    source_S = torch.arange(source, device=device, dtype=torch.float64) + 0.5
    weights_PS = (1 - (source_S - output_P[:, None]).abs() / max(step, 1.0)).clamp_(min=0)
    return (weights_PS / weights_PS.sum(1, keepdim=True)).float()


def _probe_jpeg() -> Tensor:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "jpeg")
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
