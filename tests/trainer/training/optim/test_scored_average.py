# SPDX-License-Identifier: Apache-2.0
"""Evaluations during a run score the average of the weights where the recipe's source does: an EMA."""

from __future__ import annotations

from pathlib import Path

from shoestring_trainer.training.optim.weight_average import advise_average
from shoestring_trainer.training.settings import Settings

from tests.trainer.training.data.sample_images import COLOURS, save_image
from tests.trainer.training.gangs import Gang, finished

PARAMS = {
    "model": "convnet", "width": 4, "image_size": 16, "batch_size": 9, "label_smoothing": 0, "weight_average": "ema",
}  # fmt: skip


def train(folder: Path, **params) -> Gang:
    for number in range(16):
        for name, colour in COLOURS.items():
            save_image(folder / "images" / name / f"{number}.png", colour, number)
    task = {"recipe": "imagefolder/any", "params": PARAMS | params, "data": {"train": str(folder / "images")}}
    return finished(folder / "run", bare=True, **task)


def test_evaluations_and_the_goal_score_an_ema_and_training_goes_on_with_the_weights_of_the_step(tmp_path: Path):
    """An EMA that forgets nothing stays what the network began as."""
    run = train(tmp_path, epochs=4, weight_average_decay=1.0, weight_average_every_steps=1)
    values = [line["v"] for line in run.metrics()]
    assert len({one["val/loss"] for one in values if "val/loss" in one}) == 1
    assert values[-1]["train/loss"] < values[0]["train/loss"] - 0.1


def test_a_run_that_is_too_short_for_its_average_says_so(tmp_path: Path):
    run = train(tmp_path, epochs=1, weight_average_every_steps=6)
    said = (
        "updated every 6 steps, and the run has 5 steps: it ends with its initial weights. Lower weight_average_every"
    )
    assert said in run.logs()
    assert [advise_average(Settings(weight_average=kind), 4) is None for kind in ("none", "lookahead")] == [True, False]
    assert advise_average(Settings(weight_average="ema"), 5) is None
