# SPDX-License-Identifier: Apache-2.0
"""Augmentation of a whole batch at once, on its device. What happens to an image depends only on its own draws.

Each function takes images_NCHW and draws_N…, uniform in [0, 1). Images stay bytes while pixels only move, which
is a quarter of the memory to touch, and are floats from 0 (black) to 1 (white) where they are computed with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.randomness import DRAWS_PER_SAMPLE, FLIP
from shoestring_trainer.training.settings import Settings


def draws_needed(settings: Settings) -> int:
    """How many numbers `augment` wants for each image."""
    more = settings.color_jitter or settings.crop_scale or settings.crop_scale_schedule
    return 2 * DRAWS_PER_SAMPLE if more else DRAWS_PER_SAMPLE


def augment(
    images_NCHW: Tensor, draws_NK: Tensor, settings: Settings, mean: Sequence[float],
    white: float = 1.0, crop: RandomCrop | None = None,
) -> Tensor:  # fmt: skip
    """Apply what the settings ask for: random crop, jitter, rotate and shift, crop, flip, cutout.

    mean     of the data, by channel
    white    what is 1.0, if images are bytes
    crop     the random crop to cut out and scale; None: none
    returns  floats, channels last in memory
    """
    if crop:
        images_NCHW = crop_and_scale(as_floats(images_NCHW, white), draws_NK[:, [3, 4, 11, 12]], crop)
    if settings.color_jitter:
        images_NCHW = jitter(as_floats(images_NCHW, white), draws_NK[:, 8:11], settings.color_jitter)
    if settings.rotate or settings.translate:
        images_NCHW = as_floats(images_NCHW, white)
        images_NCHW = rotate_and_shift(images_NCHW, draws_NK[:, 0:3], settings.rotate, settings.translate)
    if settings.crop_padding:
        images_NCHW = pad_and_crop(images_NCHW, draws_NK[:, 3:5], settings.crop_padding)
    if settings.flip or settings.alternating_flip:
        images_NCHW = torch.where(draws_NK[:, FLIP, None, None, None] < 0.5, images_NCHW.flip(3), images_NCHW)
    images_NCHW = as_floats(images_NCHW, white)
    if settings.cutout:
        images_NCHW = cutout(images_NCHW, draws_NK[:, 6:8], settings.cutout, mean)
    return images_NCHW


def as_floats(images_NCHW: Tensor, white: float) -> Tensor:
    """Bytes as floats in which `white` is 1; floats as they are."""
    if images_NCHW.is_floating_point():
        return images_NCHW
    return images_NCHW.to(torch.float32, memory_format=torch.channels_last).div_(white)


@dataclass(frozen=True)
class RandomCrop:
    """A crop of random place, area and shape.

    size       pixels a side of what it is scaled to
    scale      smallest share of the image's area; the largest is all of it
    aspects_N  width / height that each image had before it was squeezed into its square; None: it was square
    """

    size: int
    scale: float
    aspects_N: Tensor | None


CROP_SHAPES = (3 / 4, 4 / 3)
"""Width / height of a random crop, drawn evenly on a logarithmic scale: as torchvision's RandomResizedCrop."""


def crop_and_scale(images_NCHW: Tensor, draws_N4: Tensor, crop: RandomCrop) -> Tensor:
    """Cut out a share between `crop.scale` and 1 of each image, of a shape in CROP_SHAPES, and scale it to a square.

    A crop wider or higher than the image is cut down to it. Areas and shapes are those of the unsqueezed image.
    """
    area_N = crop.scale + (1 - crop.scale) * draws_N4[:, 2]
    low, high = (math.log(shape) for shape in CROP_SHAPES)
    shape_N = torch.exp(low + (high - low) * draws_N4[:, 3])
    if crop.aspects_N is not None:
        shape_N = shape_N / crop.aspects_N
    sides_N2 = torch.stack([(area_N * shape_N).sqrt(), (area_N / shape_N).sqrt()], dim=1).clamp(max=1.0)
    centres_N2 = (1 - sides_N2) * (2 * draws_N4[:, :2] - 1)  # in the coordinates of grid_sample: -1 to 1
    matrices_N23 = torch.cat([torch.diag_embed(sides_N2), centres_N2[:, :, None]], dim=2)
    shape = [*images_NCHW.shape[:2], crop.size, crop.size]
    grid_NHW2 = F.affine_grid(matrices_N23, shape, align_corners=False)
    return F.grid_sample(images_NCHW, grid_NHW2, padding_mode="border", align_corners=False)


def jitter(images_NCHW: Tensor, draws_N3: Tensor, strength: float) -> Tensor:
    """Brightness, then contrast, then saturation times 1 ± `strength`, each held within black and white.

    Contrast moves an image away from its mean grey, saturation each pixel from its own; grey is ITU-R BT.601's.
    """
    factors_N3111 = (1 + strength * (2 * draws_N3 - 1))[..., None, None, None]
    images_NCHW = (images_NCHW * factors_N3111[:, 0]).clamp(0, 1)
    mean_N111 = _grey(images_NCHW).mean((1, 2, 3), keepdim=True)
    images_NCHW = (mean_N111 + (images_NCHW - mean_N111) * factors_N3111[:, 1]).clamp(0, 1)
    grey_N1HW = _grey(images_NCHW)
    return (grey_N1HW + (images_NCHW - grey_N1HW) * factors_N3111[:, 2]).clamp(0, 1)


def _grey(images_NCHW: Tensor) -> Tensor:
    if images_NCHW.shape[1] != 3:
        return images_NCHW.mean(1, keepdim=True)
    weights_C = images_NCHW.new_tensor([0.299, 0.587, 0.114])
    return (images_NCHW * weights_C[:, None, None]).sum(1, keepdim=True)


def rotate_and_shift(images_NCHW: Tensor, draws_N3: Tensor, degrees: float, pixels: float) -> Tensor:
    """Rotate by up to ±degrees and shift by up to ±pixels each way; what comes in from outside is zero."""
    size = images_NCHW.shape[-1]
    angle_N = (2 * draws_N3[:, 0] - 1) * math.radians(degrees)
    shift_N2 = (2 * draws_N3[:, 1:3] - 1) * (2 * pixels / size)
    rows_N23 = torch.stack(
        [angle_N.cos(), -angle_N.sin(), shift_N2[:, 0], angle_N.sin(), angle_N.cos(), shift_N2[:, 1]], dim=1
    ).view(-1, 2, 3)
    grid_NHW2 = F.affine_grid(rows_N23, list(images_NCHW.shape), align_corners=False)
    return F.grid_sample(images_NCHW, grid_NHW2, padding_mode="zeros", align_corners=False)


def pad_and_crop(images_NCHW: Tensor, draws_N2: Tensor, pad: int) -> Tensor:
    """Pad by reflection, then cut a window of the old size at a whole-pixel place.

    Nothing is padded: where a window sticks out, its pixels are looked up on the other side of the edge.
    Raises UserError for a padding as large as the images.
    """
    count, channels, height, width = images_NCHW.shape
    if pad >= min(height, width):
        raise UserError(f"crop is {pad} pixels of padding, images have {min(height, width)} a side; lower crop")
    device = images_NCHW.device
    top_N, left_N = (draws_N2 * (2 * pad + 1)).long().sub(pad).unbind(1)
    rows_NH = _reflected(top_N[:, None] + torch.arange(height, device=device), height)
    columns_NW = _reflected(left_N[:, None] + torch.arange(width, device=device), width)
    rows_NH += height * torch.arange(count, device=device)[:, None]
    pixels_P = (width * rows_NH[:, :, None] + columns_NW[:, None, :]).flatten()
    # one gather of whole pixels for the batch (a tenth of the time of padding it and indexing by row and column)
    pixels_PC = images_NCHW.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, pixels_P)
    return pixels_PC.view(count, height, width, channels).permute(0, 3, 1, 2)


def _reflected(at: Tensor, size: int) -> Tensor:
    """Positions outside 0 … size − 1 mirrored at the edges."""
    return (size - 1) - ((size - 1) - at.abs()).abs()


def cutout(images_NCHW: Tensor, draws_N2: Tensor, side: int, mean: Sequence[float]) -> Tensor:
    """Paint a square, whole inside the image, with the data's mean."""
    height, width = images_NCHW.shape[-2:]
    side = min(side, height, width)
    device = images_NCHW.device
    top_N = (draws_N2[:, 0] * (height - side + 1)).long()
    left_N = (draws_N2[:, 1] * (width - side + 1)).long()
    rows_H, columns_W = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows_NH = (rows_H >= top_N[:, None]) & (rows_H < top_N[:, None] + side)
    in_columns_NW = (columns_W >= left_N[:, None]) & (columns_W < left_N[:, None] + side)
    blank_N1HW = (in_rows_NH[:, :, None] & in_columns_NW[:, None, :])[:, None]
    return torch.where(blank_N1HW, images_NCHW.new_tensor(mean).view(1, -1, 1, 1), images_NCHW)
