# SPDX-License-Identifier: Apache-2.0
"""Whatever is taken out of a checkpoint is missed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from shoestring_core.task import CheckpointFiles
from shoestring_trainer.training.checkpoint import writer as writer_module
from shoestring_trainer.training.checkpoint.files import pack_tensors, read_checkpoint, unpack_tensors, write_checkpoint
from shoestring_trainer.training.checkpoint.state import TrainingState, pack_snapshot, restore_checkpoint
from shoestring_trainer.training.checkpoint.warm_start import warm_start
from shoestring_trainer.training.checkpoint.writer import CheckpointWriter
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.optim.optimizers import build_optimizer
from shoestring_trainer.training.results.jsonl_writer import JsonlWriter
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.task import read_task

IDENTITY = {"recipe": "digits/quickstart@1", "params": {"width": 4}, "seed": 1, "data": "fingerprint"}


def fresh(width: int = 4, **identity) -> TrainingState:
    settings = Settings(width=width, momentum=0.9)
    model = build_model("convnet", settings, classes=10, mean=[0.3], std=[0.4])
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    return TrainingState(model, build_optimizer(model, settings), scaler, IDENTITY | identity)


def trained(steps: int = 3) -> TrainingState:
    torch.manual_seed(0)
    state = fresh()
    for _ in range(steps):
        loss = state.model(torch.rand(8, 1, 8, 8)).logsumexp(1).mean()
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
    return state


@pytest.fixture
def parts() -> dict[str, bytes]:
    return pack_snapshot(trained().snapshot(3))


def save(folder: Path, parts: dict[str, bytes]) -> CheckpointFiles:
    data, manifest = write_checkpoint(folder, job="job", generation=1, step=3, parts=parts)
    return CheckpointFiles(folder / data, folder / manifest)


def names_in(part: str, parts: dict[str, bytes], folder: Path) -> list[str]:
    """Every single thing in a part of a checkpoint; a dotted name lies inside another."""
    if part != "state.json":
        return list(unpack_tensors(parts, part, folder))
    facts = json.loads(parts[part])
    return [*facts, *(f"scaler.{name}" for name in facts["scaler"])]


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_without_any_one_item_loading_names_what_is_missing(tmp_path: Path, parts: dict[str, bytes], part: str):
    for number, name in enumerate(names_in(part, parts, tmp_path)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if part == "state.json":
            facts = json.loads(parts[part])
            *outer, last = name.split(".")
            del (facts[outer[0]] if outer else facts)[last]
            fewer = json.dumps(facts).encode()
        else:
            tensors = unpack_tensors(parts, part, folder)
            del tensors[name]
            fewer = pack_tensors(tensors)
        saved = save(folder, parts | {part: fewer})
        with pytest.raises(DataError, match=str(saved.data)):
            restore_checkpoint(fresh(), saved)


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_without_one_part_loading_names_it(tmp_path: Path, parts: dict[str, bytes], part: str):
    del parts[part]
    with pytest.raises(DataError, match=part):
        restore_checkpoint(fresh(), save(tmp_path, parts))


def test_a_restored_state_is_the_saved_one(tmp_path: Path, parts: dict[str, bytes]):
    state = fresh()
    assert restore_checkpoint(state, save(tmp_path, parts)) == 3
    assert pack_snapshot(state.snapshot(3)) == parts


@pytest.mark.parametrize("name", ["data", "manifest"])
@pytest.mark.parametrize("damage", ["one bit", "cut short", "emptied", "removed"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, parts: dict[str, bytes], name: str, damage: str):
    saved = save(tmp_path, parts)
    path: Path = getattr(saved, name)
    content = bytearray(path.read_bytes())
    match damage:
        case "one bit":
            at = content.index(b'"parts"') + 2 if name == "manifest" else len(content) // 2
            content[at] ^= 1
            path.write_bytes(content)
        case "cut short":
            path.write_bytes(content[:-20])
        case "emptied":
            path.write_bytes(b"")
        case "removed":
            path.unlink()
    with pytest.raises(DataError, match=str(path)):
        restore_checkpoint(fresh(), saved)


@pytest.mark.parametrize(
    "difference",
    [{"width": 8}, {"recipe": "imagefolder/resnet9@1"}, {"seed": 2}, {"data": "other images"}],
    ids=["shapes", "recipe", "seed", "data"],
)
def test_a_foreign_checkpoint_is_refused_with_the_difference(
    tmp_path: Path, parts: dict[str, bytes], difference: dict[str, Any]
):
    state = fresh(**difference)
    before = pack_snapshot(state.snapshot(0))
    saved = save(tmp_path, parts)
    with pytest.raises(DataError, match=str(saved.data)):
        restore_checkpoint(state, saved)
    if state.identity != IDENTITY:
        assert pack_snapshot(state.snapshot(0)) == before


def test_parts_are_hashed_one_by_one_and_together(tmp_path: Path, parts: dict[str, bytes]):
    saved = save(tmp_path, parts)
    assert read_checkpoint(saved.data, saved.manifest) == parts
    manifest = json.loads(saved.manifest.read_text())
    assert manifest["bytes"] == saved.data.stat().st_size == sum(part["bytes"] for part in manifest["parts"])


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}q\x00.", b"[]", b'{"format": 1}', b'{"format": 1, "parts": {}}', b'{"format": 1, "parts": [3]}',
        b'{"format": 1, "parts": [{"name": "a", "offset": "0", "bytes": 1, "sha256": ""}]}',
        b'{"format": 1, "parts": [{"name": "a", "offset": -9, "bytes": 1, "sha256": ""}]}',
        b'{"format": 9, "parts": []}', b"[" * 100_000,
    ],
    ids=[
        "pickle", "list", "no parts", "parts by name", "numbers", "offset as text", "before the file", "later format",
        "deep",
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, parts: dict[str, bytes], content: bytes):
    saved = save(tmp_path, parts)
    saved.manifest.write_bytes(content)
    for begin in (lambda: restore_checkpoint(fresh(), saved), lambda: warm_start(fresh().model, saved)):
        with pytest.raises(DataError, match=r"manifest|no part|format 9") as refused:
            begin()
        assert str(tmp_path) in str(refused.value)
        assert re.search(r"start from another checkpoint|update the trainer", str(refused.value))


def test_weights_of_another_type_are_not_converted_in_silence(tmp_path: Path, parts: dict[str, bytes]):
    tensors = trained().snapshot(3)["model"]
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    parts["model.safetensors"] = pack_tensors(tensors | {name: tensors[name].double()})
    saved = save(tmp_path, parts)
    with pytest.raises(DataError, match=f"{name} in the checkpoint {saved.data} holds torch.float64"):
        restore_checkpoint(fresh(), saved)


def test_a_manifest_that_lies_is_refused(tmp_path: Path, parts: dict[str, bytes]):
    saved = save(tmp_path, parts)
    stored_manifest = json.loads(saved.manifest.read_text())
    first, second = stored_manifest["parts"][:2]
    for lie in ({"bytes": 10**15}, {"offset": 10**15}, {"offset": second["offset"]}, {"sha256": second["sha256"]}):
        saved.manifest.write_text(json.dumps(stored_manifest | {"parts": [first | lie, *stored_manifest["parts"][1:]]}))
        with pytest.raises(DataError, match=f"{saved.data} is damaged: {first['name']}"):
            restore_checkpoint(fresh(), saved)
    exchanged = [first | {"name": second["name"]}, second | {"name": first["name"]}, *stored_manifest["parts"][2:]]
    saved.manifest.write_text(json.dumps(stored_manifest | {"parts": exchanged}))
    with pytest.raises(DataError, match=str(saved.data)):
        restore_checkpoint(fresh(), saved)


@pytest.mark.parametrize(("name", "value"), [("optimizer_state", "momentum_buffer"), ("scaler", None), ("step", "9")])
def test_state_of_another_kind_is_refused_by_name(tmp_path: Path, parts: dict[str, bytes], name: str, value: object):
    parts["state.json"] = json.dumps(json.loads(parts["state.json"]) | {name: value}).encode()
    saved = save(tmp_path, parts)
    with pytest.raises(DataError, match=name) as refused:
        restore_checkpoint(fresh(), saved)
    assert str(saved.data) in str(refused.value)


@pytest.mark.parametrize("damage", ["cut short", "one bit", "another's"])
def test_a_warm_start_refuses_what_a_resume_would(tmp_path: Path, parts: dict[str, bytes], damage: str):
    saved = save(tmp_path, parts)
    content = bytearray(saved.data.read_bytes())
    content[len(content) // 3] ^= 1
    saved.data.write_bytes({"cut short": content[: len(content) // 3], "one bit": content, "another's": b"x"}[damage])
    with pytest.raises(DataError, match="damaged") as refused:
        warm_start(fresh().model, saved)
    assert str(saved.data) in str(refused.value)


def test_eight_checkpoints_stay_in_a_folder_however_often_a_run_is_stopped_and_goes_on(tmp_path: Path):
    (tmp_path / "task.json").write_text('{"format": 1, "job": "job", "generation": 1, "recipe": "digits/quickstart"}')
    task, state = read_task(tmp_path / "task.json"), fresh()
    for start in (0, 6, 11):
        writer = CheckpointWriter(task, state, JsonlWriter(tmp_path, append=True))
        for step in range(start, start + 7):
            writer.save_and_wait(step)
    kept = [f"step-{step:09d}" for step in range(10, 18)]
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == [
        f"{name}.{suffix}" for name in kept for suffix in ("data", "json")
    ]


def test_a_checkpoint_by_time_begins_so_early_that_at_most_the_interval_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    every = {"format": 1, "job": "job", "generation": 1, "recipe": "digits/quickstart", "checkpoint": {"every_s": 10}}
    (tmp_path / "task.json").write_text(json.dumps(every))
    now, begun, saved = 0, [], tmp_path / "none"
    monkeypatch.setattr(writer_module, "monotonic", lambda: now)
    writer = CheckpointWriter(read_task(tmp_path / "task.json"), fresh(), JsonlWriter(tmp_path, append=True))
    for now in range(1, 80):
        if begun and now == begun[-1] + (2 if now < 40 else 4):
            saved.unlink()  # as the agent does, once the service has it
        if writer.is_due(now):
            begun.append(now)
            writer.save(now)
            writer.wait()
            saved = tmp_path / "ckpt" / f"step-{now:09d}.data"
    assert begun == [9, 15, 21, 27, 33, 39, 44, 49, 54, 59, 64, 69, 74, 79], "at most half the interval is given up"
