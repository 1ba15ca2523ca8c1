# SPDX-License-Identifier: Apache-2.0
"""Order and augmentation of a sample are functions of (seed, epoch, sample), not of world size, batch or past steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from shoestring_trainer.training import randomness
from shoestring_trainer.training.data.augment import (
    RandomResizedCrop,
    augment,
    color_jitter,
    cutout,
    draws_per_sample,
    draws_used,
    random_crop,
    random_resized_crop,
    rotate_and_shift,
)
from shoestring_trainer.training.distributed.global_batch_layers import use_global_batch
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.optim.schedules import piecewise_linear, warmup_then_decay
from shoestring_trainer.training.randomness import DRAWS_PER_SAMPLE, FLIP, DistributedSampler, seed_dropout
from shoestring_trainer.training.settings import Settings

MEAN = torch.tensor([0.5, 0.4, 0.3])
EVERYTHING = Settings(rotate=15, translate=1, crop_padding=2, flip=True, cutout=3)


@given(samples=st.integers(1, 60), batch=st.integers(1, 40), seed=st.integers(0, 2**31), data=st.data())
def test_any_world_size_uses_the_same_samples_in_the_same_steps(samples: int, batch: int, seed: int, data):
    world = data.draw(st.integers(1, min(batch, 5)))
    alone = DistributedSampler(seed, samples, 0, 1)
    ranks = [DistributedSampler(seed, samples, rank, world) for rank in range(world)]
    stream = []
    for step in range(3 * samples // batch + 1):
        whole, shares = alone.batch(step * batch, batch), [rank.batch(step * batch, batch) for rank in ranks]
        assert torch.equal(torch.cat([share.ids_N for share in shares]), whole.ids_N)
        assert torch.equal(torch.cat([share.draws_NK for share in shares]), whole.draws_NK)
        assert len(whole.ids_N) == batch
        stream += whole.ids_N.tolist()
    for epoch in range(len(stream) // samples):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


def test_the_samples_of_a_step_do_not_depend_on_earlier_calls():
    walked, jumped = DistributedSampler(3, 50, 0, 1), DistributedSampler(3, 50, 0, 1)
    for step in range(20):
        last = walked.batch(16 * step, 16)
    assert torch.equal(jumped.batch(16 * 19, 16).ids_N, last.ids_N)
    assert torch.equal(jumped.batch(16 * 19, 16).draws_NK, last.draws_NK)


def test_epochs_and_seeds_differ():
    sampler = DistributedSampler(3, 50, 0, 1)
    first, second, other = sampler.batch(0, 50), sampler.batch(50, 50), DistributedSampler(4, 50, 0, 1).batch(0, 50)
    assert not torch.equal(first.ids_N, second.ids_N)
    assert not torch.equal(first.ids_N, other.ids_N)
    assert not torch.equal(first.draws_NK.sort(0).values, second.draws_NK.sort(0).values)


def test_dropout_depends_on_seed_and_step_alone():
    def drawn(seed: int, step: int) -> list[float]:
        seed_dropout(seed, step, torch.device("cpu"))
        return torch.rand(4).tolist()

    assert drawn(1, 2) == drawn(1, 2)
    assert len({str(drawn(*names)) for names in [(1, 2), (2, 2), (1, 3)]}) == 3


def test_ranks_drop_the_activations_that_one_process_would_drop():
    x_NF, shares = torch.ones(10, 50), []
    for rank in range(3):
        layer = torch.nn.Sequential(torch.nn.Dropout(0.3))
        use_global_batch(layer, 10, rank, 3, norms=False)
        seed_dropout(1, 2, torch.device("cpu"))
        shares.append(layer(x_NF[10 * rank // 3 : 10 * (rank + 1) // 3]))
    alone = torch.nn.Sequential(torch.nn.Dropout(0.3))
    use_global_batch(alone, 10, 0, 1, norms=False)
    seed_dropout(1, 2, torch.device("cpu"))
    assert torch.equal(torch.cat(shares), alone(x_NF))
    assert torch.equal(alone.eval()(x_NF), x_NF)


@pytest.mark.parametrize("alternating", [False, True])
def test_draws_that_are_not_kept_read_as_zero_and_the_others_and_the_order_are_the_same(
    monkeypatch: pytest.MonkeyPatch, alternating: bool
):
    monkeypatch.setattr(randomness, "BLOCK", 7)
    kept = [3, 4, FLIP, 11, 12]
    whole = DistributedSampler(3, 50, 0, 1, draws=16, alternating_flip=alternating)
    part = DistributedSampler(3, 50, 0, 1, draws=16, alternating_flip=alternating, kept_draws=kept)
    for start in range(0, 150, 20):  # some batches are of two epochs
        ours, theirs = part.batch(start, 20), whole.batch(start, 20)
        assert torch.equal(ours.ids_N, theirs.ids_N)
        assert ours.ids_N.dtype == theirs.ids_N.dtype
        assert torch.equal(ours.draws_NK[:, kept], theirs.draws_NK[:, kept])
        assert ours.draws_NK.count_nonzero() == ours.draws_NK[:, kept].count_nonzero()


CROPS = Settings(crop_scale=0.1, flip=True)


@pytest.mark.parametrize(
    "settings",
    [Settings(), EVERYTHING, CROPS, replace(CROPS, crop_scale=0.0, crop_scale_schedule="0:0.1"), Settings(translate=1),
     replace(CROPS, color_jitter=0.4), Settings(alternating_flip=True), Settings(crop_padding=2, cutout=3)],
)  # fmt: skip
def test_augmentation_needs_no_other_draws_than_it_says(settings: Settings):
    crop = RandomResizedCrop(8, 0.1, None) if settings.crop_scale or settings.crop_scale_schedule else None
    images, draws = torch.rand(16, 3, 8, 8), torch.rand(16, draws_per_sample(settings))
    used = torch.zeros_like(draws)
    used[:, draws_used(settings)] = draws[:, draws_used(settings)]
    ours, theirs = (augment(images, each, settings, MEAN, resized_crop=crop) for each in (used, draws))
    assert torch.equal(ours, theirs)


def test_an_image_is_augmented_the_same_in_any_batch():
    images, draws = torch.rand(16, 3, 16, 16), torch.rand(16, DRAWS_PER_SAMPLE)
    together = augment(images, draws, EVERYTHING, MEAN)
    for index in range(16):
        alone = augment(images[index : index + 1], draws[index : index + 1], EVERYTHING, MEAN)
        assert torch.allclose(together[index], alone[0], atol=1e-6)


def test_uint8_images_are_augmented_as_the_floats_they_represent():
    images, draws = (torch.rand(16, 3, 16, 12) * 256).byte(), torch.rand(16, DRAWS_PER_SAMPLE)
    for settings in (Settings(crop_padding=3, flip=True, cutout=4), EVERYTHING):
        floats = augment(images.float() / 255, draws, settings, MEAN)
        assert torch.equal(augment(images, draws, settings, MEAN, 255.0), floats)


def test_a_crop_equals_cropping_the_padded_image():
    images, draws, pad = torch.rand(50, 3, 10, 14), torch.rand(50, 2), 4
    padded, places = F.pad(images, (pad,) * 4, "reflect"), (draws * (2 * pad + 1)).long().tolist()
    for image, (top, left), cropped in zip(padded, places, random_crop(images, draws, pad), strict=True):
        assert torch.equal(cropped, image[:, top : top + 10, left : left + 14])


def test_padding_as_large_as_the_image_is_rejected():
    with pytest.raises(UserError, match="lower crop"):
        random_crop(torch.rand(1, 3, 8, 8), torch.rand(1, 2), 8)


def test_augmentation_that_is_off_changes_nothing():
    images = torch.rand(4, 3, 16, 16)
    assert augment(images, torch.rand(4, DRAWS_PER_SAMPLE), Settings(), MEAN) is images


def test_the_middle_crop_is_the_image_and_the_corner_is_reflected():
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(random_crop(images, torch.full((1, 2), 0.5), 2), images)
    corner = random_crop(images, torch.zeros(1, 2), 2)
    assert torch.equal(corner[0, :, 2:, 2:], images[0, :, :6, :6])
    assert torch.equal(corner[0, :, 2, 1], images[0, :, 0, 1])


def test_a_shift_moves_by_pixels_and_a_rotation_by_degrees():
    images = torch.rand(1, 1, 8, 8)
    right = torch.tensor([[0.5, 0.0, 0.5]])  # no turn; x at its least, y in the middle
    assert torch.allclose(rotate_and_shift(images, right, 0, 1)[..., 1:], images[..., :-1], atol=1e-5)
    quarter = rotate_and_shift(images, torch.tensor([[1.0, 0.5, 0.5]]), 90, 0)
    assert torch.allclose(quarter, images.rot90(1, (2, 3)), atol=1e-5)


@pytest.mark.parametrize(("draws", "top", "left"), [((0.5, 0.25), 6, 3), ((0, 0.9999), 0, 12)])
def test_cutout_fills_one_whole_square_with_the_mean(draws: tuple[float, float], top: int, left: int):
    blanked = cutout(torch.zeros(1, 3, 16, 16), torch.tensor([draws]), 4, MEAN)
    square = MEAN.view(3, 1, 1).expand(3, 4, 4)
    assert torch.equal(blanked[0, :, top : top + 4, left : left + 4], square)
    assert blanked.sum().item() == pytest.approx(16 * MEAN.sum().item())


def test_a_random_resized_crop_of_the_whole_area_resizes_the_image():
    images, draws = torch.rand(2, 3, 8, 8), torch.full((2, 4), 0.5)
    draws[:, 2] = 1.0
    whole = random_resized_crop(images, draws, RandomResizedCrop(8, 1.0, None))
    assert torch.allclose(whole, images, atol=1e-5)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_a_random_resized_crop_has_its_area_and_aspect_ratio_in_the_original_image(aspect: float):
    """Each pixel holds its own coordinates, so the corners of the result show what was cropped."""
    side, count = 64, 500
    place = (torch.arange(side) + 0.5) / side
    images = torch.stack([place.expand(side, side), place[:, None].expand(side, side)])[None].expand(count, -1, -1, -1)
    torch.manual_seed(0)
    crop = RandomResizedCrop(16, 0.2, torch.full((count,), aspect))
    out = random_resized_crop(images, torch.rand(count, 4), crop)
    width, height = ((out[:, axis, -1, -1] - out[:, axis, 0, 0]) * 16 / 15 for axis in (0, 1))
    assert (width * height).min() > 0.15
    assert (width * height).max() <= 1.0
    shapes = (aspect * width / height)[(width < 0.99) & (height < 0.99)]
    assert 0.7 < shapes.min() < shapes.max() < 1.4


def test_color_jitter_without_strength_changes_nothing_and_values_stay_in_range():
    images = torch.rand(8, 3, 4, 4)
    assert torch.allclose(color_jitter(images, torch.full((8, 3), 0.5), 0.5), images, atol=1e-6)
    strong = color_jitter(images, torch.rand(8, 3), 1.0)
    assert 0 <= strong.min() <= strong.max() <= 1
    assert not torch.allclose(strong, images)


def test_an_alternating_flip_flips_every_sample_once_in_two_epochs():
    sampler = DistributedSampler(3, 400, 0, 1, alternating_flip=True)
    flipped = []
    for epoch in range(4):
        picked = sampler.batch(400 * epoch, 400)
        flipped.append((picked.draws_NK[:, FLIP] < 0.5)[picked.ids_N.argsort()])
    assert torch.equal(flipped[0], ~flipped[1])
    assert torch.equal(flipped[0], flipped[2])
    assert torch.equal(flipped[1], flipped[3])
    assert 150 < flipped[0].sum() < 250
    images, draws = torch.rand(2, 3, 8, 8), torch.full((2, DRAWS_PER_SAMPLE), 0.75)
    draws[1, FLIP] = 0.25
    out = augment(images, draws, Settings(alternating_flip=True), MEAN)
    assert torch.equal(out, torch.stack([images[0], images[1].flip(2)]))


def test_an_epoch_of_full_batches_leaves_out_different_samples_each_time():
    sampler = DistributedSampler(3, 50, 0, 1, samples_per_epoch=48)
    epochs = [
        torch.cat([sampler.batch(48 * epoch + 16 * step, 16).ids_N for step in range(3)]).tolist() for epoch in range(4)
    ]
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert len({frozenset(range(50)) - set(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize(("at", "rate"), [(0.0, 0.05), (0.1, 0.275), (0.2, 0.5), (0.6, 0.25), (1.0, 0.0)])
def test_warmup_and_decay_are_linear(at: float, rate: float):
    assert piecewise_linear(warmup_then_decay(0.5, 0.2), at) == pytest.approx(rate)


def test_a_schedule_may_only_decay_or_only_warm_up():
    assert piecewise_linear(warmup_then_decay(0.5, 0), 0) == 0.5
    assert piecewise_linear(warmup_then_decay(0.5, 1), 1) == 0.5
