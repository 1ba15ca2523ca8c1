# SPDX-License-Identifier: Apache-2.0
"""Results that are read some steps late, as on a GPU, end runs as results that are read at once."""

from __future__ import annotations

import math
from pathlib import Path

from tests.trainer.training.gangs import DIGITS, finished, gang

LAG, BAD = 3, 9
LATE = f"""
import sys
from shoestring_trainer.training import rank, step_results
step_results.LAG["cpu"] = {LAG}
rank.main(sys.argv[1:])
"""
LATE_WITH_A_BAD_BATCH = f"""
import sys
from shoestring_trainer.training import rank, step_results
from shoestring_trainer.training.data.batch_loader import BatchLoader
step_results.LAG["cpu"] = {LAG}
load_batch, loaded = BatchLoader.load_batch, 0

def load(loader, samples):
    global loaded
    loaded += 1
    images, labels = load_batch(loader, samples)
    return images * (float("nan") if loaded == {BAD} else 1), labels

BatchLoader.load_batch = load
rank.main(sys.argv[1:])
"""
PARAMS = DIGITS | {"batch_size": 64, "epochs": 40, "eval_every_epochs": 1}
EVERY = {"every_s": None, "every_steps": 5}
GOAL = {"metric": "val/acc", "reach": 0.3}


def script(folder: Path, text: str) -> Path:
    file = folder / "late.py"
    file.write_text(text)
    return file


def test_a_run_that_reads_late_is_the_run_that_reads_at_once(tmp_path: Path):
    """To its goal, with an evaluation in each epoch; each checkpoint comes after all points up to it."""
    at_once = finished(tmp_path / "at-once", params=PARAMS, checkpoint=EVERY, goal=GOAL, bare=True)
    late = finished(
        tmp_path / "late", script=script(tmp_path, LATE), bare=True, params=PARAMS, checkpoint=EVERY, goal=GOAL
    )  # fmt: skip
    assert late.state_hashes() == at_once.state_hashes()
    assert [(line["step"], line["v"]["train/loss"], line["v"].get("val/acc")) for line in late.metrics()] == [
        (line["step"], line["v"]["train/loss"], line["v"].get("val/acc")) for line in at_once.metrics()
    ]
    saved = [(event["step"], event["lines"]) for event in late.events("checkpoint")]
    assert saved == [(event["step"], event["lines"]) for event in at_once.events("checkpoint")]
    assert all(step == lines for step, lines in saved)
    times = [line["t"] for line in late.metrics()]
    assert times == sorted(times)


def test_a_request_to_stop_is_obeyed_by_all_ranks_in_the_same_step(tmp_path: Path):
    late = script(tmp_path, LATE)
    with gang(tmp_path / "run", procs=2, script=late, params=PARAMS) as run:
        run.until_step(4)
        run.order_stop()
        assert not any(run.wait()), run.logs()
    steps = [line["step"] for line in run.metrics()]
    assert steps == list(range(1, len(steps) + 1))
    assert [(word["outcome"], word["step"]) for word in run.exits()] == [("drained", len(steps))] * 2
    (saved,) = run.events("checkpoint")
    assert saved["step"] == saved["lines"] == len(steps)


def test_a_loss_that_is_not_finite_is_named_by_its_step_and_never_saved(tmp_path: Path):
    """A checkpoint is due while it is still unread."""
    text = LATE_WITH_A_BAD_BATCH
    with gang(tmp_path / "run", procs=2, script=script(tmp_path, text), params=PARAMS, checkpoint=EVERY) as run:
        assert any(run.wait())
    errors = [word["error"] for word in run.exits() if word.get("error")]
    assert ("nan", BAD) in [(error["kind"], error.get("since")) for error in errors], run.logs()
    assert [event["step"] for event in run.events("checkpoint")] == [5]
    assert next(line["step"] for line in run.metrics() if not math.isfinite(float(line["v"]["train/loss"]))) == BAD
