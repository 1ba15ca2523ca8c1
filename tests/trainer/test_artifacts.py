# SPDX-License-Identifier: Apache-2.0
"""What a finished job leaves: mistakes to look at, figures, and weights that load elsewhere and predict the same."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load
from shoestring_core import recipes
from shoestring_trainer.training import figures
from shoestring_trainer.training.evaluation import Scores
from shoestring_trainer.training.mistakes import count_confusions, draw_page, find_worst
from shoestring_trainer.training.models import build_model
from shoestring_trainer.training.pictures import DataSet, Pictures, load_digits
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.settings import Settings

from tests.trainer.gangs import DIGITS, Gang, finished


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Gang:
    return finished(tmp_path_factory.mktemp("artifacts"), procs=2, params=DIGITS | {"epochs": 2, "eval_every": 1})


def test_confusions_worst_pictures_and_predictions_tell_one_story(run: Gang):
    told = {name: json.loads(run.part(f"{name}.json")) for name in ("predictions", "confusion", "worst", "split")}
    result = run.events("checkpoint")[-1]["result"]
    labels, predicted, losses = (told["predictions"][name] for name in ("labels", "predicted", "losses"))
    counts, classes = torch.tensor(told["confusion"]["counts"]), told["confusion"]["classes"]
    assert counts.sum(1).tolist() == [labels.count(digit) for digit in range(10)]
    assert counts.trace().item() / len(labels) == result["val/acc"]
    assert math.isclose(sum(losses) / len(losses), result["val/loss"], rel_tol=1e-4)
    worst = told["worst"]
    assert [one["loss"] for one in worst] == sorted(losses, reverse=True)[: len(worst)]
    for one in worst:
        assert classes.index(one["label"]) == labels[one["index"]]
        assert classes.index(one["predicted"]) == predicted[one["index"]]
        assert one["name"] == f"row {told['split']['held_out'][one['index']]}"
    page = run.part("mistakes.html").decode()
    assert page.count("data:image/png;base64,") == len(worst)
    assert worst[0]["name"] in page


def test_the_bare_weights_fit_a_fresh_network_and_predict_the_same(run: Gang):
    card, told = json.loads(run.part("model.json")), json.loads(run.part("predictions.json"))
    settings = Settings.of(recipes.resolve("digits/quickstart", DIGITS))
    fresh = build_model(**card["architecture"], settings=settings, classes=10, mean=[0.5], std=[0.5])[1].eval()
    fresh.load_state_dict(load(run.part("network.safetensors")))
    data = load_digits(card["seed"], settings)
    (mean,), (std,) = (card["input"]["normalisation"][name] for name in ("mean", "std"))
    with torch.no_grad():
        logits_NK = fresh((data.held_out.bytes_NCHW.float() / data.white - mean) / std)
    assert logits_NK.argmax(1).tolist() == told["predicted"]
    losses_N = torch.nn.functional.cross_entropy(logits_NK, data.held_out.labels_N, reduction="none")
    assert torch.allclose(losses_N, torch.tensor(told["losses"]), atol=1e-4, rtol=1e-4)


def test_each_epoch_has_top1_top5_and_the_time_that_scoring_took(run: Gang):
    scored = [line["v"] for line in run.metrics() if "val/acc" in line["v"]]
    assert len(scored) == 2
    assert all(line["val/acc"] <= line["val/acc_top5"] <= 1 and line["time/scoring_s"] > 0 for line in scored)
    result = run.events("checkpoint")[-1]["result"]
    assert result["images_per_s"] > 0
    assert result["flop_per_image"] > 0
    assert "share_of_peak" not in result  # nobody knows this CPU's


def test_flop_of_a_network_are_its_convolutions_and_linear_layers():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(128, 5)
    )
    found = figures.speed(
        net, (3, 4, 4), Precision.BF16, torch.device("cpu"), devices=1, pictures=100, seconds=2, whole=100
    )
    assert found == {"flop_per_image": 3 * (2 * 8 * 3 * 9 * 16 + 2 * 128 * 5), "images_per_s": 50}
    assert net.training


def test_the_share_of_the_peak_is_flop_done_over_flop_possible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA A100-SXM4-80GB")
    device = torch.device("cuda")
    assert figures.peak_flops(device, Precision.FP16) == 312e12
    assert figures.peak_flops(device, Precision.FP32) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "some other GPU")
    assert figures.peak_flops(device, Precision.FP16) is None


def test_many_classes_are_listed_and_a_loss_without_a_number_is_the_worst():
    classes = [f"<class {number}>" for number in range(60)]
    labels_N = torch.arange(60)
    predictions_N = labels_N.clone()
    predictions_N[7] = 9
    losses_N = torch.linspace(0, 1, 60, dtype=torch.float64)
    losses_N[3] = math.nan
    pictures = Pictures(torch.zeros(60, 3, 100, 120, dtype=torch.uint8), labels_N)
    split = {"held_out": [f"val/{number}.jpg" for number in range(60)]}
    data = DataSet(pictures, pictures, classes, 255.0, [0.5] * 3, [0.5] * 3, split)
    scores = Scores(59 / 60, 1.0, predictions_N, losses_N, 0.1)
    assert find_worst(data, scores)[0].name == "val/3.jpg"
    assert count_confusions(labels_N, predictions_N, 60)[7, 9] == 1
    page = draw_page("sixty", data, scores, {"val/acc": scores.accuracy})
    assert page.count("<tr>") == 1
    assert "<class" not in page
    assert "&lt;class 7&gt;" in page
