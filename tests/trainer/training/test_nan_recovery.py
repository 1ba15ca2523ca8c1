# SPDX-License-Identifier: Apache-2.0
"""Numbers that break: seen, never saved, and recovered from by going back and passing over the batch that did it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from shoestring_trainer.training.cli.sample_audit import audit_samples
from shoestring_trainer.training.results.sample_log import read_sample_log

from tests.trainer.training.gangs import DIGITS, Gang, finished, gang

BAD = 30
GOOD = 24
EVERY = {"every_s": None, "every_steps": 12}
NAN_BATCH = """
import torch
def on_batch(context, images, labels):
    if {when}:
        return torch.full_like(images, float("nan")), labels
"""
ENDLESS_LOSSES = """
import torch
def on_batch(context, images, labels):
    if {first} <= context.step + 1 <= {last}:
        return images, torch.full((len(labels), 10), float("inf"))
"""
BROKEN_WEIGHTS = """
import torch
def on_step_end(context):
    if context.step == {step}:
        with torch.no_grad():
            dict(context.model.named_buffers())["{name}"].fill_(float("inf"))
"""
PARAMS = DIGITS | {"epochs": 1}


def hook(folder: Path, text: str, **values: object) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "hooks.py"
    file.write_text(text.format(**values))
    return str(file)


def alone(folder: Path, **task: object) -> tuple[Gang, int, str]:
    """A run without a launcher and the service: its folder, exit code, and all that it said."""
    with gang(folder, alone=True, checkpoint=EVERY, **task) as run:
        (code,) = run.wait()
    return run, code, run.logs()


@pytest.fixture(scope="module")
def recovered(tmp_path_factory) -> Gang:
    """Alone, with a batch of NaN at step BAD."""
    folder = tmp_path_factory.mktemp("recovered")
    params = PARAMS | {"hooks_file": hook(folder / "hooks", NAN_BATCH, when=f"context.step + 1 == {BAD}")}
    run, code, output = alone(folder / "run", params=params)
    assert code == 0, output
    assert f"rolling back and skipping the batch of step {BAD}" in output
    return run


def test_a_batch_that_breaks_the_numbers_is_passed_over_and_the_run_reaches_its_end(recovered: Gang):
    lines = recovered.metrics()
    total = recovered.events("started")[-1]["steps_total"]
    assert [line["step"] for line in lines] == list(range(1, total + 1))
    assert [line["step"] for line in lines if not math.isfinite(float(line["v"]["train/loss"]))] == [BAD]
    assert [event["step"] for event in recovered.events("skipped")] == [BAD]
    assert [event["step"] for event in recovered.events("started")] == [0, GOOD]
    final = recovered.events("checkpoint")[-1]
    assert final["final"]
    assert final["result"]["steps_skipped"] == 1
    assert json.loads(recovered.part("state.json"))["skip"] == [BAD]


def test_in_fp16_a_loss_scale_that_sinks_without_end_is_gone_back_from(tmp_path: Path):
    """A few overflows are fp16's way of life; thirty-one in a row are one too many, and thirty are not."""
    params = PARAMS | {"hooks_file": hook(tmp_path / "hooks", ENDLESS_LOSSES, first=BAD, last=BAD + 30)}
    run, code, output = alone(tmp_path / "run", params=params, precision="fp16")
    assert code == 0, output
    assert f"no finite gradient in fp16 up to step {BAD + 30}" in output
    assert f"skipping the batch of step {BAD}" in output
    assert [event["step"] for event in run.events("skipped")] == [BAD]
    assert [line["step"] for line in run.metrics()] == list(range(1, run.events("started")[-1]["steps_total"] + 1))


def test_in_fp16_a_batch_that_breaks_the_statistics_of_norms_is_passed_over_by_its_own_step(tmp_path: Path):
    """The loss scale takes its gradients for an overflow and training goes on, without them, to the next checkpoint."""
    params = PARAMS | {"hooks_file": hook(tmp_path / "hooks", NAN_BATCH, when=f"context.step + 1 == {BAD}")}
    run, code, output = alone(tmp_path / "run", params=params, precision="fp16", bare=True)
    assert code == 0, output
    assert f"as the loss had at step {BAD};" in output
    assert f"rolling back and skipping the batch of step {BAD}" in output
    assert [event["step"] for event in run.events("skipped")] == [BAD]
    assert [event["step"] for event in run.events("started")] == [0, GOOD]
    assert run.events("checkpoint")[-1]["result"]["steps_skipped"] == 1


def test_the_log_of_samples_names_those_that_were_passed_over(recovered: Gang):
    audit = audit_samples(read_sample_log(path) for path in recovered.first.glob("samples-rank*.bin"))
    (log,) = (read_sample_log(path) for path in recovered.first.glob("samples-rank*.bin"))
    assert log.skipped == {BAD}
    assert audit.epochs[0].skipped == list(log.steps[BAD][0][1])
    assert len(audit.epochs[0].skipped) == PARAMS["batch_size"]


def test_a_recovered_run_is_the_run_that_never_took_the_batch_and_resumes_as_it(recovered: Gang, tmp_path: Path):
    params = json.loads((recovered.first / "task.json").read_text())["params"]
    settings = {"params": params, "skip": [[BAD, BAD]], "checkpoint": EVERY}
    never = finished(tmp_path / "never", bare=True, **settings)
    assert never.state_hashes() == recovered.state_hashes()
    at = next(event for event in never.events("checkpoint") if event["step"] == GOOD)
    files = {name: str(never.first / at[name]) for name in ("data", "manifest")}
    resumed = finished(
        tmp_path / "resumed", params=params, resume=files, generation=2, bare=True
    )  # it knows by its checkpoint
    assert resumed.state_hashes() == recovered.state_hashes()


def test_a_gang_that_passes_over_a_batch_has_the_curve_of_one_process(recovered: Gang, tmp_path: Path):
    params = json.loads((recovered.first / "task.json").read_text())["params"]
    two = finished(tmp_path, procs=2, params=params, skip=[[BAD, BAD]], bare=True)
    curves = [[float(line["v"]["train/loss"]) for line in run.metrics()] for run in (recovered, two)]
    assert all(one == pytest.approx(other, abs=1e-3, nan_ok=True) for one, other in zip(*curves, strict=True))


def test_a_gang_that_breaks_says_since_when_on_every_rank_and_leaves_its_last_good_checkpoint(tmp_path: Path):
    params = PARAMS | {"hooks_file": hook(tmp_path, NAN_BATCH, when=f"context.step + 1 == {BAD} and context.rank == 1")}
    with gang(tmp_path / "run", procs=2, params=params, checkpoint=EVERY) as run:
        assert run.wait() == [1, 1]
    assert [(word["error"]["kind"], word["error"]["since"]) for word in run.exits()] == [("nan", BAD)] * 2
    assert run.events("checkpoint")[-1]["step"] == GOOD


def test_numbers_that_always_break_end_the_run_with_what_was_tried(tmp_path: Path):
    params = PARAMS | {"hooks_file": hook(tmp_path, NAN_BATCH, when="context.step + 1 >= 20")}
    run, code, _ = alone(tmp_path / "run", params=params)
    assert code == 1
    (word,) = run.exits()
    assert word["error"]["kind"] == "nan"
    assert "skipping the batches of steps 20, 18 to 21, 7 to 22 did not help" in word["error"]["message"]
    assert "lower lr" in word["error"]["message"]
    assert word["step"] == 23
    assert all(event["step"] < 20 for event in run.events("checkpoint"))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path):
    """A norm's statistics: the loss in training does not show them, and evaluation would."""
    name = "1.0.1.running_var"
    params = PARAMS | {"hooks_file": hook(tmp_path, BROKEN_WEIGHTS, step=13, name=name)}
    with gang(tmp_path / "run", params=params, checkpoint=EVERY) as run:
        assert run.wait() == [1]
    assert [event["step"] for event in run.events("checkpoint")] == [12]
    (word,) = run.exits()
    assert (word["error"]["kind"], word["error"]["since"]) == ("nan", 24)
    assert name in word["error"]["message"]
