# SPDX-License-Identifier: Apache-2.0
"""Where the service names the folders that jobs may use, links in a job's data and hooks lead nowhere else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from shoestring_trainer.training.checkpoint.warm_start import warm_start
from shoestring_trainer.training.data.cifar10 import load_cifar10
from shoestring_trainer.training.data.confined_files import (
    HOOKS_ROOTS_VARIABLE,
    ROOTS_VARIABLE,
    open_confined,
    read_hooks,
)
from shoestring_trainer.training.data.torchvision_datasets import index_torchvision_dataset
from shoestring_trainer.training.errors import DataError, UserError
from shoestring_trainer.training.settings import Settings
from torch import nn

from tests.trainer.training.data.sample_images import COLOURS, load, save_image
from tests.trainer.training.data.test_cifar10 import write_binary
from tests.trainer.training.data.test_torchvision_datasets import write_mnist


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a data set; beside it, outside, a secret and a picture."""
    for name in ("cat", "dog"):
        for number in range(2):
            save_image(tmp_path / "root" / "set" / name / f"{number}.png", COLOURS["red"], number)
    save_image(tmp_path / "outside" / "a.png", COLOURS["red"], 1)
    (tmp_path / "outside" / "secret").write_text("line one\nline two\n")
    monkeypatch.setenv(ROOTS_VARIABLE, f"/nonexistent:{tmp_path / 'root'}")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("link", "target"),
    [("set/cat/2.png", "outside/a.png"), ("set/cow", "outside"), ("set/cat/more", "outside"),
     ("set/cat/2.png", "outside/nothing")],
)  # fmt: skip
def test_a_link_in_an_image_folder_does_not_lead_out_of_the_roots(root: Path, link: str, target: str):
    (root / link).symlink_to(root.parent / target)
    with pytest.raises(DataError, match=f"{root / link} leads out of the folders that jobs may read"):
        load(root / "set", val_fraction=0.5)


def test_a_link_to_another_place_below_a_root_is_followed(root: Path):
    (root / "set").rename(root / "all")
    (root / "some").mkdir()
    for name in ("cat", "dog"):
        (root / "some" / name).symlink_to(root / "all" / name)
    assert len(load(root / "some", val_fraction=0.5).train) == 2


@pytest.mark.parametrize("link", ["classes.txt", "a.tar"])
def test_shards_and_class_names_do_not_lead_out_of_the_roots(root: Path, link: str):
    shards = root / "shards"
    shards.mkdir()
    (shards / "a.tar").write_bytes(bytes(10_240))
    (shards / link).unlink(missing_ok=True)
    (shards / link).symlink_to(root.parent / "outside" / "secret")
    with pytest.raises(DataError, match=f"{shards / link} leads out of the folders that jobs may read") as refused:
        load(shards, data_format="webdataset", on_corrupt="skip")
    assert "line one" not in str(refused.value)


@pytest.mark.parametrize("link", ["init", "init/network.safetensors", "init/ckpt/step-000000003.json"])
def test_weights_do_not_lead_out_of_the_roots(root: Path, link: str):
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(root.parent / "outside" / ("" if link == "init" else "secret"))
    with pytest.raises(DataError, match="leads out of the folders that jobs may read"):
        warm_start(nn.Linear(1, 1), root / "init")


@pytest.mark.parametrize("link", ["cifar-10-batches-bin", "cifar-10-batches-bin/data_batch_3.bin"])
def test_the_files_of_cifar10_do_not_lead_out_of_the_roots(root: Path, link: str):
    write_binary(root.parent / "elsewhere")
    write_binary(root / "cifar")
    _replace_by_link(root / "cifar" / link, root.parent / "elsewhere" / link)
    with pytest.raises(DataError, match=f"{root / 'cifar' / link} leads out of the folders that jobs may read"):
        load_cifar10(root / "cifar", Settings(verify_checksums=False))


@pytest.mark.parametrize("link", ["MNIST/raw", "MNIST/raw/t10k-labels-idx1-ubyte"])
def test_what_torchvision_opens_does_not_lead_out_of_the_roots(root: Path, link: str):
    write_mnist(root.parent / "elsewhere")
    write_mnist(root / "set")
    _replace_by_link(root / "set" / link, root.parent / "elsewhere" / link)
    with pytest.raises(DataError, match=f"{root / 'set' / link}.* leads out of the folders that jobs may read"):
        index_torchvision_dataset("MNIST", root / "set", 0, 0.1)


def test_torchvision_follows_links_below_the_roots(root: Path):
    write_mnist(root / "all")
    (root / "some").mkdir()
    (root / "some" / "MNIST").symlink_to(root / "all" / "MNIST")
    assert len(index_torchvision_dataset("MNIST", root / "some", 0, 0.1)) == 2


@pytest.mark.parametrize("kind", ["pipe", "sparse"])
def test_torchvision_waits_for_no_pipe_and_reads_no_file_of_terabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.delenv(ROOTS_VARIABLE, raising=False)
    write_mnist(tmp_path)
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.unlink()
    os.mkfifo(images) if kind == "pipe" else images.touch()
    if kind == "sparse":
        os.truncate(images, 256 << 30)
    what = (
        "doesn't hold torchvision's MNIST" if kind == "pipe" else f"cannot read {images}: it has 274,877,906,944 bytes"
    )
    with pytest.raises(DataError, match=what):
        index_torchvision_dataset("MNIST", tmp_path, 0, 0.1)


def _replace_by_link(path: Path, target: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)


def test_a_pipe_is_refused_instead_of_waited_for(root: Path):
    (root / "cifar" / "cifar-10-batches-bin").mkdir(parents=True)
    for pipe in (root / "weights", root / "cifar" / "cifar-10-batches-bin" / "data_batch_1.bin"):
        os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"weights \(it is a pipe, where a file is needed\)"):
        warm_start(nn.Linear(1, 1), root / "weights")
    with pytest.raises(DataError, match=r"data_batch_1\.bin: it is a pipe, where"):
        load_cifar10(root / "cifar", Settings(verify_checksums=False))


def test_what_was_opened_counts_if_a_link_is_changed_in_between(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "a").symlink_to(root / "set" / "cat" / "0.png")
    opened = os.open

    def swap_then_open(path: Path, *options: int):
        path.unlink()
        path.symlink_to(root.parent / "outside" / "secret")
        return opened(path, *options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", swap_then_open)
        with pytest.raises(DataError, match="leads out"):
            open_confined(root / "a")


@pytest.fixture
def hooks_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "hooks"
    root.mkdir()
    (root / "mine.py").write_text("x = 1\n")
    (tmp_path / "outside.py").write_text("x = 1\n")
    (root / "linked.py").symlink_to(tmp_path / "outside.py")
    (root / "data").mkdir()
    (root / "data" / "downloaded.py").write_text("x = 1\n")
    monkeypatch.setenv(HOOKS_ROOTS_VARIABLE, str(root))
    monkeypatch.setenv(ROOTS_VARIABLE, str(root / "data"))
    monkeypatch.chdir(root)
    return root


def test_hooks_are_read_below_the_operators_folders(hooks_root: Path):
    assert read_hooks(hooks_root / "mine.py") == b"x = 1\n"


@pytest.mark.parametrize("path", ["{root}/../outside.py", "{root}/linked.py", "mine.py", "{root}/data/downloaded.py"])
def test_hooks_are_read_from_nowhere_else(hooks_root: Path, path: str):
    with pytest.raises(UserError, match="not a hooks file that jobs may run"):
        read_hooks(Path(path.format(root=hooks_root)))


def test_without_such_folders_no_hooks_are_read(hooks_root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(HOOKS_ROOTS_VARIABLE, "")
    with pytest.raises(UserError, match="--hooks-root"):
        read_hooks(hooks_root / "mine.py")


def test_a_link_that_changes_while_hooks_are_opened_leads_nowhere(hooks_root: Path, monkeypatch: pytest.MonkeyPatch):
    path, realpath = hooks_root / "linked.py", os.path.realpath
    before = {path: str(hooks_root / "mine.py")}
    monkeypatch.setattr(os.path, "realpath", lambda at: before.pop(at, None) or realpath(at))
    with pytest.raises(UserError, match="not a hooks file"):
        read_hooks(path)
