# SPDX-License-Identifier: Apache-2.0
"""Every CIFAR-10 recipe runs its whole schedule, and a resumed one ends with the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from shoestring_core import recipes
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.settings import Settings

from tests.trainer.training.data.test_cifar10 import write_binary
from tests.trainer.training.gangs import Gang, finished

NAMES = [recipe.name for recipe in recipes.all() if recipe.data.kind == "cifar10"]
SMALLER = {"cifar10/superconv-resnet50": {"model": "torchvision/resnet18", "epochs": 1.5}}
"""Networks of libraries have no `width`; fifty layers would take as long as all other recipes together, and so would
eighteen for as many epochs."""
CHOSEN = [
    *((name, SMALLER.get(name, {})) for name in NAMES),
    ("cifar10/dawnbench-fastai-wrn", {"gpus": 8}),
    ("cifar10/page-resnet18-baseline", {"step": "batch-768"}),
    ("cifar10/superconv-preact18", {"global_pool": "avg"}),
]
TINY = {"width": 4, "batch_size": 16, "verify_checksums": False, "eval_every_epochs": 1, "epochs": 2.5}
STEPS_PER_EPOCH = 100 // 16


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """A hundred training images whose brightness encodes their class."""
    return {"train": str(write_binary(tmp_path_factory.mktemp("cifar10"))), "format": "imagefolder"}


def tiny(name: str, **params) -> dict:
    """Return those of TINY that are parameters of the recipe."""
    return {key: value for key, value in (TINY | params).items() if key in recipes.load(name).params}


@pytest.mark.parametrize(("name", "variant"), CHOSEN)
def test_a_recipe_runs_to_its_end_and_reports_its_metric(
    tmp_path: Path, data: dict[str, str], name: str, variant: dict
):
    run = finished(tmp_path, recipe=name, params=tiny(name, **variant), data=data, precision="bf16")
    (started,) = run.events("started")
    lines, result = run.metrics(), run.events("checkpoint")[-1]["result"]
    assert [line["step"] for line in lines] == list(range(1, started["steps_total"] + 1))
    assert all(isinstance(line["v"]["train/loss"], float) for line in lines)
    assert recipes.load(name).metric in result
    assert "val/acc" in lines[STEPS_PER_EPOCH]["v"] or "val/acc" in lines[STEPS_PER_EPOCH - 1]["v"]
    card = json.loads(run.part("model.json"))
    assert card["metrics"].keys() == result.keys() & {"val/acc", "val/loss", "val/acc_top5", "val/acc_tta"}
    assert run.part("model.pt2")


@pytest.mark.parametrize("name", SMALLER)
def test_a_network_that_is_replaced_here_takes_images_of_cifar10(name: str):
    settings = Settings.from_params(recipes.resolve(name, {}))
    network = build_model(
        **recipes.load(name).model, settings=settings, classes=10, mean=[0.5] * 3, std=[0.5] * 3
    ).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "procs"),
    [
        ("cifar10/airbench94", 1),
        ("cifar10/airbench94", 2),
        ("cifar10/airbench94-muon", 1),
        ("cifar10/page-resnet9-tricks", 1),
    ],
    ids=["airbench94", "airbench94-2-processes", "muon", "tricks"],
)
def test_a_run_resumed_anywhere_ends_with_the_same_bits(tmp_path: Path, data: dict[str, str], name: str, procs: int):
    """With whitening, lookahead, alternating flip and a frozen bias; from inside an epoch, between average updates."""

    def run(folder: str, **options) -> Gang:
        params = tiny(name, epochs=4)
        return finished(tmp_path / folder, recipe=name, procs=procs, params=params, data=data, bare=True, **options)

    whole = run("whole", checkpoint={"every_s": None, "every_steps": 7})
    saved = [event for event in whole.events("checkpoint") if not event["final"]]
    assert [event["step"] for event in saved] == [7, 14, 21]
    losses = [line["v"]["train/loss"] for line in whole.metrics()]
    if "muon" not in name:
        assert "average.safetensors" in whole.state_hashes()
    for event in (saved[0], saved[2]):
        resume = {part: str(whole.first / event[part]) for part in ("data", "manifest")}
        rest = run(f"from-{event['step']}", resume=resume)
        assert rest.state_hashes() == whole.state_hashes()
        assert [line["v"]["train/loss"] for line in rest.metrics()] == losses[event["step"] :]
