# SPDX-License-Identifier: Apache-2.0
"""What a recipe will do, before it does anything: its schedule, drawn for a terminal. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from shoestring_core import recipes
from shoestring_core.wording.units import counted

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.settings import Settings

WIDTH, HEIGHT = 64, 8
POINTS_PER_COLUMN = 32
BLOCKS = " ▁▂▃▄▅▆▇█"
IMAGES = {"digits/": 1438, "cifar10/": 50_000, "imagenet/": 1_281_167}
"""Training images by the beginning of a recipe's name."""


@dataclass(frozen=True)
class SchedulePreview:
    """A recipe with its parameters and the plan for a number of training images."""

    name: str
    settings: Settings
    schedule: HyperparamSchedule
    images: int


def preview_schedule(name: str, params: Mapping[str, Any], images: int | None) -> SchedulePreview:
    """The plan of a recipe. Raises InvalidSpec for what it doesn't know, UserError if nobody counted the images."""
    recipe = recipes.load(name)
    settings = Settings.from_params(recipes.resolve(name, params))
    count = images or count_images(recipe.name)
    if count is None:
        raise UserError(f"{recipe.name} trains on your own images; give their number with --num-images N")
    return SchedulePreview(recipe.reference, settings, HyperparamSchedule.from_settings(settings, count), count)


def count_images(recipe: str) -> int | None:
    """How many images a recipe trains on; None for the user's own."""
    return next((count for start, count in IMAGES.items() if recipe.startswith(start)), None)


def sample_schedule(preview: SchedulePreview, points: int) -> list[dict[str, float]]:
    """Rate, momentum, batch and size at `points` evenly spaced steps, the first and the last among them."""
    steps = preview.schedule.total_steps
    chosen = sorted({round(n * (steps - 1) / max(1, points - 1)) for n in range(points)})
    return [
        {
            "step": step, "epoch": preview.schedule.epochs_before(step),
            "lr": preview.settings.lr * preview.schedule.step_hyperparams(step).lr_factor,
            "momentum": preview.schedule.step_hyperparams(step).momentum,
            "batch": preview.schedule.phase_at(step).batch_size,
            "size": preview.schedule.phase_at(step).image_size or preview.settings.image_size,
        }
        for step in chosen
    ]  # fmt: skip


def plot_schedule(preview: SchedulePreview) -> str:
    """The schedule as text, 80 columns wide, without colour."""
    points, schedule, settings = sample_schedule(preview, WIDTH * POINTS_PER_COLUMN), preview.schedule, preview.settings
    rates, momenta = ([point[name] for point in points] for name in ("lr", "momentum"))
    last = schedule.epochs_before(schedule.total_steps)
    images, steps = schedule.samples_per_epoch, schedule.total_steps
    lines = [
        f"{preview.name}: {settings.epochs:g} epochs of {counted(images, 'image')}, {counted(steps, 'step')}",
        "",
        *chart("learning rate", columns(rates, max), last),
    ]
    for other, rate in {"norms' biases": settings.bias_lr, "whitening": settings.whitening_lr}.items():
        if rate:
            lines.append(f"{other}: up to {rate:g}")
    if settings.optimizer == "muon":
        lines.append(f"convolutions, by Muon: up to {settings.muon_lr:g}, momentum {settings.muon_momentum:g}")
    constant = f"momentum {momenta[0]:g} throughout"
    lines += ["", *([constant] if len(set(momenta)) == 1 else chart("momentum", columns(momenta, median), last)), ""]
    for phase in schedule.phases:
        begin, end = schedule.epochs_before(phase.first_step), phase.end_sample / schedule.samples_per_epoch
        size = phase.image_size or settings.image_size
        lines.append(
            f"epochs {begin:6.2f} to {end:6.2f}: batch {phase.batch_size:,}, size {size}, "
            f"{counted(phase.steps, 'step')}"
        )
    return "\n".join(lines)


def columns(values: Sequence[float], pick: Callable[[Sequence[float]], float]) -> list[float]:
    """One value for each column of a chart, picked from those that fall into it."""
    count = min(WIDTH, len(values))
    bounds = [n * len(values) // count for n in range(count + 1)]
    return [pick(values[start:end]) for start, end in pairwise(bounds)]


def chart(title: str, values: Sequence[float], epochs: float, height: int = HEIGHT) -> list[str]:
    """Columns of blocks, one for each value, from the lowest at the bottom to the highest at the top."""
    lowest, highest = min(0.0, *values) if min(values) < 0.2 * max(values) else min(values), max(values)
    span = highest - lowest or 1.0
    eighths = [max(1, round(8 * height * (value - lowest) / span)) for value in values]
    rows = ["".join(BLOCKS[max(0, min(8, count - 8 * row))] for count in eighths) for row in reversed(range(height))]
    labels = {0: f"{highest:.4g}", height - 1: f"{lowest:.4g}"}
    drawn = [f"{labels.get(number, ''):>9} │{row}" for number, row in enumerate(rows)]
    middle, end = f"{epochs / 2:.4g}", f"{epochs:.4g} epochs"
    left = len(values) // 2 - len(middle) // 2
    axis = "0".ljust(left) + middle
    return [title, *drawn, f"{'':9} └{'─' * len(values)}", f"{'':11}{axis}{end:>{max(0, len(values) - len(axis))}}"]
