# SPDX-License-Identifier: Apache-2.0
"""Shampoo and K-FAC in whole runs: they recover from broken numbers as the rest, and train in gangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.training.data.sample_images import COLOURS, save_image
from tests.trainer.training.gangs import finished, gang
from tests.trainer.training.late_ranks import Late, points

PARAMS = {
    "model": "convnet", "width": 4, "image_size": 16, "batch_size": 14, "epochs": 4, "preconditioner_every_steps": 2,
}  # fmt: skip
CHOICES = {
    "shampoo": {"optimizer": "shampoo"},
    "kfac": {"optimizer": "kfac"},
    "kfac-sampled": {"optimizer": "kfac", "kfac_fisher": "sampled"},
}
EVERY = {"every_s": None, "every_steps": 12}
BAD = 13
"""A step after a checkpoint, in which preconditioners are updated: their decompositions refuse NaN and infinity."""


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> dict:
    """What runs here have in common: a folder of images whose class is their colour."""
    folder = tmp_path_factory.mktemp("colours")
    for number in range(24):
        for name, colour in COLOURS.items():
            save_image(folder / name / f"{number}.png", colour, number)
    return {"recipe": "imagefolder/any", "data": {"train": str(folder)}, "checkpoint": EVERY}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_batch_that_breaks_the_numbers_is_gone_back_from(tmp_path: Path, task: dict, choice: str):
    params = PARAMS | CHOICES[choice]
    late = Late(lag=2, nan_at=BAD).script(tmp_path)
    with gang(tmp_path / "run", alone=True, script=late, bare=True, params=params, **task) as run:
        assert run.wait() == [0], run.logs()
    assert f"rolling back and skipping the batch of step {BAD}" in run.logs()
    assert [event["step"] for event in run.events("started")] == [0, BAD - 1]
    assert [event["step"] for event in run.events("skipped")] == [BAD]
    never = finished(tmp_path / "never", skip=[[BAD, BAD]], bare=True, params=params, **task)
    assert run.state_hashes() == never.state_hashes()


def test_a_gang_draws_labels_for_the_passes_of_its_steps_alone(tmp_path: Path, task: dict):
    """Not for the pass that DDP's buckets are laid out by; with gradient accumulation and a static graph."""
    params = PARAMS | CHOICES["kfac-sampled"] | {"micro_batch_size": 4, "static_graph": True, "epochs": 2}
    run = finished(tmp_path, procs=2, bare=True, params=params, **task)
    losses = [float(str(loss)) for _, loss, _ in points(run)]
    assert losses[-1] < losses[0] - 0.1
