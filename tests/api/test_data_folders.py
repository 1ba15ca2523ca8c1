# SPDX-License-Identifier: Apache-2.0
"""The layout of an image folder is refused when a job is submitted, in the words of the machine that would read it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from shoestring_api import data_folders
from shoestring_api.data_folders import find_layout_problem
from shoestring_core.spec import parse
from shoestring_trainer.training.data.cifar10 import load_cifar10
from shoestring_trainer.training.data.confined_files import ROOTS_VARIABLE
from shoestring_trainer.training.data.image_folder import index_image_folder
from shoestring_trainer.training.data.image_index import validate_classes
from shoestring_trainer.training.data.webdataset import find_shards
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.settings import Settings

from tests.api.deployment import Deployment

PAIR = ("1.jpg", "2.PNG")


def make(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def classes(*names: str) -> list[str]:
    return [f"{name}/{image}" for name in names for image in PAIR]


def problem_at_submission(
    folder: Path, root: Path, recipe: str = "imagefolder/resnet9", data_format: str = "imagefolder"
) -> str | None:
    return find_layout_problem(
        parse({"recipe": recipe, "data": {"train": str(folder), "format": data_format}}), [root]
    )  # fmt: skip


def problem_on_the_machine(folder: Path, data_format: str = "imagefolder") -> str | None:
    try:
        if data_format == "webdataset":
            find_shards(folder)
            return None
        for images in index_image_folder(folder, 1, 0.2):
            validate_classes(images)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["1.jpg", "2.jpg"], "holds 0 class folders; a classifier needs two"),
        (["cat/1.jpg", "2.jpg"], "holds 1 class folder; a classifier needs two"),
        (["train-000000.tar", "classes.txt"], "holds shards, such as train-000000.tar, and no shards.json: if"),
        ([*classes("cat", "dog"), "fox/notes.txt"], "fox holds no image; add some"),
        ([*classes("cat", "dog"), ".hidden/a", "fox/.hidden.jpg"], "fox holds no image; add some"),
        ([*classes("cat", "dog"), "fox/1.jpg"], 'class "fox" in .* has too few valid images'),
        (classes("train/cat", "train/dog", "val/cat"), "val holds 1 class folder;"),
        (classes("train/cat", "train/dog", "val/cat", "val/fox"), "do not have the same classes: dog is in one only"),
        ([*classes("train/cat", "train/dog"), "val/cat/1.jpg", "val/dog/a.txt"], "val/dog holds no image"),
        (classes("val", "test"), "look like dataset splits, not classes"),
        (classes("cat", "train/a", "train/b"), "train in .* can be parts of a data set, of which cat would be none"),
        (classes("train/a", "train/b", "training/a"), "could each be what to train on"),
        (classes("caf\xe9", "cafe\u0301"), "twice: it is .* in two Unicode spellings"),
    ],
)
def test_a_wrong_layout_is_refused_in_the_words_of_the_machine(tmp_path: Path, files: list[str], words: str) -> None:
    make(tmp_path, *files)
    found = problem_at_submission(tmp_path, tmp_path)
    assert found == problem_on_the_machine(tmp_path)
    assert re.search(words, str(found))


@pytest.mark.parametrize(
    "files",
    [
        classes("cat", "dog"),
        [*classes("cat", "dog"), "beside.jpg", "notes.txt"],
        classes("bus", "car", "train"),
        [*classes("train/cat", "train/dog"), "val/cat/1.jpg", "val/dog/1.jpg", "test/1.jpg"],
        ["cat/deep/er/1.jpg", "cat/2.jpg", *classes("dog")],
        ["shards.json", "a.tar"],
    ],
)
def test_what_the_machine_accepts_is_accepted(tmp_path: Path, files: list[str]) -> None:
    make(tmp_path, *files)
    assert problem_at_submission(tmp_path, tmp_path) is None
    assert "shards.json" in files or problem_on_the_machine(tmp_path) is None


def test_the_training_folder_may_lie_right_below_what_jobs_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "train", *classes("cat", "dog"))
    make(tmp_path / "val", *classes("cat"))
    monkeypatch.setenv(ROOTS_VARIABLE, str(root))
    assert problem_at_submission(root, root) is None
    assert problem_on_the_machine(root) is None


def test_a_link_that_leads_out_is_refused_whatever_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "root", *classes("cat", "dog"))
    make(tmp_path / "outside", "1.jpg")
    monkeypatch.setenv(ROOTS_VARIABLE, str(root))
    (root / "fox").symlink_to(tmp_path / "outside")
    words = f"{root}/fox leads out of the folders that jobs may read; copy what it links to, or start the service with"
    assert str(problem_at_submission(root, root)).startswith(words)
    assert problem_at_submission(root, root) == problem_on_the_machine(root)
    (root / "fox").unlink()
    (root / "again").symlink_to(root)  # without an end
    assert "again holds no image" in str(problem_at_submission(root, root))
    assert problem_at_submission(root, root) == problem_on_the_machine(root)


def test_a_recipe_of_cifar10_takes_its_files_or_a_folder_of_images(tmp_path: Path) -> None:
    make(tmp_path, "published/cifar-10-batches-py/data_batch_1", "binary/test_batch.bin", "neither/a.txt")
    make(tmp_path / "images", *classes("train/cat", "train/dog", "val/cat"))

    def problem(name: str) -> str | None:
        return problem_at_submission(tmp_path / name, tmp_path, "cifar10/airbench94")

    assert problem("published") is problem("binary") is None
    assert "val holds 1 class folder" in str(problem("images"))
    with pytest.raises(DataError) as on_the_machine:
        load_cifar10(tmp_path / "neither", Settings())
    assert problem("neither") == str(on_the_machine.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["1.jpg"], "holds no .tar file; give the folder of the shards, or use format: imagefolder"),
        (["train/a.tar", "val/b.txt"], "val holds no .tar file"),
        (["train-0.tar", "more.tar"], "train-0.tar in .* says in its name what it is for, and more.tar doesn't"),
        (["a.tar", "train/b.tar"], "holds shards, such as a.tar, and the folder train"),
        (["train/a.tar", "val/b.tar"], "^None$"),
        (["train-0.tar", "val-0.tar"], "^None$"),
    ],
)
def test_a_folder_of_shards_is_checked_by_their_names(tmp_path: Path, files: list[str], words: str) -> None:
    found = problem_at_submission(make(tmp_path, *files), tmp_path, data_format="webdataset")
    assert found == problem_on_the_machine(tmp_path, "webdataset")
    assert re.search(words, str(found))


@pytest.mark.parametrize(
    ("files", "pattern", "words"),
    [
        (["a-00.tar", "a-01.tar", "a-02.tar"], "a-{00..02}.tar", "^None$"),
        (["a-00.tar", "a-02.tar"], "a-{00..04}.tar", r"a-01\.tar is missing, one of 3 that a-\{00\.\.04\}\.tar names"),
        (["a-0.tar"], "a-{3..1}.tar", "names no shard; give the smaller number first"),
        (["a-0.tar"], "b.tar", "b.tar is neither a folder nor a shard"),
        (["a-0.tar"], "a-0.tar", "^None$"),
    ],
)
def test_a_shard_that_is_missing_is_noticed_before_a_machine_is_paid_for(
    tmp_path: Path, files: list[str], pattern: str, words: str
) -> None:
    place = make(tmp_path, *files) / pattern
    found = problem_at_submission(place, tmp_path, data_format="webdataset")
    assert found == problem_on_the_machine(place, "webdataset")
    assert re.search(words, str(found))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a-000", "a-001", "a-003"], r"a-000\.tar to a-003\.tar: a-002\.tar is missing\. Add"),
        (["val-0", *(f"train-{number}" for number in (1, 2, 5, 6, 7))], r"train-7.*: 2 are missing, .* train-3\.tar"),
        (["a-1-of-3", "a-2-of-3"], r"2 shards of the 3 .* such as a-2-of-3\.tar: a-0-of-3\.tar is missing"),
        (["a-00002_of_00002"], r"1 shard of the 2 .*: a-00001_of_00002\.tar is missing"),
        (["a-0-of-2", "a-1-of-2", "b-1-of-2", "b-2-of-2"], "^None$"),
        (["a-7", "a-8", "a-9"], "^None$"),
        (["cats-2019", "cats-2021", "dogs"], "^None$"),
        (["part-64", "part-128", "part-256"], "^None$"),
    ],
)
def test_a_gap_in_the_numbers_of_shards_is_noticed(tmp_path: Path, names: list[str], words: str) -> None:
    folder = make(tmp_path, *(f"{name}.tar" for name in names))
    assert re.search(words, str(problem_at_submission(folder, tmp_path, data_format="webdataset")))


def test_shards_that_differ_from_their_index_are_noticed(tmp_path: Path) -> None:
    sizes = {"train-0.tar": 5, "train-1.tar": 6, "val-0.tar": 0}
    index = {"shards": [{"name": name, "bytes": size} for name, size in sizes.items()]}
    root = make(tmp_path / "root", *sizes)
    (root / "shards.json").write_text(json.dumps(index))
    (root / "train-1.tar").write_bytes(b"6 here")
    found = str(problem_at_submission(root, root))
    assert re.search("the shard .*train-0.tar has 0 bytes instead of 5: it is truncated", found)
    (root / "train-0.tar").write_bytes(b"5 now")
    assert problem_at_submission(root, root) is None
    (root / "val-0.tar").unlink()
    assert re.search(r"the shard .*val-0\.tar is missing; copy", str(problem_at_submission(root, root)))
    (root / "val-0.tar").symlink_to(make(tmp_path, "secret") / "secret")  # its size is none of theirs
    assert problem_at_submission(root, root) is None


@pytest.mark.parametrize("bound", ["MAX_FOLDERS", "MAX_ENTRIES"])
def test_a_large_data_set_is_left_to_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    make(tmp_path, *classes("cat", "dog"), "fox/a.txt")
    monkeypatch.setattr(data_folders, bound, 2)
    assert problem_at_submission(tmp_path, tmp_path) is None


def test_a_wrong_layout_is_a_problem_of_the_spec(deployment: Deployment) -> None:
    (root,) = deployment.settings.data_roots
    folder = make(root / "flat", "1.jpg", "2.jpg")
    spec = {"recipe": "imagefolder/resnet9", "data": {"train": str(folder)}}
    for path in ("/v1/jobs", "/v1/quotes"):
        answer = deployment.member.post(path, json={"spec": spec})
        assert answer.status_code == 422
        (problem,) = answer.json()["errors"]
        assert (problem["pointer"], problem["code"]) == ("/data/train", "data-layout")
        assert problem["message"].startswith(f"{folder} holds 0 class folders; a classifier needs two")
