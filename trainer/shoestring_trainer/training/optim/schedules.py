# SPDX-License-Identifier: Apache-2.0
"""Schedules as plain values: knots, and one function that reads between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.settings import Settings

Knots = Sequence[tuple[float, float]]


def piecewise_linear(knots: Knots, at: float) -> float:
    """The value at `at` on straight lines between (position, value) knots in rising order; flat outside them."""
    for (x0, y0), (x1, y1) in pairwise(knots):
        if at < x1:
            return y0 + (y1 - y0) * max(0.0, (at - x0) / (x1 - x0))
    return knots[-1][1]


def one_cycle(peak: float, warmup: float) -> Knots:
    """Rise from a tenth of `peak` over the first `warmup_ratio` share of the run, then fall to zero at its end."""
    rise = [(0.0, peak / 10)] if warmup > 0 else []
    return [*rise, (min(warmup, 1.0), peak), (1.0, 0.0)] if warmup < 1 else [*rise, (1.0, peak)]


def read_knots(text: str) -> Knots:
    """Knots from text, "0:0.2 3/10:1 1:0". Raises UserError that shows what is wrong."""
    try:
        knots = [
            (float(Fraction(at)), float(Fraction(value))) for at, value in (knot.split(":") for knot in text.split())
        ]
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"the schedule {text!r} can't be read ({error}); write it as '0:0.1 1/5:1 1:0'") from error
    if not knots or any(x1 < x0 for (x0, _), (x1, _) in pairwise(knots)) or not all(math.isfinite(y) for _, y in knots):
        raise UserError(f"the schedule {text!r} needs knots with rising positions from 0 to 1, as in '0:0.1 1/5:1 1:0'")
    return knots


def read_steps(text: str, otherwise: float) -> Knots:
    """Knots between which the value stands still, "0:128 14/35:224"; without text, `otherwise` from start to end."""
    knots = read_knots(text) if text else [(0.0, float(otherwise))]
    if knots[0][0] != 0 or knots[-1][0] > 1:
        raise UserError(f"the schedule {text!r} must begin at 0 and end by 1, as in '0:128 14/35:224'")
    return knots


def first_view(settings: Settings) -> tuple[int, bool]:
    """How a run sees images when it begins: pixels a side (0: as the data has them), and whether rectangular."""
    sizes, rectangles = _views(settings)
    return round(value_at(sizes, 0.0)), value_at(rectangles, 0.0) > 0


def value_at(steps: Knots, at: float) -> float:
    """The value of the newest knot at `at`."""
    return [value for place, value in steps if place <= at][-1]


@dataclass(frozen=True)
class StepHyperparams:
    """What the optimizer gets before a step.

    lr_factor            factor of every learning rate but the whitening layer's
    whitening_lr_factor  factor of the whitening layer's learning rate
    """

    lr_factor: float
    whitening_lr_factor: float
    momentum: float


@dataclass(frozen=True)
class Phase:
    """A stretch of the run in which images and batches keep their size.

    first_sample, end_sample  places in the stream of samples, epoch after epoch
    size                      pixels a side of the images; 0: as the data has them
    crop_scale                smallest share of an image that a random crop shows; 0: no such crop
    rectangular               held-out images are measured in their own shapes
    """

    first_step: int
    steps: int
    first_sample: int
    batch: int
    size: int
    crop_scale: float
    rectangular: bool

    @property
    def view(self) -> tuple[int, bool]:
        return self.size, self.rectangular

    @property
    def end_step(self) -> int:
        return self.first_step + self.steps

    @property
    def end_sample(self) -> int:
        return self.first_sample + self.steps * self.batch


@dataclass(frozen=True)
class Plan:
    """The whole run before it starts: its phases, and the hyperparameters of each step."""

    epoch_samples: int
    phases: tuple[Phase, ...]
    rates: Knots
    whitening: Knots
    momenta: Knots

    @staticmethod
    def of(settings: Settings, samples: int) -> Plan:
        """The plan for `samples` training images. Raises UserError if a schedule can't be read or no batch fills."""
        batch = settings.batch_size
        epoch_samples = samples // batch * batch if settings.drop_last else samples
        if not epoch_samples:
            raise UserError(f"batch_size is {batch}, more than the {samples} training images; lower it")
        rates = read_knots(settings.lr_schedule) if settings.lr_schedule else one_cycle(1.0, settings.warmup_ratio)
        whitening = read_knots(settings.whitening_lr_schedule) if settings.whitening_lr_schedule else rates
        scale = batch / settings.lr_base_batch_size if settings.lr_base_batch_size else 1.0
        return Plan(
            epoch_samples,
            tuple(_phases(settings, epoch_samples)),
            _times(scale, rates),
            _times(scale, whitening),
            read_knots(settings.momentum_schedule) if settings.momentum_schedule else [(0.0, settings.momentum)],
        )

    @property
    def steps(self) -> int:
        return self.phases[-1].end_step

    def phase(self, step: int) -> Phase:
        """The phase of step `step` (counted from 0); past the end, the last."""
        return next((phase for phase in self.phases if step < phase.end_step), self.phases[-1])

    def sample(self, step: int) -> int:
        """Where in the stream of samples step `step` begins: so many have been trained on before it."""
        phase = self.phase(step)
        return phase.first_sample + (step - phase.first_step) * phase.batch

    def epoch(self, step: int) -> float:
        """The epochs done before step `step`."""
        return self.sample(step) / self.epoch_samples

    def ends_epoch(self, step: int, every: int) -> bool:
        """Whether the step before `step` was the one that completed an epoch whose number is a multiple of `every`."""
        samples = self.epoch_samples * every
        return self.sample(step) // samples > self.sample(step - 1) // samples

    def step_hyperparams(self, step: int) -> StepHyperparams:
        """The hyperparameters of step `step` (counted from 0)."""
        at = self.sample(step) / self.phases[-1].end_sample
        return StepHyperparams(*(piecewise_linear(knots, at) for knots in (self.rates, self.whitening, self.momenta)))


def _times(factor: float, knots: Knots) -> Knots:
    return [(at, factor * value) for at, value in knots]


def _phases(settings: Settings, epoch_samples: int) -> Iterator[Phase]:
    """One phase from each place where a size or the batch changes to the next; none that would have no step."""
    batches = read_steps(settings.batch_size_schedule, 1.0)
    crops = read_steps(settings.crop_scale_schedule, settings.crop_scale)
    sizes, rectangles = _views(settings)
    starts = sorted({at for at, _ in (*batches, *sizes, *crops, *rectangles)} - {1.0})
    step = sample = 0
    for start, end in pairwise([*starts, 1.0]):
        batch = max(1, round(settings.batch_size * value_at(batches, start)))
        steps = math.ceil(round((settings.epochs * epoch_samples * end - sample) / batch, 6))
        if steps > 0:
            yield Phase(
                step, steps, sample, batch,
                round(value_at(sizes, start)), value_at(crops, start), value_at(rectangles, start) > 0,
            )  # fmt: skip
            step, sample = step + steps, sample + steps * batch


def _views(settings: Settings) -> tuple[Knots, Knots]:
    return (
        read_steps(settings.image_size_schedule, 0.0),
        read_steps(settings.rectangular_eval_schedule, settings.rectangular_eval),
    )
