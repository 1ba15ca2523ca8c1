# SPDX-License-Identifier: Apache-2.0
"""The learning-rate finder: the rate grows by the same factor each step, and the loss says where it helps and where it
breaks. Source: L. Smith, "Cyclical Learning Rates for Training Neural Networks" (2015), as fast.ai made it known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.nn.functional as F

from shoestring_trainer.training.cli.standalone import prepare_task
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.optim.optimizers import build_optimizer, set_hyperparams
from shoestring_trainer.training.optim.schedules import StepHyperparams
from shoestring_trainer.training.randomness import seed_dropout
from shoestring_trainer.training.setup import set_up
from shoestring_trainer.training.task import Task, read_task

SMOOTHING = 0.9
BROKEN = 4.0
"""A smoothed loss so many times the best one ends the search."""
BAR = 40


@dataclass(frozen=True)
class LrSearch:
    """Rates tried and the smoothed loss after each; two rates to choose by, None if no rate brought the loss down.

    steepest  where the loss fell fastest as the rate grew
    tenth     a tenth of the rate at which the loss was lowest
    """

    rates: list[float]
    losses: list[float]
    steepest: float | None
    tenth: float | None


def find_lr(task: Task, *, low: float, high: float, steps: int) -> LrSearch:
    """Train from fresh weights for up to `steps` steps, in fp32, while the recipe's `lr` goes from `low` to `high`.

    Rates of other kinds of parameter keep their proportion to it.
    """
    if not 0 < low < high or steps < 2:
        raise UserError("the search needs 0 < low < high, and two steps or more")
    setup = set_up(task)
    settings, model = setup.settings, setup.model
    phase, sampler = setup.schedule.phases[0], setup.build_sampler()
    setup.loader.start_phase(phase)
    optimizer = build_optimizer(model, settings, uses_grad_scaler=False)
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for step in range(steps):
        rate = low * (high / low) ** (step / (steps - 1))
        set_hyperparams(optimizer, StepHyperparams(rate / settings.lr, rate / settings.lr, settings.momentum))
        seed_dropout(setup.seed, step, setup.distributed.device)
        indices = sampler.batch(step * phase.batch_size, phase.batch_size)
        images_NCHW, labels_N = setup.loader.load_batch(indices.samples_N, indices.draws_NK)
        loss = F.cross_entropy(model(images_NCHW), labels_N, label_smoothing=settings.label_smoothing)
        (loss * (phase.batch_size if settings.sum_loss else 1)).backward()
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss.item()
        smooth = mean / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(smooth) or (losses and smooth > BROKEN * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
        optimizer.step()
        optimizer.zero_grad()
    return LrSearch(rates, losses, *choose(rates, losses))


def choose(rates: Sequence[float], losses: Sequence[float]) -> tuple[float | None, float | None]:
    """(steepest, tenth) of a search, see LrSearch. Rates grow by one factor, so falls are compared step by step."""
    lowest = min(range(len(losses)), key=losses.__getitem__, default=0)
    if lowest == 0:
        return None, None
    falls = [losses[at] - losses[at + 1] for at in range(lowest)]
    return rates[falls.index(max(falls))], rates[lowest] / 10


def print_lr_search(words: Sequence[str], *, low: float, high: float, steps: int, as_json: bool) -> None:
    """Search for the recipe or job spec that `words` name, and print rates, losses and what to choose."""
    with TemporaryDirectory() as folder:
        found = find_lr(
            read_task(prepare_task([*words, "--to", str(Path(folder) / "run")])), low=low, high=high, steps=steps
        )
    if as_json:
        print(json.dumps(found.__dict__))
        return
    highest = max(found.losses, default=1.0)
    for at in range(0, len(found.rates), max(1, len(found.rates) // 25)):
        rate, loss = found.rates[at], found.losses[at]
        print(f"lr {rate:9.3g}  loss {loss:7.4f}  {'█' * round(BAR * loss / highest)}")
    if found.steepest is None or found.tenth is None:
        print("No rate brought the loss down; try a lower one to begin with: --low")
    else:
        print(f"The loss fell fastest at lr {found.steepest:.2g}; a tenth of that of its minimum is {found.tenth:.2g}.")
