# SPDX-License-Identifier: Apache-2.0
"""Results that are read some steps late, as on a GPU, end runs as results that are read at once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from shoestring_trainer.run_files import MAX_STOP_S
from shoestring_trainer.training.step_results import result_lag, seconds_to_stop

from tests.trainer.training.gangs import Gang, finished, gang
from tests.trainer.training.late_ranks import PARAMS, Late, points, samples_of

LAG, OVERFLOW, STOP, BAD = 3, 6, 15, 9
EVERY = {"every_s": None, "every_steps": 5}
GOAL = {"metric": "val/acc", "reach": 0.6}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_run_that_reads_late_is_the_run_that_reads_at_once(tmp_path: Path, world: int):
    """Through an overflow and a request to stop that one rank meets, an evaluation in each epoch, to the goal."""
    last = world - 1

    def run(name: str, late: Late, **more):
        settings = {"params": PARAMS, "precision": "fp16", "checkpoint": EVERY, "goal": GOAL, **more}
        return finished(
            tmp_path / name, procs=world, script=late.script(tmp_path / f"{name}-script"), bare=True, **settings
        )  # fmt: skip

    at_once = run("at-once", Late(lag=0, rank=last, overflow_at=OVERFLOW))
    stopped = run("stopped", Late(lag=LAG, rank=last, overflow_at=OVERFLOW, stop_at=STOP))
    late = run("late", Late(lag=LAG), resume=stopped.checkpoint(), generation=2)

    ((stop_step, outcome),) = {(word["step"], word["outcome"]) for word in stopped.exits()}
    assert (stop_step, outcome) == (STOP + LAG, "drained")
    assert [word["outcome"] for word in late.exits()] == ["finished"] * world
    assert late.state_hashes() == at_once.state_hashes()
    assert points(stopped, late) == points(at_once)
    assert samples_of(stopped, late) == samples_of(at_once)
    overflows = [[(one["step"], one["scale"]) for one in ran.events("gradient_overflow")] for ran in (stopped, at_once)]
    assert overflows == [[(OVERFLOW, 32768.0)]] * 2
    assert late.events("checkpoint")[-1]["result"]["goal_reached"]

    # each checkpoint comes after all points up to it, at the same steps; the one of the stop is one more
    saved = [event["step"] for ran in (stopped, late) for event in ran.events("checkpoint")]
    assert sorted(saved) == sorted([*(event["step"] for event in at_once.events("checkpoint")), stop_step])
    assert all(event["lines"] == event["step"] for event in stopped.events("checkpoint"))
    assert all(event["stop_s"] > 0 for event in stopped.events("checkpoint"))
    assert all(event["lines"] == event["step"] - stop_step for event in late.events("checkpoint"))
    times = [line["t"] for line in stopped.metrics()]
    assert times == sorted(times)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_loss_that_is_not_finite_is_named_by_its_step_and_never_saved(tmp_path: Path, world: int):
    """On all ranks, though it is the images of one that are broken; a checkpoint is due while it is still unread."""
    script = Late(lag=LAG, rank=world - 1, nan_at=BAD).script(tmp_path)
    with gang(tmp_path / "run", procs=world, script=script, params=PARAMS, checkpoint=EVERY) as run:
        assert run.wait() == [1] * world
    errors = [(word["error"]["kind"], word["error"]["since"], word["step"]) for word in run.exits()]
    assert errors == [("nan", BAD, BAD + LAG)] * world, run.logs()
    assert [event["step"] for event in run.events("checkpoint")] == [5]
    assert next(step for step, loss, _ in points(run) if not math.isfinite(float(str(loss)))) == BAD


def test_only_a_gpu_reads_late_and_by_a_number_that_all_ranks_share():
    """Hooks see a step's metrics when it ends."""
    assert [result_lag(torch.device(kind), hooks=False) for kind in ("cpu", "cuda")] == [0, 2]
    assert result_lag(torch.device("cuda"), hooks=True) == 0


def test_the_time_until_a_stop_counts_the_steps_by_which_results_are_late():
    """At 10 seconds a step: what the device is behind, the step that began, the next one, which tells all, the lag."""
    assert [seconds_to_stop(lag, steps=7, seconds=70.0) for lag in (0, 2, 4)] == [20.0, 60.0, 100.0]
    assert seconds_to_stop(4, steps=1, seconds=1e9) == MAX_STOP_S


def test_with_fast_algorithms_a_resumed_run_has_the_steps_and_samples_of_an_unbroken_one(tmp_path: Path):
    """Whose gradients differ in each run, and so the bits of the weights."""
    params = PARAMS | {"deterministic": False, "epochs": 3}

    def run(name: str, **task):
        late = Late(lag=LAG, noise=1e-3, stop_at=0 if "resume" in task or name == "unbroken" else STOP)
        return finished(tmp_path / name, script=late.script(tmp_path / f"{name}-s"), bare=True, params=params, **task)

    unbroken, stopped = run("unbroken"), run("stopped")
    resumed = run("resumed", resume=stopped.checkpoint(), generation=2)
    assert resumed.state_hashes() != unbroken.state_hashes()
    assert samples_of(stopped, resumed) == samples_of(unbroken)
    assert scheduled(stopped, resumed) == scheduled(unbroken)


def scheduled(*runs: Gang) -> list[tuple[int, float, float]]:
    """Return step, learning rate and momentum of all lines."""
    return [
        (line["step"], line["v"]["train/lr"], line["v"]["train/momentum"]) for run in runs for line in run.metrics()
    ]
