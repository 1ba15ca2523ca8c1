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
from shoestring_trainer.training.errors import HookError, UserError, classify_error
from shoestring_trainer.training.hooks import MAX_VALUES, HookContext, Hooks, load_hooks
from shoestring_trainer.training.optim.noise_scale import GradientNoiseScale
from torch import nn

from tests.servers import PATIENCE_S
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
        (None, "can't be read .No such file"),
        ("x = 1", "no hook"),
        ("def on_stepp(run): pass", "on_stepp, which is no hook"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("def on_step_end(run)", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("async def on_step_end(context): pass", "asynchronous or a generator"),
        ("def on_step_end(context): yield", "asynchronous or a generator"),
        ("def on_step_end(): pass", r"on_step_end in .* takes \(\); it is called with \(context\)"),
        ("def on_batch(context): pass", r"it is called with \(context, images, labels\)"),
    ],
    ids=[
        "missing",
        "empty",
        "typo",
        "import",
        "syntax",
        "exit",
        "interrupt",
        "async",
        "generator",
        "no parameter",
        "too few parameters",
    ],
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


def context_of(**metrics: float) -> HookContext:
    return HookContext(nn.Linear(1, 1), None, None, 0, 0, dict(metrics))


def written(folder: Path, text: str) -> Hooks:
    (folder / "mine.py").write_text(text)
    return load_hooks(str(folder / "mine.py"), classes=3)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("raise RuntimeError('feature store: connection refused')", "raised RuntimeError: feature store: connection"),
        ("raise OSError(28, 'No space left on device')", r"raised OSError: \[Errno 28\]"),
        ("raise KeyboardInterrupt", "raised KeyboardInterrupt: KeyboardInterrupt"),
        ("raise GeneratorExit", "raised GeneratorExit"),
        ("import sys; sys.exit()", r"called sys.exit\(\); raise an error to end the job, or set a goal"),
        ("context.metrics = 3", "set context.metrics to a int; it is a dict"),
        ("context.metrics['mine'] = 'high'", r"put a str into context.metrics\['mine'\]; it takes one number"),
        ("context.metrics['mine'] = None", r"put a NoneType into context.metrics\['mine'\]"),
        ("import torch; context.metrics['m'] = torch.ones(3)", r"put a Tensor of shape \(3,\) into .*one number"),
        ("context.metrics[3] = 1", "put 3 into context.metrics as a name"),
        ("context.metrics['x' * 300] = 1", "put 'xxx.* as a name; names are text of up to 200"),
    ],
)
def test_what_goes_wrong_in_a_hook_is_that_hooks_error_with_its_file_and_line(
    tmp_path: Path, statement: str, said: str
):
    hooks = written(tmp_path, f"\ndef on_step_end(context):\n    x = 1\n    {statement}\n")
    line = 4 if "raise" in statement or "exit" in statement else 2
    with pytest.raises(HookError, match=rf"the hook on_step_end \({tmp_path}/mine.py, line {line}\) {said}") as raised:
        hooks.call("on_step_end", context_of())
    assert classify_error(raised.value, has_peers=True) == "user_code"


def test_a_rank_without_peers_cannot_lose_one_and_a_hook_that_waits_for_one_can(tmp_path: Path):
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4")
    assert classify_error(lost, has_peers=False) == "user_code"
    assert classify_error(lost, has_peers=True) == "infrastructure"

    def wait(_: HookContext) -> None:
        raise lost

    with pytest.raises(RuntimeError, match="closed by peer") as raised:
        Hooks({"on_step_end": wait}, has_peers=True).call("on_step_end", context_of())
    assert raised.value is lost
    with pytest.raises(HookError):
        Hooks({"on_step_end": wait}).call("on_step_end", context_of())


def test_the_trainers_own_values_arrive_whatever_a_hook_does_and_its_surplus_is_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hooks = written(
        tmp_path,
        """
def on_step_end(context):
    context.metrics = {f"mine/{number}": number for number in range(1200)} | {"train/loss": "high"}
""",
    )
    for _ in range(2):
        context = context_of(**{"train/loss": 0.5})
        ours = context.metrics
        hooks.call("on_step_end", context)
        assert context.metrics is ours
        assert list(ours)[:2] == ["train/loss", "mine/0"]
        assert (ours["train/loss"], len(ours)) == (0.5, 1 + MAX_VALUES)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"reports 1200 values with a step; the first {MAX_VALUES} are kept, and left out are mine/500, " in said


def test_numbers_of_every_type_are_reported(tmp_path: Path):
    context = context_of()
    values = "{'a': True, 'b': torch.tensor([2.0]), 'c': np.float32(3), 'd': float('nan')}"
    hooks = written(
        tmp_path, f"import numpy as np, torch\ndef on_evaluate(context): context.metrics.update({values})\n"
    )
    hooks.call("on_evaluate", context)
    assert [str(value) for value in context.metrics.values()] == ["1.0", "2.0", "3.0", "nan"]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("(images[:, :1], labels)", r"returned images of shape \(2, 1, 4, 4\); it was given \(2, 3, 4, 4\)"),
        ("(images[:1], labels)", r"returned 1 image with labels of shape \(2,\)"),
        ("(images, labels.float())", "labels of shape .* and torch.float32; give a class index"),
        ("(images, labels + 2)", "returned a label outside 0 to 2"),
        ("(images, torch.rand(2, 4))", "returned probabilities of 4 classes; there are 3"),
    ],
)
def test_a_batch_that_cannot_be_trained_on_is_the_hooks_error(tmp_path: Path, returned: str, said: str):
    hooks = written(tmp_path, f"import torch\ndef on_batch(context, images, labels): return {returned}\n")
    with pytest.raises(HookError, match=rf"the hook on_batch \({tmp_path}/mine.py, line 2\) .*{said}"):
        hooks.on_batch(context_of(), torch.ones(2, 3, 4, 4), torch.arange(2))


def test_a_batch_hook_may_give_other_sizes_and_types(tmp_path: Path):
    hooks = written(tmp_path, "def on_batch(context, images, labels): return images[..., :2].double(), labels.int()\n")
    images, labels = hooks.on_batch(context_of(), torch.ones(2, 3, 4, 4), torch.arange(2))
    assert (images.dtype, images.shape, labels.dtype) == (torch.float32, (2, 3, 4, 2), torch.int64)


def test_a_file_with_postponed_annotations_and_a_dataclass_loads(tmp_path: Path):
    text = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class State:
    seen: int = 0
state = State()
def on_step_end(context: object) -> None:
    state.seen += 1
"""
    assert "on_step_end" in written(tmp_path, text)


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
    result = json.loads(
        subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE_S, check=True).stdout
    )
    assert 0.001 < result["steepest"] < 2
    assert result["rates"] == sorted(result["rates"])
    assert len(result["rates"]) == len(result["losses"])
