# SPDX-License-Identifier: Apache-2.0
"""A rank keeps its contract: lines, events, artifacts, orders, and what it says when it fails."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shoestring_trainer.training.errors import UserError, classify_error
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.models.input_errors import name_input_errors
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.setup import check_batch_norms
from torch import nn

from tests.servers import PATIENCE_S, until
from tests.trainer.training.data.sample_images import SINGLE_PROCESS
from tests.trainer.training.gangs import DIGITS, PACKAGE_FOLDERS, Gang, finished, gang

SCORE_WITH_PLAIN_TORCH = """
import gzip, json, sys, torch
folder, digits = sys.argv[1:]
assert not any(name.startswith("shoestring") for name in sys.modules)
model = torch.export.load(folder + "/model.pt2").module()
val = json.load(open(folder + "/split.json"))["val"]
rows = [[float(cell) for cell in line.split(",")] for line in gzip.open(digits, "rt")]
table = torch.tensor(rows)[val]
with torch.no_grad():
    predicted = model(table[:, :64].reshape(-1, 1, 8, 8) / 16).argmax(1)
print(json.dumps({"accuracy": (predicted == table[:, 64]).double().mean().item(), "predicted": predicted.tolist()}))
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Gang:
    params = DIGITS | {"epochs": 5, "width": 16, "batch_size": 32, "dropout": 0.1}
    folder = tmp_path_factory.mktemp("two-ranks")
    return finished(folder, procs=2, params=params, checkpoint={"every_s": None, "every_steps": 20})


def test_every_step_has_a_line_and_lines_are_counted(two_ranks: Gang):
    lines = two_ranks.metrics()
    (started,) = two_ranks.events("started")
    assert [line["step"] for line in lines] == list(range(1, started["steps_total"] + 1))
    assert all({"train/loss", "train/lr"} <= line["v"].keys() for line in lines)
    assert {line["step"] for line in lines if "val/acc" in line["v"]} >= {started["steps_total"]}
    assert math.isclose(lines[-1]["epoch"], 5, abs_tol=0.05)
    saved = two_ranks.events("checkpoint")
    assert [(event["step"], event["reason"], event["final"]) for event in saved[:-1]] == [
        (step, "periodic", False) for step in range(20, 221, 20)
    ]
    assert all(event["lines"] == event["step"] and event["seconds"] > 0 for event in saved)
    assert saved[-1]["final"]
    (exporting,) = two_ranks.events("exporting")
    assert (exporting["step"], exporting["t"] <= saved[-1]["t"]) == (started["steps_total"], True)
    assert started["world_size"] == 2


def test_the_model_scores_in_plain_pytorch_what_was_recorded(two_ranks: Gang, tmp_path: Path):
    import sklearn

    for name in ("model.pt2", "split.json"):
        (tmp_path / name).write_bytes(two_ranks.part(name))
    digits = Path(sklearn.__file__).parent / "datasets" / "data" / "digits.csv.gz"
    command = [sys.executable, "-c", SCORE_WITH_PLAIN_TORCH, str(tmp_path), str(digits)]
    printed = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path, env={}, check=True
    )
    outside = json.loads(printed.stdout)
    result = two_ranks.events("checkpoint")[-1]["result"]
    assert outside["accuracy"] == result["val/acc"] == json.loads(two_ranks.part("model.json"))["metrics"]["val/acc"]
    assert outside["predicted"] == json.loads(two_ranks.part("predictions.json"))["predicted"]
    assert outside["accuracy"] > 0.95


def test_validation_digits_are_a_fraction_of_each_class(two_ranks: Gang):
    val = json.loads(two_ranks.part("split.json"))["val"]
    labels = json.loads(two_ranks.part("predictions.json"))["labels"]
    assert len(val) == len(set(val)) == len(labels)
    assert all(34 <= labels.count(digit) <= 37 for digit in range(10))


def test_a_goal_ends_training_early(tmp_path: Path):
    run = finished(tmp_path, goal={"metric": "val/acc", "reach": 0.3}, params=DIGITS | {"eval_every_epochs": 1})
    last = run.events("checkpoint")[-1]
    assert last["final"]
    assert last["result"]["goal_reached"]
    assert last["step"] < run.events("started")[0]["steps_total"]


@pytest.mark.parametrize("how", ["order", "sigterm"])
def test_told_on_one_rank_all_stop_at_one_step_with_a_durable_checkpoint(tmp_path: Path, how: str):
    with gang(tmp_path, procs=2, params=DIGITS | {"epochs": 1000}) as run:
        run.until_step(5)
        told_at = time.time()
        if how == "order":
            run.order_stop()
        else:
            os.kill(run.rank_pids()[1], signal.SIGTERM)
        assert run.wait() == [0, 0], run.logs()
    assert [word["outcome"] for word in run.exits()] == ["drained", "drained"]
    (saved,) = run.events("checkpoint")
    assert {word["step"] for word in run.exits()} == {saved["step"]} == {run.metrics()[-1]["step"]}
    assert saved["reason"] == "order"
    assert saved["t"] - told_at < 30  # of the minutes that it would have gone on


def test_told_before_the_first_step_a_rank_leaves_at_once(tmp_path: Path):
    """Its peer never comes, so it waits inside a library call when the order arrives."""
    with gang(tmp_path, procs=2) as run:
        run.order_stop()
        assert run.wait() == [0, 0], run.logs()
    assert [(word["outcome"], word["step"]) for word in run.exits()] == [("drained", 0), ("drained", 0)]
    assert run.events("checkpoint") == []


def test_a_killed_rank_is_its_peers_infrastructure_error(tmp_path: Path):
    with gang(tmp_path, procs=2, params=DIGITS | {"epochs": 1000}) as run:
        run.until_step(5)
        os.kill(run.rank_pids()[1], signal.SIGKILL)
        assert run.wait() == [1, -signal.SIGKILL]
    (left,) = run.exits()
    assert (left["rank"], left["outcome"], left["error"]["kind"]) == (0, "error", "infrastructure")


def test_a_loss_that_is_no_number_is_reported_and_ends_the_run(tmp_path: Path):
    with gang(tmp_path, procs=2, params=DIGITS | {"lr": 100.0, "weight_decay": 1.0, "warmup_ratio": 0}) as run:
        assert run.wait() == [1, 1]
    assert [word["error"]["kind"] for word in run.exits()] == ["nan", "nan"]
    last = run.metrics()[-1]
    assert last["v"]["train/loss"] in ("NaN", "Infinity")
    assert last["step"] == run.exits()[0]["step"]
    assert "lower lr" in run.exits()[0]["error"]["message"]


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        ({"recipe": "digits/quickstat"}, "user_code", ["digits/quickstart"]),
        ({"params": {"epoch": 3}}, "user_code", ["epoch"]),
        ({"precision": "fp64"}, "user_code", ["precision", "fp64"]),
        ({"recipe": "imagefolder/resnet9", "params": {}}, "data", ["data.train"]),
        (
            {"recipe": "imagefolder/resnet9", "params": {}, "data": {"train": "/nowhere", "format": "imagefolder"}},
            "data",
            ["/nowhere"],
        ),
        ({"resume": {"data": "/no/data", "manifest": "/no/manifest"}}, "data", ["/no/manifest", "another checkpoint"]),
    ],
    ids=["recipe", "parameter", "precision", "no data", "missing data", "missing checkpoint"],
)
def test_what_cannot_be_done_is_said_with_a_remedy(tmp_path: Path, task: dict, kind: str, words: list[str]):
    with gang(tmp_path, **task) as run:
        assert run.wait() == [1]
    (word,) = run.exits()
    assert word["error"]["kind"] == kind
    assert all(part in word["error"]["message"] for part in words), word["error"]["message"]
    assert not word["error"]["traceback"]
    assert f"\n{kind}: {word['error']['message']}\n" in run.logs()
    assert "Traceback" not in run.logs()


def test_without_torchrun_a_spec_trains_alone(tmp_path: Path):
    run = finished(tmp_path, alone=True, params=DIGITS | {"epochs": 1})
    assert run.exits()[0]["outcome"] == "finished"
    assert run.events("started")[0]["world_size"] == 1


def test_memory_that_cannot_be_had_is_out_of_memory():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    assert classify_error(refused.value, has_peers=False) == "out_of_memory"
    assert classify_error(MemoryError(), has_peers=False) == "out_of_memory"


def test_the_launcher_and_the_tasks_words_need_no_torch():
    check = (
        "import sys, shoestring_trainer.agent.launch_env, shoestring_trainer.training.errors; "
        "import shoestring_trainer.__main__; "
        "sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(PACKAGE_FOLDERS)}
    assert (
        subprocess.run([sys.executable, "-c", check], env=environment, timeout=PATIENCE_S, check=False).returncode == 0
    )


def test_periodic_checkpoints_keep_the_newest_eight(two_ranks: Gang):
    def kept() -> list[str]:
        return sorted(path.name for path in (two_ranks.first / "ckpt").glob("*.json"))

    until(lambda: len(kept()) == 8)
    assert [int(name[5:14]) for name in kept()][:-1] == list(range(100, 221, 20))


def test_a_batch_too_small_for_batch_norm_is_said_with_the_parameters_to_raise():
    images = torch.ones(1, 3, 32, 32)
    message = r"from 1 image of 32 x 32 pixels; raise batch_size .* or image_size"
    with pytest.raises(UserError, match=message), name_input_errors(images):
        nn.BatchNorm2d(4)(torch.ones(1, 4, 1, 1))


@pytest.mark.parametrize(
    ("model", "named"),
    [("torchvision/alexnet", "Output size is too small"), ("torchvision/inception_v3", "Kernel size"),
     ("torchvision/vit_b_16", "Wrong image height"), ("timm/vit_tiny_patch16_224", "doesn't match model")],
)  # fmt: skip
def test_images_of_a_size_that_a_network_cant_take_are_said_with_the_parameters_to_change(model: str, named: str):
    """On meta tensors, without a byte of weights; the check of the first step raises the same."""
    images = torch.empty(2, 3, 16, 16, device="meta")
    with torch.device("meta"):
        network = build_model(model, settings=Settings(), classes=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    message = rf"can't take images of 16 x 16 pixels \(.*{named}.*\); change image_size or eval_image_size"
    with pytest.raises(UserError, match=message), name_input_errors(images):
        network.to("meta")(images)


@pytest.mark.parametrize(
    ("changed", "is_refused"),
    [
        ({"batch_size": 1}, True),
        ({"batch_size": 4, "micro_batch_size": 1}, True),
        ({"batch_size": 2, "noise_scale_every_steps": 10}, True),
        ({"batch_size": 1, "image_size_schedule": "0:16"}, False),
        ({"batch_size": 2}, False),
    ],
)
def test_a_batch_norm_that_a_later_phase_leaves_without_two_values_is_refused_before_the_first_step(
    changed: dict[str, object], is_refused: bool
):
    settings = replace(Settings(epochs=4, image_size_schedule="0:16 3/4:8"), **changed)
    network = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    schedule = HyperparamSchedule.from_settings(settings, 64)
    refused = pytest.raises(UserError, match="8 x 8 pixels; raise batch_size") if is_refused else nullcontext()
    with refused:
        check_batch_norms(network, schedule, SINGLE_PROCESS, settings, (3, 16, 16))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
