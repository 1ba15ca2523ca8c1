# SPDX-License-Identifier: Apache-2.0
"""What a user can put into the loop and learn from it: hooks, the gradient noise scale, the learning-rate finder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shoestring_trainer.training.cli.lr_find import choose
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.hooks import HookContext, Hooks, load_hooks
from shoestring_trainer.training.optim.noise_scale import GradientNoiseScale
from torch import nn

from tests.trainer.training.gangs import DIGITS, PACKAGE_FOLDERS, finished

SINGLE_PROCESS = DistributedContext(0, 1, 0, torch.device("cpu"))
HOOKS = """
import gc, json
seen = []
def on_train_begin(context):
    seen.extend(["start", gc.isenabled()])
def on_batch(context, images, labels):
    return images.flip(3), labels
def on_pre_optimizer_step(context):
    context.metrics["mine/grad"] = float(sum(p.grad.norm() for p in context.model.parameters()))
def on_step_end(context):
    context.metrics["mine/step"] = context.step
def on_evaluate(context):
    seen.append(round(context.metrics["val/acc"], 3))
def on_train_end(context):
    seen.append("end")
    open(FILE, "w").write(json.dumps(seen))
"""


def test_hooks_see_the_run_and_report_with_its_steps_and_the_noise_is_measured(tmp_path: Path):
    file, seen = tmp_path / "mine.py", tmp_path / "seen.json"
    file.write_text(HOOKS.replace("FILE", repr(str(seen))))
    params = DIGITS | {"epochs": 2, "eval_every_epochs": 1, "hooks_file": str(file), "noise_scale_every_steps": 4}
    run = finished(tmp_path / "run", params=params)
    lines = run.metrics()
    assert [line["v"]["mine/step"] for line in lines] == [line["step"] for line in lines]
    first, garbage_is_collected, *eval_result, last = json.loads(seen.read_text())
    assert (first, garbage_is_collected, last) == ("start", True, "end")
    assert len(eval_result) == 1  # the measurement at the end is on_train_end's
    measured = [line["step"] for line in lines if "train/noise_scale" in line["v"]]
    assert measured
    assert all(step % 4 == 1 for step in measured)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no file"),
        ("x = 1", "no hook"),
        ("def on_stepp(run): pass", "on_stepp, which is no hook"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("def on_step_end(run)", "SyntaxError"),
    ],
    ids=["missing", "empty", "typo", "import", "syntax"],
)
def test_hooks_that_cannot_work_are_refused_before_the_first_step(tmp_path: Path, text: str | None, message: str):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_hooks(str(file))


def test_a_batch_hook_gives_two_tensors_or_nothing():
    context, images, labels = HookContext(nn.Linear(1, 1), None, None, 0, 0), torch.rand(2, 1), torch.arange(2)
    assert Hooks({"on_batch": lambda *_: None}).on_batch(context, images, labels) == (images, labels)
    with pytest.raises(UserError, match="two tensors"):
        Hooks({"on_batch": lambda *_: images}).on_batch(context, images, labels)


def test_the_noise_scale_is_the_noise_over_the_signal():
    """Gradients around a known mean: per image, variance 4 in each of 50 directions, and a squared mean of 50."""
    torch.manual_seed(0)
    model = nn.Linear(50, 1, bias=False)
    noise, found = GradientNoiseScale(model, SINGLE_PROCESS), []
    for _ in range(400):
        gradients = 1 + 2 * torch.randn(64, 50)
        model.weight.grad = gradients[:8].mean(0)[None] * 3  # in units of 3
        noise.add_micro_batch(8, 3.0)
        model.weight.grad = gradients.mean(0)[None] * 5
        found.append(noise.update(64, 5.0))
    late = [scale for scale in found[50:] if scale is not None]
    assert sum(late) / len(late) == pytest.approx(4.0, rel=0.25)


def test_an_overflow_is_no_noise():
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.full((1, 2), torch.inf)
    noise = GradientNoiseScale(model, SINGLE_PROCESS)
    noise.add_micro_batch(2, 1.0)
    assert noise.update(8, 1.0) is None


def test_rates_are_chosen_where_the_loss_falls_fastest_and_a_tenth_of_the_lowest():
    rates = [0.001, 0.01, 0.1, 1.0, 10.0]
    assert choose(rates, [2.3, 2.2, 1.5, 1.2, 4.0]) == (0.01, 0.1)
    assert choose(rates, [1.0, 2.0, 3.0, 4.0, 5.0]) == (None, None)
    assert choose([], []) == (None, None)


def test_the_finder_searches_a_recipe_and_says_what_to_take():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(PACKAGE_FOLDERS), "OMP_NUM_THREADS": "1"}
    words = ["lr-find", "digits/quickstart", "width=8", "--steps", "60", "--json"]
    command = [sys.executable, "-m", "shoestring_trainer", *words]
    result = json.loads(subprocess.run(command, env=environment, capture_output=True, timeout=120, check=True).stdout)
    assert 0.001 < result["steepest"] < 2
    assert result["rates"] == sorted(result["rates"])
    assert len(result["rates"]) == len(result["losses"])
