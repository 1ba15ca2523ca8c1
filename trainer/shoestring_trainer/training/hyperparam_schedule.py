# SPDX-License-Identifier: Apache-2.0
"""The schedule of a run, known completely before its first step: phases, batch and image sizes, hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from shoestring_core.breakpoints import Breakpoints
from shoestring_core.wording.units import counted

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.optim.schedules import (
    parse_schedule,
    parse_step_schedule,
    piecewise_constant,
    piecewise_linear,
    scale,
    warmup_then_decay,
)
from shoestring_trainer.training.settings import Settings


class ImageFormat(NamedTuple):
    """How images are decoded.

    size         pixels a side; 0: the data's own
    rectangular  validation images also come at their own aspect ratios
    """

    size: int
    rectangular: bool


def initial_image_format(settings: Settings) -> ImageFormat:
    """Return the image format at the start of a run."""
    sizes, rectangular = _image_format_schedules(settings)
    return ImageFormat(round(piecewise_constant(sizes, 0.0)), piecewise_constant(rectangular, 0.0) > 0)


@dataclass(frozen=True)
class StepHyperparams:
    """Hyperparameters of one optimizer step.

    lr_factor            multiplies every learning rate but the whitening layer's
    whitening_lr_factor  multiplies the whitening layer's learning rate
    step                 counted from 0
    """

    lr_factor: float
    whitening_lr_factor: float
    momentum: float
    step: int = 0


@dataclass(frozen=True)
class Phase:
    """A part of the run with constant batch size and image format.

    first_sample, end_sample  positions in the stream of samples, epoch after epoch
    image_size                pixels a side; 0: the data's own
    crop_scale                smallest share of an image that a random resized crop shows; 0: no such crop
    rectangular               validation images are evaluated at their own aspect ratios
    """

    first_step: int
    steps: int
    first_sample: int
    batch_size: int
    image_size: int
    crop_scale: float
    rectangular: bool

    @property
    def image_format(self) -> ImageFormat:
        return ImageFormat(self.image_size, self.rectangular)

    @property
    def end_step(self) -> int:
        return self.first_step + self.steps

    @property
    def end_sample(self) -> int:
        return self.first_sample + self.steps * self.batch_size


@dataclass(frozen=True)
class HyperparamSchedule:
    """The schedule of a whole run: its phases, and the hyperparameters of each step."""

    samples_per_epoch: int
    phases: tuple[Phase, ...]
    lr_factors: Breakpoints
    whitening_lr_factors: Breakpoints
    momentum: Breakpoints

    @staticmethod
    def from_settings(settings: Settings, samples: int) -> HyperparamSchedule:
        """Return the schedule for `samples` training images.

        Raises UserError if a schedule can't be parsed, or if there are fewer images than a batch needs.
        """
        batch_size = settings.batch_size
        samples_per_epoch = samples // batch_size * batch_size if settings.drop_last else samples
        if not samples_per_epoch:
            raise UserError(f"batch_size is {batch_size}, more than the {counted(samples, 'training image')}; lower it")
        lr_factors = (
            parse_schedule(settings.lr_schedule)
            if settings.lr_schedule
            else warmup_then_decay(1.0, settings.warmup_ratio)
        )
        whitening_lr_factors = (
            parse_schedule(settings.whitening_lr_schedule) if settings.whitening_lr_schedule else lr_factors
        )
        factor = batch_size / settings.lr_base_batch_size if settings.lr_base_batch_size else 1.0
        return HyperparamSchedule(
            samples_per_epoch,
            tuple(_build_phases(settings, samples_per_epoch)),
            scale(lr_factors, factor),
            scale(whitening_lr_factors, factor),
            parse_schedule(settings.momentum_schedule) if settings.momentum_schedule else [(0.0, settings.momentum)],
        )

    @property
    def total_steps(self) -> int:
        return self.phases[-1].end_step

    def advise(self, batch_size: int) -> str | None:
        """Return what to do about a data set that is so small that an epoch is less than a step; else None."""
        if batch_size <= self.samples_per_epoch:
            return None
        return (
            f"An epoch has {counted(self.samples_per_epoch, 'training image')} and a batch {batch_size}, so the run is "
            f"only {counted(self.total_steps, 'step')} long. A smaller batch_size makes more of them."
        )

    def phase_at(self, step: int) -> Phase:
        """Return the phase of step `step` (counted from 0); past the end, the last phase."""
        return next((phase for phase in self.phases if step < phase.end_step), self.phases[-1])

    def samples_before(self, step: int) -> int:
        """Return how many samples are trained on before step `step`: its position in the stream of samples."""
        phase = self.phase_at(step)
        return phase.first_sample + (step - phase.first_step) * phase.batch_size

    def epochs_before(self, step: int) -> float:
        """Return how many epochs are trained before step `step`."""
        return self.samples_before(step) / self.samples_per_epoch

    def completes_epoch(self, step: int, every: int) -> bool:
        """Return whether, after `step` steps, the last one completed an epoch whose number is a multiple of `every`."""
        samples = self.samples_per_epoch * every
        return self.samples_before(step) // samples > self.samples_before(step - 1) // samples

    def step_hyperparams(self, step: int) -> StepHyperparams:
        """Return the hyperparameters of step `step` (counted from 0)."""
        position = self.samples_before(step) / self.phases[-1].end_sample
        return StepHyperparams(
            piecewise_linear(self.lr_factors, position),
            piecewise_linear(self.whitening_lr_factors, position),
            piecewise_linear(self.momentum, position),
            step,
        )


def _build_phases(settings: Settings, samples_per_epoch: int) -> Iterator[Phase]:
    """Yield one phase from each position where image format or batch size changes to the next; none without a step."""
    batch_factors = parse_step_schedule(settings.batch_size_schedule, 1.0)
    crops = parse_step_schedule(settings.crop_scale_schedule, settings.crop_scale)
    sizes, rectangular = _image_format_schedules(settings)
    starts = sorted({position for position, _ in (*batch_factors, *sizes, *crops, *rectangular)} - {1.0})
    step = sample = 0
    for start, end in pairwise([*starts, 1.0]):
        batch_size = max(1, round(settings.batch_size * piecewise_constant(batch_factors, start)))
        steps = math.ceil(round((settings.epochs * samples_per_epoch * end - sample) / batch_size, 6))
        if steps > 0:
            yield Phase(
                first_step=step,
                steps=steps,
                first_sample=sample,
                batch_size=batch_size,
                image_size=round(piecewise_constant(sizes, start)),
                crop_scale=piecewise_constant(crops, start),
                rectangular=piecewise_constant(rectangular, start) > 0,
            )
            step, sample = step + steps, sample + steps * batch_size


def _image_format_schedules(settings: Settings) -> tuple[Breakpoints, Breakpoints]:
    return (
        parse_step_schedule(settings.image_size_schedule, 0.0),
        parse_step_schedule(settings.rectangular_eval_schedule, settings.rectangular_eval),
    )
