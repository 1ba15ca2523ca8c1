# SPDX-License-Identifier: Apache-2.0
"""What a finished job leaves: mistakes to look at, figures, and weights that load elsewhere and predict the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load
from shoestring_core import recipes
from shoestring_trainer.training.cli import commands
from shoestring_trainer.training.cli.predict import read_image
from shoestring_trainer.training.data.cifar10 import load_cifar10
from shoestring_trainer.training.data.dataset import ImageDataset, LabeledImages, load_digits
from shoestring_trainer.training.distributed import context
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.results import exports, throughput
from shoestring_trainer.training.results.artifacts import build_artifacts
from shoestring_trainer.training.results.error_analysis import count_confusions, hardest_examples, render_page
from shoestring_trainer.training.results.evaluation import EvalResult, evaluate
from shoestring_trainer.training.results.exports import read_model
from shoestring_trainer.training.settings import Settings

from tests.trainer.training.data.test_cifar10 import write_binary
from tests.trainer.training.gangs import DIGITS, Gang, finished


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Gang:
    return finished(
        tmp_path_factory.mktemp("artifacts"),
        procs=2,
        params=DIGITS | {"epochs": 2, "eval_every_epochs": 1},
        export=["onnx"],
    )


def test_confusions_worst_images_and_predictions_tell_one_story(run: Gang):
    stored = {name: json.loads(run.part(f"{name}.json")) for name in ("predictions", "confusion", "worst", "split")}
    result = run.events("checkpoint")[-1]["result"]
    labels, predicted, losses = (stored["predictions"][name] for name in ("labels", "predicted", "losses"))
    counts, classes = torch.tensor(stored["confusion"]["counts"]), stored["confusion"]["classes"]
    assert counts.sum(1).tolist() == [labels.count(digit) for digit in range(10)]
    assert counts.trace().item() / len(labels) == result["val/acc"]
    assert math.isclose(sum(losses) / len(losses), result["val/loss"], rel_tol=1e-4)
    worst = stored["worst"]
    assert [one["loss"] for one in worst] == sorted(losses, reverse=True)[: len(worst)]
    for one in worst:
        assert classes.index(one["label"]) == labels[one["index"]]
        assert classes.index(one["predicted"]) == predicted[one["index"]]
        assert one["name"] == f"row {stored['split']['val'][one['index']]}"
    page = run.part("mistakes.html").decode()
    assert page.count("data:image/png;base64,") == len(worst)
    assert worst[0]["name"] in page


def test_the_bare_weights_fit_a_fresh_network_and_predict_the_same(run: Gang):
    card, stored = json.loads(run.part("model.json")), json.loads(run.part("predictions.json"))
    settings = Settings.from_params(recipes.resolve("digits/quickstart", DIGITS))
    fresh = build_model(**card["architecture"], settings=settings, classes=10, mean=[0.5], std=[0.5])[1].eval()
    fresh.load_state_dict(load(run.part("network.safetensors")))
    data = load_digits(card["seed"], settings)
    (mean,), (std,) = (card["input"]["normalisation"][name] for name in ("mean", "std"))
    with torch.no_grad():
        logits_NK = fresh((data.val.images_NCHW.float() / data.max_value - mean) / std)
    assert logits_NK.argmax(1).tolist() == stored["predicted"]
    losses_N = torch.nn.functional.cross_entropy(logits_NK, data.val.labels_N, reduction="none")
    assert torch.allclose(losses_N, torch.tensor(stored["losses"]), atol=1e-4, rtol=1e-4)


def test_each_epoch_has_top1_top5_and_the_time_that_scoring_took(run: Gang):
    scored = [line["v"] for line in run.metrics() if "val/acc" in line["v"]]
    assert len(scored) == 2
    assert all(line["val/acc"] <= line["val/acc_top5"] <= 1 and line["time/evaluation_s"] > 0 for line in scored)
    result = run.events("checkpoint")[-1]["result"]
    assert result["images_per_s"] > 0
    with_last_evaluation_s = result["train_s"] + scored[-1]["time/evaluation_s"]
    assert result["train_and_score_s"] >= with_last_evaluation_s * (1 - 1e-4)  # rounded, and with the initialization
    assert 0 < result["data_wait_fraction"] < 1
    assert result["flop_per_image"] > 0
    assert "mfu" not in result  # nobody knows this CPU's
    assert result["framework"].startswith("PyTorch 2.")


def test_flop_of_a_network_are_its_convolutions_and_linear_layers():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(128, 5)
    )
    found = throughput.measure_throughput(
        net, {(3, 4, 4): 100}, Precision.BF16, torch.device("cpu"),
        devices=1, images=100, seconds=2, data_wait_s=0.5, total_images=100,
    )  # fmt: skip
    flop = 3 * (2 * 8 * 3 * 9 * 16 + 2 * 128 * 5)
    assert found == {"flop_per_image": flop, "images_per_s": 50, "data_wait_fraction": 0.25}
    assert net.training


def test_the_share_of_the_peak_is_flop_done_over_flop_possible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA A100-SXM4-80GB")
    device = torch.device("cuda")
    assert throughput.peak_flops(device, Precision.FP16) == 312e12
    assert throughput.peak_flops(device, Precision.FP32) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "some other GPU")
    assert throughput.peak_flops(device, Precision.FP16) is None


def test_many_classes_are_listed_and_a_loss_without_a_number_is_the_worst():
    classes = [f"<class {number}>" for number in range(60)]
    labels_N = torch.arange(60)
    predictions_N = labels_N.clone()
    predictions_N[7] = 9
    losses_N = torch.linspace(0, 1, 60, dtype=torch.float64)
    losses_N[3] = math.nan
    images = LabeledImages(torch.zeros(60, 3, 100, 120, dtype=torch.uint8), labels_N)
    split = {"val": [f"val/{number}.jpg" for number in range(60)]}
    data = ImageDataset(images, images, classes, 255.0, [0.5] * 3, [0.5] * 3, split)
    eval_result = EvalResult(59 / 60, 1.0, predictions_N, losses_N, 0.1)
    assert hardest_examples(data, eval_result)[0].name == "val/3.jpg"
    assert count_confusions(labels_N, predictions_N, 60)[7, 9] == 1
    page = render_page("sixty", data, eval_result, {"val/acc": eval_result.accuracy})
    assert page.count("<tr>") == 1
    assert "<class" not in page
    assert "&lt;class 7&gt;" in page


def test_onnx_and_the_archive_predict_what_training_recorded(run: Gang, tmp_path: Path, capsys):
    """On every validation image, with nothing of ours between the file and the runtime."""
    (tmp_path / "model.pt2").write_bytes(run.part("model.pt2"))
    (tmp_path / "at-the-end.onnx").write_bytes(run.part("model.onnx"))
    card, stored = json.loads(run.part("model.json")), json.loads(run.part("predictions.json"))
    data = load_digits(card["seed"], Settings())
    images_NCHW = data.val.images_NCHW.float() / data.max_value
    with torch.no_grad():
        archive_NK = torch.export.load(tmp_path / "model.pt2").module()(images_NCHW)
    assert archive_NK.argmax(1).tolist() == stored["predicted"]
    later = tmp_path / "later.onnx"
    assert commands.main(["export", "--json", str(tmp_path), str(later)]) == commands.OK
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"file": str(later), "bytes": later.stat().st_size}
    for name in ("at-the-end.onnx", "later.onnx"):
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        logits_NK = torch.from_numpy(session.run(["logits"], {"images": images_NCHW.numpy()})[0])
        assert logits_NK.argmax(1).tolist() == stored["predicted"]
        assert torch.allclose(logits_NK, archive_NK, atol=1e-4, rtol=1e-4)
        assert read_model(tmp_path / name).card["metrics"] == card["metrics"]


def test_predict_names_the_class_that_training_chose(run: Gang, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """From image files, by the command, with the run's own folder for a model."""
    card, stored = json.loads(run.part("model.json")), json.loads(run.part("predictions.json"))
    data = load_digits(card["seed"], Settings())
    for index in range(12):
        pixels_HW = data.val.images_NCHW[index, 0].float() * 255 / data.max_value
        Image.fromarray(pixels_HW.round().to(torch.uint8).numpy()).save(tmp_path / f"{index:02}.png")
    assert commands.main(["predict", str(run.first), str(tmp_path), "--json", "--top", "3"]) == commands.OK
    output = json.loads(capsys.readouterr().out)
    assert [Path(one["file"]).name for one in output] == [f"{index:02}.png" for index in range(12)]
    assert [int(one["class"]) for one in output] == stored["predicted"][:12]
    assert all(one["top"][0]["probability"] >= one["top"][1]["probability"] for one in output)
    chosen = [math.exp(-loss) for loss in stored["losses"][:12]]
    for one, label, probability in zip(output, stored["labels"], chosen, strict=False):
        if int(one["class"]) == label:
            assert math.isclose(one["probability"], probability, abs_tol=0.02)  # pixels were rounded to bytes


def test_an_image_that_cannot_be_read_is_named_or_skipped_when_asked(
    run: Gang, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    Image.new("CMYK", (40, 20), (0, 0, 0, 255)).save(tmp_path / "cmyk.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "cmyk.jpg").read_bytes()[:99])
    words = ["predict", str(run.first), str(tmp_path)]
    assert commands.main(words) == commands.USAGE
    assert str(tmp_path / "torn.jpg") in capfd.readouterr().err
    assert commands.main([*words, "--on-corrupt", "skip"]) == commands.OK
    spoken = capfd.readouterr()
    assert spoken.out.startswith(str(tmp_path / "cmyk.jpg"))
    assert spoken.out.count("\n") == 1
    assert "skipped 1 image that could not be read" in spoken.err


def test_a_model_that_cannot_be_read_is_named_with_a_remedy(
    run: Gang, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    archive = run.part("model.pt2")
    (tmp_path / "cut.pt2").write_bytes(archive[: len(archive) // 2])
    (tmp_path / "foreign.pt2").write_bytes(b"PK\x05\x06" + bytes(18))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "pickled.pt2")
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "weights.safetensors").write_bytes(run.part("network.safetensors"))
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "strange.pt2")
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    for name, remedy in {
        "cut.pt2": "shoestring artifacts get", "foreign.pt2": "shoestring artifacts get",
        "pickled.pt2": "shoestring artifacts get", "text.onnx": "shoestring export",
        "weights.safetensors": "give a model.pt2", "manifest.json": "start from another checkpoint",
        "empty": "shoestring artifacts get", "absent.pt2": "give a model.pt2", "strange.pt2": "put the model.json",
    }.items():  # fmt: skip
        assert commands.main(["predict", str(tmp_path / name), str(tmp_path / "image.png")]) == commands.USAGE
        output = capfd.readouterr().err
        assert str(tmp_path / name) in output
        assert remedy in output
        assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": "cat"}, "its classes are no list"), ({"classes": 5}, "its classes are no list"),
        ({"classes": []}, "its classes are no list"), ({"input": {"shape": [1, 3, -8, 8]}}, "has the shape"),
        ({"input": {"shape": [1, 3, 10**12, 8]}}, "has the shape"), ({"input": {"shape": [1, True, 8, 8]}}, "shape"),
        ({"input": {"shape": [1, 3, 8, 8], "zoom": float("nan")}}, "has the zoom nan"),
        ({"input": {"shape": [1, 3, 8, 8], "zoom": "2x"}}, "could not convert"), ({"input": [8]}, "list indices"),
    ],
)  # fmt: skip
def test_a_description_with_odd_values_is_no_description(change: dict[str, object], words: str):
    card = {"classes": ["cat", "dog"], "input": {"shape": ["N", 3, 8, 8], "zoom": 1.25}}
    assert exports._read_card(json.dumps(card), Path("model.pt2")) == card
    with pytest.raises(DataError, match=rf"^model\.pt2 lacks a description .*{words}"):
        exports._read_card(json.dumps(card | change), Path("model.pt2"))


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/mobilenetv3_small_050"])
def test_a_librarys_network_loads_into_a_fresh_one_of_that_library_and_predicts_the_same(tmp_path: Path, name: str):
    """Through safetensors and through ONNX Runtime: the same class for every validation image, the same losses."""
    from shoestring_trainer.training.vision_compat import models, timm

    data = load_cifar10(write_binary(tmp_path), Settings(verify_checksums=False))
    torch.manual_seed(0)
    model = build_model(name, Settings(), classes=10, mean=data.mean, std=data.std).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    for _ in range(3):  # moves the weights and the norms' statistics away from where a fresh network has them
        logits_NK = model(data.train.images_NCHW.float() / data.max_value)
        F.cross_entropy(logits_NK, data.train.labels_N).backward()
        optimizer.step()
        optimizer.zero_grad()
    alone = context.DistributedContext(0, 1, 0, torch.device("cpu"))
    eval_result = evaluate(model, data, alone, Precision.FP32)
    about = {"recipe": "none@1", "step": 3, "seed": 0}
    left = build_artifacts(model, data, eval_result, about, onnx=True)

    library, _, plain = name.partition("/")
    fresh = (
        models.get_model(plain, num_classes=10)
        if library == "torchvision"
        else timm.create_model(plain, num_classes=10)
    )
    fresh.load_state_dict(load(left["network.safetensors"]))
    images_NCHW = data.val.images_NCHW.float() / data.max_value
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (data.mean, data.std))
    with torch.no_grad():
        by_weights_NK = fresh.eval()((images_NCHW - mean) / std)
    session = onnxruntime.InferenceSession(left["model.onnx"], providers=["CPUExecutionProvider"])
    by_onnx_NK = torch.from_numpy(session.run(["logits"], {"images": images_NCHW.numpy()})[0])
    for logits_NK in (by_weights_NK, by_onnx_NK):
        assert logits_NK.argmax(1).tolist() == eval_result.predictions_N.tolist()
        losses_N = F.cross_entropy(logits_NK, data.val.labels_N, reduction="none").double()
        assert torch.allclose(losses_N, eval_result.losses_N, atol=1e-3, rtol=1e-3)
    assert len(set(eval_result.predictions_N.tolist())) > 1


def test_an_image_is_zoomed_as_it_was_for_scoring(tmp_path: Path):
    """Black around a white middle: at twice the zoom only the middle is seen, upright in a frame that isn't square."""
    whole = Image.new("RGB", (40, 80))
    whole.paste((255, 255, 255), (6, 12, 34, 68))
    whole.save(tmp_path / "framed.png")
    seen = read_image(tmp_path / "framed.png", (3, 8, 4), zoom=2.0)
    assert seen.shape == (3, 8, 4)
    assert seen.min() > 0.9
    assert read_image(tmp_path / "framed.png", (1, 8, 4)).min() < 0.1
