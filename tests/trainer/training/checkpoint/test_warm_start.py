# SPDX-License-Identifier: Apache-2.0
"""Warm start: what a run may begin with, and what it is told when that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shoestring_core.task import CheckpointFiles
from shoestring_trainer.training.checkpoint.files import pack_tensors, write_checkpoint
from shoestring_trainer.training.checkpoint.warm_start import warm_start
from shoestring_trainer.training.cli import standalone
from shoestring_trainer.training.errors import DataError, UserError
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.results.exports import pack_weights
from shoestring_trainer.training.settings import Settings
from torch import nn

from tests.trainer.training.gangs import DIGITS, finished

FIRST, HEAD = "1.0.0.weight", "1.7.weight"


def fresh(width: int = 4, classes: int = 10) -> nn.Module:
    torch.manual_seed(width)
    return build_model("convnet", Settings(width=width), classes=classes, mean=[0.3], std=[0.4])


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(7)
    return build_model("convnet", Settings(width=4), classes=10, mean=[0.3], std=[0.4])


@pytest.fixture
def run(tmp_path: Path, teacher: nn.Module) -> Path:
    """The folder of a run with an older checkpoint and the teacher's."""
    for step, model in ((3, fresh()), (9, teacher)):
        parts = {"model.safetensors": pack_tensors(model.state_dict())}
        write_checkpoint(tmp_path, job="job", generation=1, step=step, parts=parts)
    return tmp_path


def has_learned_from(teacher: nn.Module, model: nn.Module) -> bool:
    return all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in teacher.state_dict().items())


def test_a_checkpoint_gives_all_its_tensors(run: Path, teacher: nn.Module):
    model = fresh()
    message = warm_start(model, CheckpointFiles(run / "ckpt/step-000000009.data", run / "ckpt/step-000000009.json"))
    assert has_learned_from(teacher, model)
    assert "randomly initialized" not in message


def test_a_folder_gives_its_newest_checkpoint_or_the_weights_in_it(run: Path, teacher: nn.Module, tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    save_file(teacher.state_dict(), tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "network.safetensors").write_bytes(pack_weights(teacher))
    for place in (run, tmp_path / "theirs", tmp_path / "got", tmp_path / "got" / "network.safetensors"):
        model = fresh()
        warm_start(model, place)
        assert has_learned_from(teacher, model), place


def test_what_fits_is_taken_and_the_rest_is_named(run: Path, teacher: nn.Module, capsys):
    model = fresh(classes=7)
    message = warm_start(model, run)
    assert torch.equal(model.state_dict()[FIRST], teacher.state_dict()[FIRST])
    assert HEAD in capsys.readouterr().out
    assert HEAD in message


def test_weights_of_another_network_are_refused_with_both_shapes(run: Path):
    with pytest.raises(DataError, match="no weight") as refused:
        warm_start(fresh(width=5), run)
    assert f"{FIRST} is (4, 1, 3, 3) there and (5, 1, 3, 3) here" in str(refused.value)
    assert "the parameters of the network" in str(refused.value)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, teacher: nn.Module):
    teacher.state_dict()[HEAD][0, 0] = float("inf")
    save_file(teacher.state_dict(), tmp_path / "broken.safetensors")
    with pytest.raises(DataError, match=HEAD):
        warm_start(fresh(), tmp_path / "broken.safetensors")


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "an image"])
def test_what_holds_no_weights_is_refused_by_name(tmp_path: Path, what: str):
    place = tmp_path / "given"
    if what == "an empty folder":
        place.mkdir()
    elif what == "an image":
        place.write_bytes(b"JFIF")
    with pytest.raises(DataError, match=str(place)) as refused:
        warm_start(fresh(), place)
    assert "model.safetensors" in str(refused.value)


def test_a_run_begins_with_the_weights_it_is_given(tmp_path: Path):
    first = finished(tmp_path / "first", params=DIGITS | {"epochs": 1})
    seen, hooks = tmp_path / "seen.safetensors", tmp_path / "hooks.py"
    hooks.write_text(
        "from safetensors.torch import save_file\n"
        "def on_train_begin(context):\n"
        f"    save_file({{name: it.contiguous() for name, it in context.model.state_dict().items()}}, {str(seen)!r})\n"
    )
    params = DIGITS | {"epochs": 1, "hooks_file": str(hooks)}
    second = finished(tmp_path / "second", params=params, seed=2, init=first.checkpoint())
    given, began = load_file_of(first.part("model.safetensors"), tmp_path), load_file(seen)
    assert given.keys() == began.keys()
    assert all(torch.equal(given[name], began[name]) for name in given)
    (event,) = second.events("warm_start")
    assert event["message"] == f"{len(given)} of {len(given)} tensors loaded"
    assert second.metrics()[0]["v"]["train/loss"] < first.metrics()[0]["v"]["train/loss"]


def test_without_a_service_a_path_is_taken_and_a_job_is_told_how_to_get_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    task = standalone.prepare_task(["digits/quickstart", f"init={tmp_path}", "--output-dir", "mine"])
    assert f'"init": "{tmp_path}"' in task.read_text()
    with pytest.raises(UserError, match="shoestring artifacts get 0192f0c1-0000-7000-8000-000000000007"):
        standalone.prepare_task(["digits/quickstart", "init=job/0192f0c1-0000-7000-8000-000000000007"])


def load_file_of(content: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "part.safetensors").write_bytes(content)
    return load_file(folder / "part.safetensors")
