# SPDX-License-Identifier: Apache-2.0
"""The plot of the schedule and the model summary are readable in 80 columns without colour."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from shoestring_core import recipes
from shoestring_trainer.training.cli import commands, schedule_plot
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.models.summary import format_summary, summarize_model, training_flop
from shoestring_trainer.training.results.throughput import flop_per_image
from shoestring_trainer.training.settings import Settings

from tests.servers import PATIENCE_S
from tests.trainer.training.gangs import PACKAGE_FOLDERS

NAMES = [recipe.name for recipe in recipes.all()]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_plotted_in_80_columns(name: str):
    preview = schedule_plot.preview_schedule(name, {}, 10_000 if name.startswith("imagefolder/") else None)
    drawn = schedule_plot.plot_schedule(preview)
    assert all(len(line) <= 80 and line.isprintable() for line in drawn.splitlines())
    assert "learning rate" in drawn
    assert "momentum" in drawn
    points = schedule_plot.sample_schedule(preview, 50)
    assert [points[0]["step"], points[-1]["step"]] == [0, preview.schedule.total_steps - 1]
    for phase in preview.schedule.phases:
        assert f"batch {phase.batch_size:,}" in drawn


def test_the_drawing_is_the_schedule():
    """A rise to a peak at 40 %, then down: the highest column stands there, and the ends are low."""
    columns = [0.1 + 0.9 * n / 40 if n <= 40 else 1 - (n - 40) / 60 for n in range(101)]
    title, *rows, _, axis = schedule_plot.chart("rate", columns, 30.0, height=4)
    heights = [sum(schedule_plot.BLOCKS.index(row[11 + n]) for row in rows) for n in range(101)]
    assert title == "rate"
    assert heights[40] == max(heights) == 32
    assert heights[0] < 5
    assert heights[100] == 1
    assert axis.split() == ["0", "15", "30", "epochs"]


def test_own_images_have_to_be_counted(capfd: pytest.CaptureFixture[str]):
    assert commands.main(["schedule", "imagefolder/resnet9"]) == commands.USAGE
    assert "--num-images N" in capfd.readouterr().err
    assert commands.main(["schedule", "digits/quickstat"]) == commands.USAGE
    assert "digits/quickstart" in capfd.readouterr().err
    assert commands.main(["schedule", "digits/quickstart", "limits.cost=3"]) == commands.USAGE
    assert "limits" in capfd.readouterr().err


def test_a_schedule_is_drawn_without_torch():
    words = ["schedule", "cifar10/airbench94", "epochs=2", "--json"]
    script = (
        f"import sys; from shoestring_trainer.__main__ import main; main({words}); sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(PACKAGE_FOLDERS)}
    spoken = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert spoken.returncode == 0, spoken.stderr
    assert json.loads(spoken.stdout)[-1]["step"] == 95


@pytest.mark.parametrize("name", [name for name in NAMES if "width" in recipes.load(name).params])
def test_a_printed_network_is_the_one_that_trains(name: str):
    """Shapes without weights: the same parameters and FLOP as the real one, layer by layer in sum."""
    summary = summarize_model(name, {"width": 8}, size=None, classes=7)
    settings = Settings.from_params(recipes.resolve(name, {"width": 8}))
    channels = summary.input[0]
    real = build_model(
        **recipes.load(name).model, settings=settings, classes=7, mean=[0.5] * channels, std=[0.5] * channels
    )
    assert summary.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert summary.parameters == sum(layer.parameters for layer in summary.layers)
    assert summary.flop == flop_per_image(real, summary.input, torch.device("cpu"))
    assert summary.flop_outside_layers == 0
    with torch.no_grad():
        assert summary.layers[-1].shape == tuple(real.eval()(torch.zeros(1, *summary.input)).shape[1:]) == (7,)
    printed = format_summary(summary).splitlines()
    assert all(len(line) <= 80 for line in printed)
    assert len(printed) == len(summary.layers) + 4


def test_a_network_of_a_library_counts_what_runs_between_its_layers():
    summary = summarize_model(
        "cifar10/page-resnet18-baseline", {"model": "timm/vit_tiny_patch16_224"}, size=224, classes=100
    )
    assert summary.parameters == 5_543_716  # timm's own count for 100 classes
    assert summary.flop_outside_layers > 0
    assert summary.layers[-1].shape == (100,)


def test_images_too_small_for_a_network_are_said_so(capfd: pytest.CaptureFixture[str]):
    assert commands.main(["model", "cifar10/airbench94", "--image-size", "4"]) == commands.USAGE
    assert "--image-size" in capfd.readouterr().err


def test_the_least_time_counts_each_phase_at_its_size(capfd: pytest.CaptureFixture[str]):
    """Twice the size is four times the FLOP of a fully convolutional network: half of the run at each."""
    settings = Settings(epochs=2, batch_size=100, image_size_schedule="0:16 1/2:32")
    preview = schedule_plot.SchedulePreview("mine", settings, HyperparamSchedule.from_settings(settings, 1000), 1000)
    assert training_flop(preview, lambda size: size * size) == 3 * (1000 * 256 + 1000 * 1024)
    assert commands.main(["model", "imagenet/cheap"]) == commands.OK
    printed = capfd.readouterr().out
    assert "25,624,576 images" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
