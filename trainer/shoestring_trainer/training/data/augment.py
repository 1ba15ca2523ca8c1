# SPDX-License-Identifier: Apache-2.0
"""Augmentation of a whole batch at once, on its device. The result for an image depends only on its own random draws.

Each function takes images_NCHW and draws_N…, uniform in [0, 1). Images stay uint8 while pixels only move, which is a
quarter of the memory traffic; they become float32 in [0, 1] where arithmetic begins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.randomness import DRAWS_PER_SAMPLE, FLIP, more_draws
from shoestring_trainer.training.settings import Settings

ROTATION, PLACE, CUTOUT, JITTER, CROP_SHAPE = slice(0, 3), slice(3, 5), slice(6, 8), slice(8, 11), slice(11, 13)
"""Which of a sample's draws decide what; `PLACE` is that of a crop."""


def draws_per_sample(settings: Settings) -> int:
    """Return how many random draws each image has."""
    needs_more = settings.color_jitter or has_resized_crops(settings)
    return 2 * DRAWS_PER_SAMPLE if needs_more else DRAWS_PER_SAMPLE


def draws_used(settings: Settings) -> list[int]:
    """Return which of an image's draws are used, by `augment` or for the crop that it is decoded in."""
    resized_crops = has_resized_crops(settings)
    groups = [
        (ROTATION, settings.rotate or settings.translate), (PLACE, settings.crop_padding or resized_crops),
        (slice(FLIP, FLIP + 1), settings.flip or settings.alternating_flip), (CUTOUT, settings.cutout),
        (JITTER, settings.color_jitter), (CROP_SHAPE, resized_crops),
    ]  # fmt: skip
    return [number for draws, used in groups if used for number in range(draws.start, draws.stop)]


def flips_come_first(settings: Settings) -> bool:
    """Return whether images are flipped before all else that `augment` does to them, but for a resized crop."""
    before = settings.color_jitter or settings.rotate or settings.translate or settings.crop_padding
    return (settings.flip or settings.alternating_flip) and not before


def are_flipped(draws_NK: Tensor) -> Tensor:
    """Return for each sample whether it is flipped, if some are."""
    return draws_NK[:, FLIP] < 0.5


def has_resized_crops(settings: Settings) -> bool:
    return bool(settings.crop_scale or settings.crop_scale_schedule)


def augment(
    images_NCHW: Tensor, draws_NK: Tensor, settings: Settings, mean_C: Tensor,
    max_value: float = 1.0, resized_crop: RandomResizedCrop | None = None,
) -> Tensor:  # fmt: skip
    """Apply what the settings enable: random resized crop, color jitter, rotation and shift, crop, flip, cutout.

    mean_C        of the dataset
    max_value     the pixel value that becomes 1.0, if images are uint8
    resized_crop  None: no random resized crop
    returns       float32 images, in channels_last memory format
    """
    if resized_crop:
        images_NCHW = random_resized_crop(to_float(images_NCHW, max_value), crop_draws(draws_NK), resized_crop)
    if settings.color_jitter:
        images_NCHW = color_jitter(to_float(images_NCHW, max_value), draws_NK[:, JITTER], settings.color_jitter)
    if settings.rotate or settings.translate:
        images_NCHW = to_float(images_NCHW, max_value)
        images_NCHW = rotate_and_shift(images_NCHW, draws_NK[:, ROTATION], settings.rotate, settings.translate)
    if settings.crop_padding:
        images_NCHW = random_crop(images_NCHW, draws_NK[:, PLACE], settings.crop_padding)
    if settings.flip or settings.alternating_flip:
        images_NCHW = torch.where(are_flipped(draws_NK)[:, None, None, None], images_NCHW.flip(3), images_NCHW)
    images_NCHW = to_float(images_NCHW, max_value)
    if settings.cutout:
        images_NCHW = cutout(images_NCHW, draws_NK[:, CUTOUT], settings.cutout, mean_C)
    return images_NCHW


def crop_draws(draws_NK: Tensor) -> Tensor:
    """Return the four of each sample's draws that give its random resized crop."""
    return torch.cat([draws_NK[:, PLACE], draws_NK[:, CROP_SHAPE]], dim=1)


def to_float(images_NCHW: Tensor, max_value: float) -> Tensor:
    """Convert uint8 images to float32 with `max_value` as 1; return float images unchanged."""
    if images_NCHW.is_floating_point():
        return images_NCHW
    return images_NCHW.to(torch.float32, memory_format=torch.channels_last).div_(max_value)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Parameters of a crop of random position, area and aspect ratio, as torchvision's RandomResizedCrop.

    size             pixels a side of the output
    min_scale        smallest share of the image's area; the largest is 1
    aspect_ratios_N  width / height of each image before it was stretched to a square; None: images were square
    """

    size: int
    min_scale: float
    aspect_ratios_N: Tensor | None


CROP_ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Range of a random resized crop's width / height, drawn log-uniformly, as in torchvision's RandomResizedCrop."""
CROP_TRIES = 10
"""Area and aspect ratio of a crop are drawn so often, until it fits into the image: as in torchvision."""


def random_resized_crop(images_NCHW: Tensor, draws_N4: Tensor, crop: RandomResizedCrop) -> Tensor:
    """Crop a share between `crop.min_scale` and 1 of each image's area and resize it to a square.

    Area and aspect ratio are those of the image before it was stretched to a square.
    """
    sides_N2, centers_N2 = crop_boxes(draws_N4, crop)
    matrices_N23 = torch.cat([torch.diag_embed(sides_N2), centers_N2[:, :, None]], dim=2)
    shape = [*images_NCHW.shape[:2], crop.size, crop.size]
    grid_NHW2 = F.affine_grid(matrices_N23, shape, align_corners=False)
    return F.grid_sample(images_NCHW, grid_NHW2, padding_mode="border", align_corners=False)


def crop_boxes(draws_N4: Tensor, crop: RandomResizedCrop) -> tuple[Tensor, Tensor]:
    """Return sides and centers (x, y) of the crops, distributed as in torchvision's RandomResizedCrop.

    Sides are fractions of the image's, centers in the coordinates of grid_sample, -1 to 1. The first try that fits into
    the image counts; if none does, the crop is the largest one in its middle whose aspect ratio is in the range.
    """
    lowest, highest = CROP_ASPECT_RATIOS
    aspect_N1 = draws_N4.new_ones(len(draws_N4), 1) if crop.aspect_ratios_N is None else crop.aspect_ratios_N[:, None]
    area_NT, ratio_NT = more_draws(draws_N4[:, 2:], 2 * CROP_TRIES).chunk(2, dim=1)
    area_NT = crop.min_scale + (1 - crop.min_scale) * area_NT
    ratio_NT = lowest * (highest / lowest) ** ratio_NT / aspect_N1
    widths_NT = torch.cat([(area_NT * ratio_NT).sqrt(), (highest / aspect_N1).clamp(max=1.0)], dim=1)
    heights_NT = torch.cat([(area_NT / ratio_NT).sqrt(), (aspect_N1 / lowest).clamp(max=1.0)], dim=1)
    first_N1 = ((widths_NT <= 1) & (heights_NT <= 1)).byte().argmax(dim=1, keepdim=True)
    sides_N2 = torch.cat([widths_NT.gather(1, first_N1), heights_NT.gather(1, first_N1)], dim=1)
    centers_N2 = (1 - sides_N2) * (2 * draws_N4[:, :2] - 1)
    return sides_N2, torch.where(first_N1 < CROP_TRIES, centers_N2, 0.0)


def color_jitter(images_NCHW: Tensor, draws_N3: Tensor, strength: float) -> Tensor:
    """Multiply brightness, then contrast, then saturation by 1 ± `strength`, each clamped to [0, 1].

    Contrast blends an image with its mean gray level, saturation each pixel with its own gray level (ITU-R BT.601).
    """
    factors_N3111 = (1 + strength * (2 * draws_N3 - 1))[..., None, None, None]
    images_NCHW = (images_NCHW * factors_N3111[:, 0]).clamp(0, 1)
    mean_N111 = _grayscale(images_NCHW).mean((1, 2, 3), keepdim=True)
    images_NCHW = (mean_N111 + (images_NCHW - mean_N111) * factors_N3111[:, 1]).clamp(0, 1)
    gray_N1HW = _grayscale(images_NCHW)
    return (gray_N1HW + (images_NCHW - gray_N1HW) * factors_N3111[:, 2]).clamp(0, 1)


def _grayscale(images_NCHW: Tensor) -> Tensor:
    if images_NCHW.shape[1] != 3:
        return images_NCHW.mean(1, keepdim=True)
    red_N1HW, green_N1HW, blue_N1HW = images_NCHW.split(1, dim=1)
    gray_N1HW: Tensor = 0.299 * red_N1HW + 0.587 * green_N1HW + 0.114 * blue_N1HW
    return gray_N1HW


def rotate_and_shift(images_NCHW: Tensor, draws_N3: Tensor, degrees: float, pixels: float) -> Tensor:
    """Rotate by up to ±degrees and shift by up to ±pixels in each direction; pixels from outside are zero."""
    size = images_NCHW.shape[-1]
    angle_N = (2 * draws_N3[:, 0] - 1) * math.radians(degrees)
    shift_N2 = (2 * draws_N3[:, 1:3] - 1) * (2 * pixels / size)
    matrices_N23 = torch.stack(
        [angle_N.cos(), -angle_N.sin(), shift_N2[:, 0], angle_N.sin(), angle_N.cos(), shift_N2[:, 1]], dim=1
    ).view(-1, 2, 3)
    grid_NHW2 = F.affine_grid(matrices_N23, list(images_NCHW.shape), align_corners=False)
    return F.grid_sample(images_NCHW, grid_NHW2, padding_mode="zeros", align_corners=False)


def random_crop(images_NCHW: Tensor, draws_N2: Tensor, padding: int) -> Tensor:
    """Pad by reflection, then crop to the original size at a random whole-pixel offset.

    Nothing is actually padded: pixels outside the image are looked up at their reflected positions. Raises UserError
    if the padding is as large as the images.
    """
    count, channels, height, width = images_NCHW.shape
    if padding >= min(height, width):
        raise UserError(
            f"crop_padding is {padding} pixels, images have {min(height, width)} a side; lower crop_padding"
        )
    device = images_NCHW.device
    windows = {side: _reflected_windows(side, padding, device) for side in {height, width}}
    top_N, left_N = (draws_N2 * (2 * padding + 1)).long().unbind(1)
    rows_NH, columns_NW = windows[height][top_N], windows[width][left_N]
    rows_NH += torch.arange(0, count * height, height, device=device)[:, None]
    pixels_P = (width * rows_NH[:, :, None] + columns_NW[:, None, :]).flatten()
    # one gather of whole pixels for the batch takes a tenth of the time of padding and indexing by row and column
    pixels_PC = images_NCHW.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, pixels_P)
    return pixels_PC.view(count, height, width, channels).permute(0, 3, 1, 2)


def _reflected_windows(side: int, padding: int, device: torch.device) -> Tensor:
    """Row k holds which of an axis's `side` pixels the crop at offset k takes: 2 * padding + 1 rows of `side`."""
    pixels = torch.arange(side, dtype=torch.float32, device=device)  # exact: no image has 2²⁴ pixels a side
    return F.pad(pixels[None], (padding, padding), mode="reflect")[0].long().unfold(0, side, 1)


def cutout(images_NCHW: Tensor, draws_N2: Tensor, side: int, mean_C: Tensor) -> Tensor:
    """Fill a random square, entirely inside the image, with the dataset's mean."""
    height, width = images_NCHW.shape[-2:]
    side = min(side, height, width)
    device = images_NCHW.device
    top_N = (draws_N2[:, 0] * (height - side + 1)).long()
    left_N = (draws_N2[:, 1] * (width - side + 1)).long()
    rows_H, columns_W = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows_NH = (rows_H >= top_N[:, None]) & (rows_H < top_N[:, None] + side)
    in_columns_NW = (columns_W >= left_N[:, None]) & (columns_W < left_N[:, None] + side)
    mask_N1HW = (in_rows_NH[:, :, None] & in_columns_NW[:, None, :])[:, None]
    return torch.where(mask_N1HW, mean_C.view(1, -1, 1, 1), images_NCHW)
