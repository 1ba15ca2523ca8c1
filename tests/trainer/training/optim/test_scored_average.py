# SPDX-License-Identifier: Apache-2.0
"""Evaluations during a run score the average of the weights where the recipe's source does: an EMA."""

from __future__ import annotations

from pathlib import Path

from tests.trainer.training.data.sample_images import COLOURS, save_image
from tests.trainer.training.gangs import finished


def test_evaluations_and_the_goal_score_an_ema_and_training_goes_on_with_the_weights_of_the_step(tmp_path: Path):
    """An EMA that forgets nothing stays what the network began as."""
    for number in range(16):
        for name, colour in COLOURS.items():
            save_image(tmp_path / "images" / name / f"{number}.png", colour, number)
    params = {
        "model": "convnet", "width": 4, "image_size": 16, "batch_size": 9, "epochs": 4, "label_smoothing": 0,
        "weight_average": "ema", "weight_average_decay": 1.0, "weight_average_every_steps": 1,
    }  # fmt: skip
    run = finished(
        tmp_path / "run", recipe="imagefolder/any", params=params, data={"train": str(tmp_path / "images")}, bare=True
    )  # fmt: skip
    values = [line["v"] for line in run.metrics()]
    assert len({one["val/loss"] for one in values if "val/loss" in one}) == 1
    assert values[-1]["train/loss"] < values[0]["train/loss"] - 0.1
