# SPDX-License-Identifier: Apache-2.0
"""A request to stop that comes in an evaluation ends it at once, and the resumed run is the run without a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tests.trainer.training.data.sample_images import COLOURS, save_image
from tests.trainer.training.gangs import DIGITS, Gang, finished
from tests.trainer.training.late_ranks import samples_of
from tests.trainer.training.stopped_evaluations import StopInEvaluation

PARAMS = DIGITS | {"epochs": 2, "batch_size": 128, "eval_every_epochs": 1, "sync_batch_norm": False}
EVALUATED = [12, 23]
"""The steps after which it is; the last one is the run's."""
IMAGES_EACH = 20
HOOKS = """
def on_step_end(context):
    context.metrics["hook/steps"] = context.step

def on_evaluate(context):
    context.metrics["hook/doubled"] = 2 * context.metrics["val/acc"]
"""


def run(folder: Path, stop: StopInEvaluation, *, procs: int = 1, **task) -> Gang:
    settings = {"params": PARAMS, "precision": "fp16", "bare": True} | task
    return finished(folder / "run", procs=procs, script=stop.script(folder), **settings)


def points(*runs: Gang) -> list[tuple[int, float, dict]]:
    """Step, epoch and values of all lines, but for seconds."""
    timed = ("time/", "stall/")
    return [
        (line["step"], line["epoch"], {name: value for name, value in line["v"].items() if not name.startswith(timed)})
        for ran in runs
        for line in ran.metrics()
    ]


def batches_begun(ran: Gang, rank: int, evaluation: int) -> int:
    return (ran.first / f"log-rank{rank}.txt").read_text().count(f"evaluation {evaluation} batch")


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "gang"])
def unbroken(request, tmp_path_factory) -> Gang:
    return run(tmp_path_factory.mktemp("unbroken"), StopInEvaluation(0), procs=request.param)


@pytest.mark.parametrize(("evaluation", "lag"), [(1, 2), (2, 0)], ids=["of an epoch, read late", "final"])
def test_a_stop_in_an_evaluation_leaves_it_and_the_resumed_run_does_it_whole(
    tmp_path: Path, unbroken: Gang, evaluation: int, lag: int
):
    """With the same bits and the same points, each of them once; told on the last rank alone. Told in the same
    evaluation again, nothing is lost."""
    world = len(unbroken.processes)
    stop = StopInEvaluation(evaluation, rank=world - 1, lag=lag)
    stopped = run(tmp_path / "stopped", stop, procs=world)
    before = EVALUATED[evaluation - 1] - 1

    assert [word["outcome"] for word in stopped.exits()] == ["drained"] * world, stopped.logs()
    assert {batches_begun(stopped, rank, evaluation) for rank in range(world)} == {stop.batch + lag}
    (saved,) = stopped.events("checkpoint")
    assert (saved["step"], saved["lines"], saved["reason"]) == (
        before,
        before,
        "order",
    )  # the next run reports the rest
    assert {word["step"] for word in stopped.exits()} == {before}
    assert saved["stop_s"] > 0
    resume = {"procs": world, "resume": stopped.checkpoint()}

    again = run(tmp_path / "again", StopInEvaluation(1), generation=2, **resume)
    assert [(word["outcome"], word["step"]) for word in again.exits()] == [("drained", before)] * world
    assert again.metrics() == again.events("checkpoint") == []  # what it was resumed from stays the newest

    resumed = run(tmp_path / "resumed", StopInEvaluation(0), generation=3, **resume)
    assert [event["step"] for event in resumed.events("started")] == [before]
    assert resumed.state_hashes() == unbroken.state_hashes()
    assert points(stopped, resumed) == points(unbroken)
    assert [step for step, _, values in points(unbroken) if "val/acc" in values] == EVALUATED
    assert samples_of(stopped, resumed) == samples_of(unbroken)
    results = [ran.events("checkpoint")[-1]["result"] for ran in (resumed, unbroken)]
    assert len({(result["val/acc"], result["val/loss"]) for result in results}) == 1


def test_the_line_of_an_evaluated_step_is_of_the_time_after_its_evaluation(unbroken: Gang):
    """Training time is what lies between lines, less the evaluation in them."""
    lines = unbroken.metrics()
    before, evaluated = (next(line for line in lines if line["step"] == EVALUATED[0] - back) for back in (1, 0))
    assert evaluated["t"] - before["t"] > evaluated["v"]["time/evaluation_s"]


def test_a_goal_ends_a_run_in_the_same_step(tmp_path: Path):
    """Whether the stop comes in the evaluation that reaches it, or in the final one, of the same step."""
    hooks = tmp_path / "hooks.py"
    hooks.write_text(HOOKS)
    goal = {"metric": "val/acc", "reach": 0.01}
    task = {"params": PARAMS | {"hooks_file": str(hooks)}, "goal": goal}
    unbroken = run(tmp_path / "unbroken", StopInEvaluation(0), **task)
    for evaluation in (1, 2):
        folder = tmp_path / str(evaluation)
        stopped = run(folder / "stopped", StopInEvaluation(evaluation), **task)
        assert stopped.events("checkpoint")[-1]["step"] == EVALUATED[0] - 1
        resumed = run(folder / "resumed", StopInEvaluation(0), resume=stopped.checkpoint(), generation=2, **task)
        assert resumed.state_hashes() == unbroken.state_hashes()
        assert points(stopped, resumed) == points(unbroken)
        assert resumed.events("checkpoint")[-1]["result"]["goal_reached"]
    assert points(unbroken)[-1][0] == EVALUATED[0]
    assert points(unbroken)[-1][2]["hook/doubled"] > 0


def test_a_run_resumed_on_fewer_ranks_does_the_evaluation_that_was_left(tmp_path: Path):
    stopped = run(tmp_path / "stopped", StopInEvaluation(1, rank=1), procs=2)
    alone = run(tmp_path / "alone", StopInEvaluation(0), resume=stopped.checkpoint(), generation=2)
    together = points(stopped, alone)
    assert [step for step, _, _ in together] == list(range(1, EVALUATED[-1] + 1))
    assert [step for step, _, values in together if "val/acc" in values] == EVALUATED
    assert all("train/loss" in values for _, _, values in together)


def pictures(folder: Path) -> dict:
    """A task with pictures that a first epoch has at half their size, scored by an average of the weights."""
    for number in range(IMAGES_EACH):
        for name, colour in COLOURS.items():
            save_image(folder / name / f"{number}.png", colour, number)
    params = {
        "model": "convnet", "width": 4, "image_size": 16, "image_size_schedule": "0:8 1/2:16", "batch_size": 8,
        "epochs": 2, "eval_every_epochs": 1, "weight_average": "ema", "weight_average_decay": 0.9,
        "weight_average_every_steps": 2, "val_fraction": 0.5,
    }  # fmt: skip
    return {"recipe": "imagefolder/any", "params": params, "data": {"train": str(folder)}}


def test_an_evaluation_scores_the_average_of_its_step_at_the_size_of_its_phase(tmp_path: Path):
    """The phase ends with it, and the next one has larger images."""
    task = pictures(tmp_path / "images")
    unbroken = run(tmp_path / "unbroken", StopInEvaluation(0), **task)
    first = next(step for step, _, values in points(unbroken) if "val/acc" in values)
    stopped = run(tmp_path / "stopped", StopInEvaluation(1, batch=1), **task)
    assert stopped.events("checkpoint")[-1]["step"] == first - 1
    resumed = run(tmp_path / "resumed", StopInEvaluation(0), resume=stopped.checkpoint(), generation=2, **task)
    assert points(stopped, resumed) == points(unbroken)
    assert resumed.state_hashes() == unbroken.state_hashes()
    final = run(tmp_path / "final", StopInEvaluation(2, batch=1), **task)
    weights, average = (load(final.part(f"{name}.safetensors")) for name in ("model", "average"))
    assert not all(torch.equal(weights[name], tensor) for name, tensor in average.items())  # those that it trained
    resumed = run(tmp_path / "resumed-2", StopInEvaluation(0), resume=final.checkpoint(), generation=2, **task)
    assert points(final, resumed) == points(unbroken)
    assert resumed.state_hashes() == unbroken.state_hashes()


def test_a_stop_while_images_are_decoded_for_the_next_phase_is_not_kept_waiting(tmp_path: Path):
    """On the rank that decodes, for both. The first phase had its training and its validation images."""
    task = pictures(tmp_path / "images") | {"procs": 2}
    unbroken = run(tmp_path / "unbroken", StopInEvaluation(0), **task)
    first = next(step for step, _, values in points(unbroken) if "val/acc" in values)
    stopped = run(tmp_path / "stopped", StopInEvaluation(0, decode=3), **task)
    assert [(word["outcome"], word["step"]) for word in stopped.exits()] == [("drained", first)] * 2, stopped.logs()
    resumed = run(tmp_path / "resumed", StopInEvaluation(0), resume=stopped.checkpoint(), generation=2, **task)
    assert points(stopped, resumed) == points(unbroken)
    assert resumed.state_hashes() == unbroken.state_hashes()
