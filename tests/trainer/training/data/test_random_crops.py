# SPDX-License-Identifier: Apache-2.0
"""Random resized crops are distributed as torchvision's, on the shapes of real ImageNet images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shoestring_core import recipes
from shoestring_trainer.training.data.augment import RandomResizedCrop, crop_boxes
from shoestring_trainer.training.data.decoded_cache import RANDOM_CROP_MARGIN
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.randomness import more_draws
from shoestring_trainer.training.settings import Settings
from torch import Tensor

IMAGENET: dict[str, Any] = json.loads((Path(__file__).parent / "imagenet_shapes.json").read_text(encoding="utf-8"))
RATIOS = torch.tensor([width / height for width, height in IMAGENET["shapes"]])
CROPS_PER_SHAPE = 1500


def crop_real_shapes(min_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return sides and centers of many crops, and the aspect ratios of the images that they are of."""
    torch.manual_seed(0)
    ratios_N = RATIOS.repeat(CROPS_PER_SHAPE)
    sides_N2, centers_N2 = crop_boxes(torch.rand(len(ratios_N), 4), RandomResizedCrop(128, min_scale, ratios_N))
    return sides_N2, centers_N2, ratios_N


@pytest.mark.parametrize("min_scale", IMAGENET["mean_area"])
def test_crops_have_the_mean_area_of_torchvisions(min_scale: str):
    sides_N2, _, _ = crop_real_shapes(float(min_scale))
    assert sides_N2.prod(dim=1).mean().item() == pytest.approx(IMAGENET["mean_area"][min_scale], rel=0.01)


def test_crops_lie_in_the_image_and_have_an_allowed_area_and_aspect_ratio():
    sides_N2, centers_N2, ratios_N = crop_real_shapes(0.08)
    assert sides_N2.max() <= 1
    assert (centers_N2.abs() + sides_N2).max() <= 1 + 1e-6
    assert sides_N2.prod(dim=1).min() >= 0.08 - 1e-6
    shapes_N = ratios_N * sides_N2[:, 0] / sides_N2[:, 1]
    assert 0.75 - 1e-4 < shapes_N.min() < shapes_N.max() < 4 / 3 + 1e-4


def test_where_no_crop_fits_it_is_the_largest_allowed_one_in_the_middle():
    """All of an image twice as wide as high: two thirds of its width."""
    crop = RandomResizedCrop(128, 1.0, torch.tensor([2.0, 1.0, 0.5]))
    sides_N2, centers_N2 = crop_boxes(torch.rand(3, 4), crop)
    assert torch.allclose(sides_N2, torch.tensor([[2 / 3, 1.0], [1.0, 1.0], [1.0, 2 / 3]]))
    assert torch.equal(centers_N2, torch.zeros(3, 2))


def test_more_draws_are_uniform_independent_and_depend_on_their_row_alone():
    torch.manual_seed(0)
    draws_N2 = torch.rand(20_000, 2)
    more_NK = more_draws(draws_N2, 20)
    assert torch.equal(more_draws(draws_N2[7:9], 20), more_NK[7:9])
    assert 0 <= more_NK.min() < more_NK.max() < 1
    assert (more_NK.mean(0) - 0.5).abs().max() < 0.01
    assert (more_NK.var(0) - 1 / 12).abs().max() < 0.003
    correlations_MM = torch.corrcoef(torch.cat([draws_N2, more_NK], dim=1).T)
    assert (correlations_MM - torch.eye(22)).abs().max() < 0.03


def test_the_share_of_enlarged_crops_is_known_for_each_recipe():
    """A crop of fewer pixels than the network's input is enlarged; printed by recipe and phase."""
    for recipe in recipes.all():
        settings = Settings.from_params(recipes.resolve(recipe.name, {}))
        phases = HyperparamSchedule.from_settings(settings, 1_281_167).phases
        shares = []
        for size, crop_scale in dict.fromkeys((phase.image_size, phase.crop_scale) for phase in phases):
            if crop_scale:
                area_N = crop_real_shapes(crop_scale)[0].prod(dim=1) * RANDOM_CROP_MARGIN**2
                shares.append((size or settings.image_size, (area_N < 1).float().mean().item()))
        if shares:
            print(f"{recipe.name}: " + ", ".join(f"{share:.0%} at {size}" for size, share in shares))
        assert all(0 < share < 0.9 for _, share in shares)
