# SPDX-License-Identifier: Apache-2.0
"""Learning rates, momentum, weight decay, batch and image size and crops of each recipe match its source, by epoch.

What a source doesn't state is assumed, so not checked: ASSUMED lists it, and the recipe's file marks it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from shoestring_core import recipes
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.optim.optimizers import build_optimizer, set_hyperparams
from shoestring_trainer.training.optim.schedules import parse_schedule, piecewise_linear
from shoestring_trainer.training.settings import Settings

SAMPLES = 50_000


Breakpoints = list[tuple[float, float]]


@dataclass(frozen=True)
class Source:
    """What a source states. Breakpoints are (epoch, value); learning rates are in PyTorch's units, by parameter group.

    batch     images per step, or breakpoints
    momentum  by parameter group, or breakpoints
    decay     weight decay per step at a learning rate of 1 (coupled) or at the highest one (decoupled), by group
    sizes     pixels a side
    crops     smallest share of an image that a random crop shows
    assumed   names of settings that the source doesn't state: learning rates are then relative to the highest
    """

    epochs: float
    batch: int | Breakpoints
    steps: int | None
    momentum: dict[str, float | Breakpoints]
    rates: dict[str, Breakpoints]
    decay: dict[str, float]
    sizes: Breakpoints | None = None
    crops: Breakpoints | None = None
    assumed: frozenset[str] = frozenset()


def airbench(epochs: float, steps: int, lr: float, warmup: float, end: float, decay: float) -> Source:
    peak, last = warmup * steps / 48, steps / 48
    factors = [(0, 0.2), (peak, 1), (last, end)]
    at_3 = float(np.interp(3, *zip(*factors, strict=True)))
    before_3 = [(epoch, factor) for epoch, factor in factors if epoch < 3] + [(3, at_3)]
    rates = {"weights": factors, "norm biases": [(epoch, 64 * factor) for epoch, factor in factors]}
    rates |= {"whitening": [*before_3, (3, 0), (last, 0)]}
    return Source(
        epochs, 1024, steps, dict.fromkeys(rates, 0.85),
        {kind: [(epoch, lr * factor) for epoch, factor in breakpoints] for kind, breakpoints in rates.items()},
        {"weights": decay / lr, "norm biases": decay / lr / 64, "whitening": decay / lr},
    )  # fmt: skip


def superconvergence(epochs: float) -> Source:
    """The default of fast.ai's code: div 10, the last 13.68 % annealed, momentum between 0.95 and 0.85."""
    peak, back = 0.4316 * epochs, 0.8632 * epochs
    return Source(
        epochs, 512, None, {"weights": [(0, 0.95), (peak, 0.85), (back, 0.95), (epochs, 0.95)]},
        {"weights": [(0, 0.1), (peak, 1), (back, 0.1), (epochs, 0.001)]}, {"weights": 1e-4},
        assumed=frozenset({"epochs", "batch_size", "lr"}),
    )  # fmt: skip


def fastai_cifar(epochs: float, batch: int, lr: float, decay: float, divisor: float, annealed: float) -> Source:
    """1cycle from lr / divisor, the last share annealed to a hundredth of that, momentum .95 → .85 → .95."""
    peak, back = (1 - annealed) / 2 * epochs, (1 - annealed) * epochs
    start = lr / divisor
    return Source(
        epochs, batch, None, {"weights": [(0, 0.95), (peak, 0.85), (back, 0.95), (epochs, 0.95)]},
        {"weights": [(0, start), (peak, lr), (back, start), (epochs, 0.01 * start)]}, {"weights": decay},
    )  # fmt: skip


def page_resnet18(breakpoints: Breakpoints, batch: int = 128) -> Source:
    return Source(breakpoints[-1][0], batch, None, {"weights": 0.9}, {"weights": breakpoints}, {"weights": 5e-4})


NO_DECAY = {"biases": 0.0, "norm biases": 0.0}


def imagenet18(batch: Breakpoints, rates: Breakpoints, sizes: Breakpoints, crops: Breakpoints) -> Source:
    """Of one revision, 59a8f25: train.py; momentum and decay are the defaults of training/train_imagenet_nv.py."""
    return Source(
        rates[-1][0], batch, None, {"weights": 0.9}, {"weights": rates}, {"weights": 1e-4} | NO_DECAY,
        sizes=sizes, crops=crops,
    )  # fmt: skip


def lars(epochs: float, size: int, decay: float) -> Source:
    """What the source states: batch and image size, no decay of norms and biases. The rest is assumed."""
    return Source(
        epochs, 65_536, None, {"weights": 0.9}, {"weights": [(0, 0), (5, 1), (epochs, 0)]},
        {"weights": decay} | NO_DECAY, sizes=[(0, size)], assumed=frozenset({"lr"}),
    )  # fmt: skip


KINKED = [(0, 0), (15, 0.1), (30, 0.005), (35, 0)]

SOURCES = {
    "cifar10/airbench94": airbench(9.9, 476, 1.465e-3, 0.23, 0.07, 2.0e-3),
    "cifar10/airbench95": airbench(15, 720, 1.465e-3 * 10 / 11.5, 0.23, 0.07, 2.0e-3),
    "cifar10/airbench96": airbench(37, 1776, 1.465e-3 * 9 / 11.5, 0.1, 0, 2.0e-3 * 0.012 / 0.0153),
    "cifar10/airbench94-muon": Source(
        8, 2000, 200, {"filters": 0.6, "weights": 0.85, "norm biases": 0.85, "whitening": 0.85},
        {
            "filters": [(0, 0.24), (8, 0)], "weights": [(0, 0.67), (8, 0)],
            "norm biases": [(0, 0.053), (8, 0)], "whitening": [(0, 0.053), (3, 0), (8, 0)],
        },
        {"filters": 0, "weights": 4e-3 / 0.67, "norm biases": 4e-3 / 0.053, "whitening": 4e-3 / 0.053},
    ),
    "cifar10/page-resnet9": Source(
        24, 512, 24 * 97, {"weights": 0.9}, {"weights": [(0, 0), (5, 0.4), (24, 0)]}, {"weights": 5e-4}
    ),
    "cifar10/dawnbench-bkj-resnet18": Source(
        40, 128, 15_625, {"weights": 0.9},
        {"weights": [(0, 0), (15, 0.1), (15, 0.105), (30, 0.005), (35, 0), (35, 0.0005), (40, 0.0005)]},
        {"weights": 5e-4},
    ),
    "cifar10/superconv-resnet50": superconvergence(40),
    "cifar10/superconv-preact18": superconvergence(35),
    "cifar10/superconv-preact18 global_pool=avg": superconvergence(35),
    "cifar10/dawnbench-fastai-wrn": fastai_cifar(30, 512, 1.5, 1e-4, 20, 0.2),
    "cifar10/dawnbench-fastai-wrn gpus=8": fastai_cifar(40, 8 * 128, 2.0, 2e-4, 50, 0.125),
    "cifar10/page-resnet18-baseline": page_resnet18(KINKED),
    "cifar10/page-resnet18-baseline step=no-repeats": page_resnet18([(0, 0), (15, 0.1), (35, 0)]),
    "cifar10/page-resnet18-baseline step=bulk-randomness": page_resnet18(KINKED),
    "cifar10/page-resnet18-baseline step=batch-512": page_resnet18([(0, 0), (15, 0.44), (30, 0.005), (35, 0)], 512),
    "cifar10/page-resnet18-baseline step=cutout": page_resnet18([(0, 0), (8, 0.4), (30, 0)], 512),
    "cifar10/page-resnet18-baseline step=batch-768": page_resnet18([(0, 0), (8, 0.6), (30, 0)], 768),
    "cifar10/page-resnet9-tricks": Source(
        10, 512, 970, {"weights": 0.9, "norm biases": 0.9},
        {"weights": [(0, 0), (2, 1), (8, 0.1), (10, 0.1)], "norm biases": [(0, 0), (2, 64), (8, 6.4), (10, 6.4)]},
        {"weights": 5e-4, "norm biases": 5e-4 / 64},
    ),
    "imagenet/fastai-2018": Source(
        45, 1024, None, {"weights": 0.9},
        {"weights": [
            (0, 0.1), (1, 0.1), (1, 0.4 / 3), (2, 0.4 / 3), (2, 0.2), (3, 0.2), (3, 0.4), (21, 0.4), (21, 0.04),
            (35, 0.04), (35, 0.004), (43, 0.004), (43, 0.0004), (45, 0.0004),
        ]},
        {"weights": 1e-4}, sizes=[(0, 128), (18, 224), (41, 288)], crops=[(0, 0.08), (41, 0.5)],
    ),
    "imagenet/imagenet18": imagenet18(
        [(0, 8 * 512), (14, 8 * 224), (32, 8 * 128)],
        [(0, 1), (5, 2), (5, 1), (14, 1), (14, 0.4375), (16, 0.4375), (16, 0.04375), (27, 0.04375), (27, 0.004375),
         (32, 0.004375), (32, 0.0025), (33, 0.0025), (33, 0.00025), (35, 0.00025)],
        [(0, 128), (14, 224), (32, 288)], [(0, 0.08), (32, 0.5)],
    ),
    "imagenet/imagenet18 machines=4": imagenet18(
        [(0, 32 * 256), (6, 32 * 512), (13, 32 * 224), (28, 32 * 128)],
        [(0, 2), (6, 4), (11, 4), (13, 2), (13, 1.75), (16, 1.75), (23, 0.175), (28, 0.0175), (28, 0.01), (30, 0.001)],
        [(0, 128), (13, 224), (28, 288)], [(0, 0.08), (13, 0.087), (28, 0.5)],
    ),
    "imagenet/imagenet18 machines=8": imagenet18(
        [(0, 64 * 128), (6, 64 * 256), (14, 64 * 128), (17, 64 * 224), (29, 64 * 128)],
        [(0, 1.92), (6, 3.84), (11, 3.84), (14, 1.92), (17, 1.92), (23, 0.336), (29, 0.0336), (29, 0.0192),
         (35, 0.00192)],
        [(0, 128), (14, 224), (29, 288)], [(0, 0.08), (14, 0.087), (29, 0.5)],
    ),
    "imagenet/imagenet18 machines=16": imagenet18(
        [(0, 8192), (6, 16384), (16, 8192), (19, 24576), (37, 16384)],
        [(0, 1.88), (6, 3.76), (16, 3.76), (16, 1.88), (19, 1.88), (19, 0.564), (31, 0.564), (31, 0.0564),
         (37, 0.0564), (37, 0.0376), (38, 0.0376), (38, 0.00376), (40, 0.00376)],
        [(0, 128), (16, 224), (37, 288)], [(0, 0.08), (37, 0.5)],
    ),
    "imagenet/tencent-resnet50": lars(90, 224, 1e-4),
    "imagenet/tencent-alexnet-bn": lars(95, 227, 5e-4),
    "imagenet/alibaba-1": Source(
        21, [(0, 2048), (20, 1024)], None, {"weights": [(0, 0.96), (5, 0.9), (21, 0.96)]},
        {"weights": [(0, 0), (5, 1.2), (21, 1e-4)]}, {"weights": 1e-4} | NO_DECAY,
        sizes=[(0, 96), (12, 128), (18, 224), (20, 288)], crops=[(0, 0.08), (20, 0.5)],
    ),
    "imagenet/rn50-16": Source(
        16, 8 * 512, 16 * 312, {"weights": 0.9}, {"weights": [(0, 1.7e-4), (2, 1.7), (16, 0)]},
        {"weights": 1e-4} | NO_DECAY, sizes=[(0, 160), (12, 192)], crops=[(0, 0.08)],
    ),
}  # fmt: skip


ASSUMED = {
    "imagenet/alibaba-1": "start of the warm-up, course of momentum",
    "imagenet/tencent-alexnet-bn": "LARS's rate and coefficient, warm-up, momentum, decay, dropout, random crop",
    "imagenet/tencent-resnet50": "LARS's rate and coefficient, warm-up, momentum, decay, random crop",
    "cifar10/superconv-preact18": "epochs, batch, lr, the cycle, decay of biases, augmentation",
    "cifar10/superconv-resnet50": "epochs, batch, lr, the cycle, decay of biases, augmentation, stem",
}


def test_assumptions_are_marked_in_the_recipe_files():
    marked = {name for name, text in recipes._files().items() if "# assumed" in text}
    assert marked == ASSUMED.keys()
    assert {name.split()[0] for name in SOURCES} == {recipe.name for recipe in recipes.all() if recipe.claim} - OURS


OURS = {"digits/quickstart"}
RECTANGULAR_AT_THE_END = ("imagenet/imagenet18", "imagenet/alibaba-1")


def choose(name: str, **params) -> tuple[recipes.Recipe, Settings]:
    """Return the recipe and settings of "RECIPE PARAMETER=VALUE …"."""
    plain, *chosen = name.split()
    recipe = recipes.load(plain)
    given = {key: text for key, _, text in (word.partition("=") for word in chosen)}
    typed = {key: int(text) if recipe.params[key].type == "int" else text for key, text in given.items()}
    return recipe, Settings.from_params(recipes.resolve(plain, typed | params))


@pytest.mark.parametrize("name", SOURCES)
def test_a_recipe_matches_its_source_epoch_by_epoch(name: str):
    source, (recipe, settings) = SOURCES[name], choose(name)
    samples = 50_000 if name.startswith("cifar10/") else 1_281_167
    schedule = HyperparamSchedule.from_settings(settings, samples)
    small = replace(settings, width=4)
    model = build_model(**recipe.model, settings=small, classes=10, mean=[0.5] * 3, std=[0.2] * 3)
    optimizer = build_optimizer(model, settings)
    if "epochs" not in source.assumed:
        assert settings.epochs == source.epochs
    if source.steps:
        assert schedule.total_steps == source.steps
    kinds = {group["kind"] for group in optimizer.param_groups}
    assert kinds >= source.rates.keys() - {"weights"}
    later = 0.04 if name.startswith("imagenet/") else 0.0  # changes take effect at the next whole step
    for epoch in np.arange(later, source.epochs, 0.25):
        step = next(step for step in steps_near(schedule, epoch) if schedule.epochs_before(step) >= epoch)
        at = schedule.epochs_before(step)
        phase = schedule.phase_at(step)
        if "batch_size" not in source.assumed:
            batches = [(0, source.batch)] if isinstance(source.batch, int) else source.batch
            assert phase.batch_size == newest(batches, at), at
        if source.sizes:
            assert (phase.image_size or settings.image_size) == newest(source.sizes, at), at
            if source.crops:
                assert phase.crop_scale == newest(source.crops, at), at
            last = at >= source.sizes[-1][0] > 0
            assert phase.rectangular == (last and name.startswith(RECTANGULAR_AT_THE_END)), at
        set_hyperparams(optimizer, schedule.step_hyperparams(step))
        for group in optimizer.param_groups:
            kind = group["kind"] if group["kind"] in source.rates else "weights"
            highest = max(value for _, value in source.rates[kind])
            reached = group["max_lr"] * max(rate for _, rate in schedule.lr_factors)
            scale = reached / highest if "lr" in source.assumed else 1.0
            expected = scale * interpolate(source.rates[kind], at)
            assert group["lr"] == pytest.approx(expected, rel=5e-3, abs=5e-3 * scale * highest), (at, kind)
            momentum = source.momentum[kind]
            expected = momentum if isinstance(momentum, float) else interpolate(momentum, at)
            assert group["momentum"] == pytest.approx(expected, abs=1e-3), (at, kind)
            decay = source.decay.get(group["kind"], source.decay["weights"])
            assert group["weight_decay"] == pytest.approx(decay, rel=3e-3), kind


def steps_near(schedule: HyperparamSchedule, epoch: float) -> range:
    """Return the steps of the phase in which `epoch` is reached, and those after it."""
    phase = next(phase for phase in schedule.phases if phase.end_sample >= epoch * schedule.samples_per_epoch)
    return range(phase.first_step, schedule.total_steps)


def newest(breakpoints: Breakpoints, epoch: float) -> float:
    return [value for at, value in breakpoints if at <= epoch + 1e-9][-1]


def interpolate(breakpoints: list[tuple[float, float]], epoch: float) -> float:
    """Interpolate linearly; of two breakpoints at one epoch the later one applies from there on."""
    begun = max(index for index, (at, _) in enumerate(breakpoints) if at <= epoch)
    if begun == len(breakpoints) - 1:
        return breakpoints[begun][1]
    (x0, y0), (x1, y1) = breakpoints[begun : begun + 2]
    return y0 + (y1 - y0) * (epoch - x0) / (x1 - x0)


@pytest.mark.parametrize("epochs", [0.01, 0.1, 1, 3])
@pytest.mark.parametrize("name", SOURCES)
def test_a_shorter_run_goes_through_the_whole_schedule(name: str, epochs: float):
    """Fewer epochs compress the schedule: first, highest and last learning rate stay."""
    _, settings = choose(name, epochs=epochs)
    whole, short = (
        HyperparamSchedule.from_settings(replace(settings, epochs=SOURCES[name].epochs), SAMPLES),
        HyperparamSchedule.from_settings(settings, SAMPLES),
    )
    if len(whole.phases) == 1:
        assert short.total_steps == int(np.ceil(round(epochs * short.samples_per_epoch / settings.batch_size, 6)))
    assert short.step_hyperparams(0) == whole.step_hyperparams(0)
    for share in (0.25, 0.5, 0.9):
        assert piecewise_linear(short.lr_factors, share) == piecewise_linear(whole.lr_factors, share)


def test_momentum_may_have_a_schedule():
    """1cycle: the learning rate rises while momentum falls, then back."""
    settings = Settings(
        epochs=10, batch_size=10, lr=0.8, lr_schedule="0:0.1 0.43:1 0.86:0.1 1:0",
        momentum_schedule="0:0.95 43/100:0.85 86/100:0.95",
    )  # fmt: skip
    schedule = HyperparamSchedule.from_settings(settings, 100)
    hyperparams = [schedule.step_hyperparams(step) for step in (0, 43, 86, 99)]
    assert [each.momentum for each in hyperparams] == pytest.approx([0.95, 0.85, 0.95, 0.95])
    assert [each.lr_factor for each in hyperparams] == pytest.approx([0.1, 1, 0.1, 0.1 / 14])
    model = build_model("convnet", settings, classes=2, mean=[0.5], std=[0.5])
    optimizer = build_optimizer(model, settings)
    set_hyperparams(optimizer, hyperparams[1])
    assert {(group["lr"], round(group["momentum"], 6)) for group in optimizer.param_groups} == {(0.8, 0.85)}


@pytest.mark.parametrize("text", ["0.1", "0:1 0.5", "0:x", "1/0:1", "0.5:1 0.2:0", "0:nan"])
def test_an_invalid_schedule_is_shown_in_the_error(text: str):
    with pytest.raises(UserError, match="schedule"):
        parse_schedule(text)


def test_a_data_set_of_less_than_a_batch_is_pointed_out():
    settings = Settings(epochs=12, batch_size=128)
    advice = HyperparamSchedule.from_settings(settings, 72).advise(128)
    assert advice
    assert "72 training images and a batch 128, so the run is only 7 steps long" in advice
    assert HyperparamSchedule.from_settings(settings, 128).advise(128) is None


def test_phases_are_contiguous():
    """Image and batch size change at the first whole step after their position; the stream of samples continues."""
    settings = Settings(
        epochs=10, batch_size=8, batch_size_schedule="0:1 0.3:2 0.8:0.5", image_size_schedule="0:16 0.5:24"
    )
    schedule = HyperparamSchedule.from_settings(settings, 100)
    assert [(phase.batch_size, phase.image_size) for phase in schedule.phases] == [(8, 16), (16, 16), (16, 24), (4, 24)]
    first, *others = schedule.phases
    assert (first.first_step, first.first_sample) == (0, 0)
    for before, after, due in zip(schedule.phases, others, (300, 500, 800), strict=False):
        assert (after.first_step, after.first_sample) == (before.end_step, before.end_sample)
        assert due <= after.first_sample < due + before.batch_size
    places = [schedule.samples_before(step) for step in range(schedule.total_steps + 1)]
    batches = [schedule.phase_at(step).batch_size for step in range(schedule.total_steps)]
    assert places == [sum(batches[:step]) for step in range(schedule.total_steps + 1)]
    ends = [step for step in range(1, schedule.total_steps + 1) if schedule.completes_epoch(step, 1)]
    assert [schedule.epochs_before(step) >= number for number, step in enumerate(ends, 1)] == [True] * 10
    assert 10 <= schedule.epochs_before(schedule.total_steps) < 10.1


def test_a_phase_too_short_for_a_step_is_omitted():
    schedule = HyperparamSchedule.from_settings(
        Settings(epochs=1, batch_size=50, image_size_schedule="0:16 0.5:24 0.51:32"), 100
    )
    assert [(phase.image_size, phase.steps) for phase in schedule.phases] == [(16, 1), (24, 1)]


def test_learning_rates_scale_with_the_batch_size():
    own, double = (
        HyperparamSchedule.from_settings(Settings(batch_size=batch, lr_base_batch_size=128), 1000)
        for batch in (128, 256)
    )
    assert [rate for _, rate in double.lr_factors] == [2 * rate for _, rate in own.lr_factors]


@pytest.mark.parametrize("text", ["0.2:128", "0:128 1.5:224"])
def test_size_schedules_must_begin_at_zero(text: str):
    with pytest.raises(UserError, match="begin at 0"):
        HyperparamSchedule.from_settings(Settings(image_size_schedule=text), 100)
