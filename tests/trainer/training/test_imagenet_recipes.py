# SPDX-License-Identifier: Apache-2.0
"""Every ImageNet recipe runs its whole schedule on a small ImageFolder: all phases, and rectangular validation."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shoestring_core import recipes

from tests.trainer.training.gangs import finished

CHOSEN = [
    *((recipe.name, {}) for recipe in recipes.all() if recipe.name.startswith("imagenet/")),
    ("imagenet/imagenet18", {"machines": 16}),
    ("imagefolder/any", {"model": "torchvision/resnet18", "global_pool": "concat", "rectangular_eval": True}),
]
SMALLER = 4
"""Image sizes are divided by this, except for AlexNet, which needs 63 pixels."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """Six classes by colour, with upright, square and wide images."""
    folder = tmp_path_factory.mktemp("imagenet")
    draw = np.random.default_rng(1)
    for part, count in (("train", 10), ("val", 3)):
        for label in range(6):
            for number in range(count):
                height, width = draw.integers(40, 90, 2).tolist()
                pixels = draw.integers(0, 80, (height, width, 3)) + np.array([25, 5, 15]) * label
                place = folder / part / f"class-{label}" / f"{number}.jpg"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(place)
    return {"train": str(folder), "format": "imagefolder"}


def tiny(name: str, **chosen) -> dict:
    """Return parameters for few images a step, a small model, and fewer epochs and smaller images."""
    values = recipes.resolve(name, chosen)
    smaller = 3 if "alexnet" in name else SMALLER
    breakpoints = [word.split(":") for word in str(values.get("image_size_schedule", "")).split()]
    sizes = " ".join(f"{at}:{int(Fraction(size)) // smaller}" for at, size in breakpoints)
    given = {
        "epochs": 5, "batch_size": 16, "width": 4, "model": "timm/test_resnet", "image_size_schedule": sizes,
        "image_size": int(values["image_size"]) // smaller,
        "eval_image_size": int(values.get("eval_image_size", 0)) // smaller,
    } | chosen  # fmt: skip
    return {key: value for key, value in given.items() if key in values}


@pytest.mark.parametrize(("name", "chosen"), CHOSEN)
def test_a_recipe_runs_every_phase_and_reports_its_metric(
    tmp_path: Path, data: dict[str, str], name: str, chosen: dict
):
    params = tiny(name, **chosen)
    run = finished(tmp_path, recipe=name, params=params, data=data, precision="bf16")
    (started,) = run.events("started")
    lines, result = run.metrics(), run.events("checkpoint")[-1]["result"]
    assert [line["step"] for line in lines] == list(range(1, started["steps_total"] + 1))
    assert sum("val/acc_top5" in line["v"] for line in lines) == 5
    assert recipes.load(name).metric in result
    side = params.get("eval_image_size") or int(
        params.get("image_size_schedule", "").split(":")[-1] or params["image_size"]
    )
    assert json.loads(run.part("model.json"))["input"]["shape"][2:] == [side, side]


def test_a_run_resumed_between_phases_ends_with_the_same_bits(tmp_path: Path, data: dict[str, str]):
    params = tiny("imagenet/imagenet18") | {"epochs": 4}

    def run(folder: str, **options):
        return finished(tmp_path / folder, recipe="imagenet/imagenet18", params=params, data=data, bare=True, **options)

    whole = run("whole", checkpoint={"every_s": None, "every_steps": 8})
    saved = [event for event in whole.events("checkpoint") if not event["final"]]
    assert len(saved) > 1
    resume = {part: str(whole.first / saved[1][part]) for part in ("data", "manifest")}
    assert run("rest", resume=resume).state_hashes() == whole.state_hashes()


def test_a_later_generation_on_a_machine_reuses_decoded_images(tmp_path: Path, data: dict[str, str]):
    """The images of every phase: a run loads the first one's, whatever step it resumes from."""
    place, scratch = tmp_path / "images", tmp_path / "scratch"
    shutil.copytree(data["train"], place)
    scratch.mkdir()
    params = tiny("imagenet/imagenet18") | {"epochs": 4}

    def run(folder: str, **options):
        return finished(
            tmp_path / folder, procs=2, recipe="imagenet/imagenet18", params=params,
            data=data | {"train": str(place)}, scratch=str(scratch), bare=True, **options,
        )  # fmt: skip

    first = run("first", checkpoint={"every_s": None, "every_steps": 8})
    saved = [event for event in first.events("checkpoint") if not event["final"]]
    for file in place.rglob("*.jpg"):
        file.write_bytes(bytes(file.stat().st_size))  # its size is checked; it is not read again
    resume = {part: str(first.first / saved[1][part]) for part in ("data", "manifest")}
    assert run("again", resume=resume).state_hashes() == first.state_hashes()
