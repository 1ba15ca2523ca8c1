# SPDX-License-Identifier: Apache-2.0
"""Ranks that read the results of their steps late, as on a GPU, and to which something happens at a chosen step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shoestring_trainer.training.results.sample_log import read_sample_log

from tests.trainer.training.gangs import DIGITS, Gang

PARAMS = DIGITS | {"epochs": 40, "batch_size": 128, "eval_every_epochs": 1, "sync_batch_norm": False}
"""Small batches and norms over the global batch would take most of a gang's time."""

SCRIPT = """
import math, os, random, sys
from shoestring_trainer.training import rank, step_results
from shoestring_trainer.training.data.batch_loader import BatchLoader
from shoestring_trainer.training.step import Trainer

LATE = {late!r}
step_results.LAG["cpu"] = LATE["lag"]
chosen = os.environ.get("RANK", "0") == str(LATE["rank"])
train_step, load_batch, step = Trainer.train_step, BatchLoader.load_batch, 0

def load(loader, samples):
    images, labels = load_batch(loader, samples)
    return images * (math.nan if chosen and step == LATE["nan_at"] else 1), labels

def train(trainer, *arguments):
    global step
    step = trainer.hook_context.step + 1
    trainer._stop_requested = lambda: chosen and 0 < LATE["stop_at"] <= step
    factor = math.inf if chosen and step == LATE["overflow_at"] else 1 + LATE["noise"] * random.random()
    handle = next(trainer.model.parameters()).register_hook(lambda gradient: gradient * factor)
    try:
        return train_step(trainer, *arguments)
    finally:
        handle.remove()

BatchLoader.load_batch, Trainer.train_step = load, train
rank.main(sys.argv[1:])
"""


@dataclass(frozen=True)
class Late:
    """What happens to one rank. Steps are counted from 1; 0: never.

    lag          steps between a step and the reading of its result
    nan_at       its images are NaN in this step
    overflow_at  its gradient is infinite in this step
    stop_at      it is asked to stop from this step on
    noise        share by which gradients differ from run to run, as those of fast algorithms on a GPU may
    """

    lag: int
    rank: int = 0
    nan_at: int = 0
    overflow_at: int = 0
    stop_at: int = 0
    noise: float = 0.0

    def script(self, folder: Path) -> Path:
        """Write the ranks' script."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "late.py"
        file.write_text(SCRIPT.format(late=vars(self)))
        return file


def samples_of(*runs: Gang) -> dict[tuple[str, int], object]:
    """Return the samples of each step by rank; a later run's, where two have a step."""
    found: dict[tuple[str, int], object] = {}
    for run in runs:
        for path in sorted(run.first.glob("samples-rank*.bin")):
            log = read_sample_log(path)
            for step, spans in log.steps.items():
                found[path.name, step] = [(epoch, list(ids)) for epoch, ids in spans]
    return found


def points(*runs: Gang) -> list[tuple[int, object, object]]:
    """Return step, loss and accuracy of all lines."""
    return [(line["step"], line["v"]["train/loss"], line["v"].get("val/acc")) for run in runs for line in run.metrics()]
