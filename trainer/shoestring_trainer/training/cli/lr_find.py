# SPDX-License-Identifier: Apache-2.0
"""Learning-rate finder: the learning rate grows by a constant factor each step, and the loss shows where it falls and
where it diverges. Source: L. Smith, "Cyclical Learning Rates for Training Neural Networks" (2015), as in fast.ai.
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
from shoestring_trainer.training.hyperparam_schedule import StepHyperparams
from shoestring_trainer.training.optim.optimizers import build_optimizer, set_hyperparams
from shoestring_trainer.training.randomness import seed_dropout
from shoestring_trainer.training.setup import Setup, set_up
from shoestring_trainer.training.task import LocalTask, read_task

SMOOTHING = 0.9
DIVERGENCE_FACTOR = 4.0
"""The search ends when the smoothed loss exceeds its minimum by this factor."""
BAR_WIDTH = 40


@dataclass(frozen=True)
class LrSearch:
    """Learning rates and the smoothed loss at each; two suggestions, None if no learning rate lowered the loss.

    steepest           where the loss fell fastest
    tenth_of_minimum   a tenth of the learning rate with the lowest loss
    """

    rates: list[float]
    losses: list[float]
    steepest: float | None
    tenth_of_minimum: float | None


def find_lr(task: LocalTask, *, start_lr: float, end_lr: float, steps: int) -> LrSearch:
    """Train up to `steps` steps from initial weights, in fp32, while `lr` grows from `start_lr` to `end_lr`.

    The learning rates of other parameter groups keep their ratio to it.
    """
    if not 0 < start_lr < end_lr or steps < 2:
        raise UserError("the search needs 0 < start-lr < end-lr, and two steps or more")
    setup = set_up(task)
    try:
        return _search(setup, start_lr=start_lr, end_lr=end_lr, steps=steps)
    finally:
        setup.close()


def _search(setup: Setup, *, start_lr: float, end_lr: float, steps: int) -> LrSearch:
    settings, model = setup.settings, setup.model
    phase, sampler = setup.schedule.phases[0], setup.build_sampler()
    setup.loader.start_phase(phase, (sampler.peek(step * phase.batch_size, phase.batch_size) for step in range(steps)))
    optimizer = build_optimizer(model, settings)
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for step in range(steps):
        rate = start_lr * (end_lr / start_lr) ** (step / (steps - 1))
        set_hyperparams(optimizer, StepHyperparams(rate / settings.lr, rate / settings.lr, settings.momentum, step))
        seed_dropout(setup.seed, step, setup.distributed.device)
        setup.loader.await_input(step * phase.batch_size, phase.batch_size)
        images_NCHW, labels_N = setup.loader.load_batch(sampler.batch(step * phase.batch_size, phase.batch_size))
        loss = F.cross_entropy(model(images_NCHW), labels_N, label_smoothing=settings.label_smoothing)
        (loss * (phase.batch_size if settings.sum_loss else 1)).backward()
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss.item()
        smooth = mean / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(smooth) or (losses and smooth > DIVERGENCE_FACTOR * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
        optimizer.step()
        optimizer.zero_grad()
    return LrSearch(rates, losses, *choose(rates, losses))


def choose(rates: Sequence[float], losses: Sequence[float]) -> tuple[float | None, float | None]:
    """Return (steepest, tenth_of_minimum), see LrSearch. Rates grow by a constant factor, so steps are comparable."""
    lowest = min(range(len(losses)), key=losses.__getitem__, default=0)
    if lowest == 0:
        return None, None
    falls = [losses[at] - losses[at + 1] for at in range(lowest)]
    return rates[falls.index(max(falls))], rates[lowest] / 10


def print_lr_search(arguments: Sequence[str], *, start_lr: float, end_lr: float, steps: int, as_json: bool) -> None:
    """Search for the recipe or job spec in `arguments`, and print learning rates, losses and suggestions."""
    with TemporaryDirectory() as folder:
        search = find_lr(
            read_task(prepare_task([*arguments, "--output-dir", str(Path(folder) / "run")])),
            start_lr=start_lr,
            end_lr=end_lr,
            steps=steps,
        )
    if as_json:
        print(json.dumps(search.__dict__))
        return
    highest = max(search.losses, default=1.0)
    for at in range(0, len(search.rates), max(1, len(search.rates) // 25)):
        rate, loss = search.rates[at], search.losses[at]
        print(f"lr {rate:9.3g}  loss {loss:7.4f}  {'█' * round(BAR_WIDTH * loss / highest)}")
    if search.steepest is None or search.tenth_of_minimum is None:
        print("No learning rate lowered the loss; try a lower --start-lr")
    else:
        print(
            f"The loss fell fastest at lr {search.steepest:.2g}; "
            f"a tenth of the lr with the lowest loss is {search.tenth_of_minimum:.2g}."
        )
