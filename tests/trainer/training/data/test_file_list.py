# SPDX-License-Identifier: Apache-2.0
"""A run goes on with the files that it began with, whatever was added to their folder, taken away or changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from shoestring_core.task import CheckpointFiles
from shoestring_trainer.training.checkpoint.files import FILE_LIST_PART, write_checkpoint
from shoestring_trainer.training.data.file_list import FileList, list_files, read_file_list
from shoestring_trainer.training.data.image_folder import index_image_folder
from shoestring_trainer.training.errors import DataError

from tests.trainer.training.data.sample_images import COLOURS, save_image
from tests.trainer.training.gangs import finished


def save_images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        save_image(folder / name, list(COLOURS.values())[number % 3], number)
    return folder


@pytest.fixture(params=["one folder, split by the seed", "a folder for each part"])
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    parts = ("train", "val") if "each part" in request.param else (".",)
    images = [f"{part}/{name}/{number}.png" for part in parts for name in ("cat", "dog") for number in range(4)]
    return save_images(tmp_path / "data", *images)


def frozen(data: Path) -> FileList:
    """The list as a checkpoint brings it back."""
    files = list_files(data, *index_image_folder(data, 1, 0.25))
    parts = {"state.json": b"{}", FILE_LIST_PART: files.packed()}
    written = write_checkpoint(data.parent, job="job", generation=1, step=1, parts=parts)
    read = read_file_list(CheckpointFiles(*(data.parent / name for name in written)))
    assert read == files
    return files


def test_images_and_classes_that_were_added_are_ignored_and_counted(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [(index.classes, index.names, index.labels) for index in index_image_folder(data, 1, 0.25)]
    files = frozen(data)
    part = data / "train" if (data / "train").exists() else data
    save_images(part, "cat/new.png", "cow/0.png", "cow/1.png")
    (part / "cat" / "notes.txt").write_text("no image")
    moved = data.rename(data.with_name("on another machine"))
    assert [(index.classes, index.names, index.labels) for index in files.open(moved)] == before
    assert files.open(moved)[1].open(0).size == (20, 24)
    files.report_additions(moved)
    assert "ignored 3 images added after the job began, such as " in capsys.readouterr().out


def test_nothing_is_said_where_nothing_was_added(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frozen(data).report_additions(data)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("change", "told"), [("take away", "are missing since"), ("change", "have changed since")])
def test_an_image_that_is_missing_or_was_changed_is_named(data: Path, change: str, told: str) -> None:
    files = frozen(data)
    image = files.open(data)[0].path(0)
    image.unlink()
    if change == "change":
        image.write_bytes(b"shorter")
    with pytest.raises(DataError, match=rf"1 of the job's \d+ images {told} it began, such as {image}"):
        files.open(data)


def test_a_run_whose_folder_has_grown_goes_on(tmp_path: Path) -> None:
    data = save_images(
        tmp_path / "data", *(f"{part}/{name}/{n}.png" for part in ("train", "val") for name in "ab" for n in range(4))
    )
    task = {
        "recipe": "imagefolder/resnet9", "params": {"epochs": 1, "image_size": 16, "batch_size": 4, "width": 8},
        "data": {"train": str(data), "format": "imagefolder"},
    }  # fmt: skip
    first = finished(tmp_path / "first", bare=True, **task)
    save_images(data, "train/a/new.png", "train/c/0.png")
    second = finished(tmp_path / "second", bare=True, **task, resume=first.checkpoint())
    assert "ignored 2 images added after the job began" in second.logs()
