# SPDX-License-Identifier: Apache-2.0
"""What hooks leave in place of the files that their agent reads and writes leads it nowhere."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from pydantic import ValidationError
from shoestring_core.task import RecipeTask
from shoestring_core.wire import LaunchConfig
from shoestring_trainer.agent.checkpoints import CheckpointCache
from shoestring_trainer.agent.rank_files import exists, open_file, read_file, write_file
from shoestring_trainer.agent.ranks import Ranks, StartRecord
from shoestring_trainer.agent.service_client import ServiceClient
from shoestring_trainer.folders import delete_folder
from shoestring_trainer.run_files import CheckpointEvent

from tests.trainer.nested_folders import nest

SECRET = "known only to the agent"
TASK = RecipeTask(format=1, job="job", generation=1, recipe="digits/quickstart")
LAUNCH = LaunchConfig(node_rank=0, nnodes=1, nproc_per_node=1, master_addr="127.0.0.1", master_port=1, task=TASK)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a generation. Beside `gen` lies what its ranks can't see."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "step-1.data").write_text(SECRET)
    run = tmp_path / "gen" / "1"
    run.mkdir(parents=True)
    return run


def link_to_a_file(run: Path) -> None:
    (run / "ckpt").mkdir()
    (run / "ckpt/step-1.data").symlink_to(run.parents[1] / "private/step-1.data")


def link_to_a_folder(run: Path) -> None:
    (run / "ckpt").symlink_to(run.parents[1] / "private")


def link_in_place_of_the_generation(run: Path) -> None:
    (run.parents[1] / "private/ckpt").symlink_to(".")
    run.rmdir()
    run.symlink_to(run.parents[1] / "private")


def fifo(run: Path) -> None:
    (run / "ckpt").mkdir()
    os.mkfifo(run / "ckpt/step-1.data")


def folder(run: Path) -> None:
    (run / "ckpt/step-1.data").mkdir(parents=True)


@pytest.mark.parametrize("plant", [link_to_a_file, link_to_a_folder, link_in_place_of_the_generation, fifo, folder])
def test_only_a_regular_file_in_its_place_is_read_and_uploaded(run: Path, plant: Callable[[Path], None]) -> None:
    plant(run)
    path = run / "ckpt/step-1.data"
    with pytest.raises(OSError, match=r"\[Errno"):
        os.close(open_file(path))

    async def upload() -> None:
        await ServiceClient("http://127.0.0.1:1", uuid4(), "session").upload(path, "http://127.0.0.1:1/object")

    with pytest.raises(OSError, match=r"\[Errno"):
        asyncio.run(upload())


def test_a_file_of_endless_size_is_refused(run: Path) -> None:
    with (run / "exit-0.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than"):
        read_file(run / "exit-0.json", 1000)


def test_an_order_replaces_what_is_in_its_place_and_follows_no_link(run: Path) -> None:
    private = run.parents[1] / "private/step-1.data"
    (run / "order").symlink_to(private)
    (run / "order.tmp").symlink_to(private)
    Ranks(run.parents[1], 1, LAUNCH).drain()
    assert not (run / "order").is_symlink()
    assert "checkpoint_and_stop" in (run / "order").read_text()
    link_in_place_of_the_next = run.parent / "2"
    link_in_place_of_the_next.symlink_to(private.parent)
    with pytest.raises(OSError, match=r"\[Errno"):
        write_file(link_in_place_of_the_next / "order", "text")
    assert private.read_text() == SECRET
    assert list(private.parent.iterdir()) == [private]


def test_a_generation_begins_in_place_of_a_folder_of_any_depth(run: Path) -> None:
    nest(run.parent / "2")
    Ranks(run.parents[1], 2, LAUNCH).start(TASK, {"PATH": os.environ["PATH"]}, None, "/bin/true")
    assert {path.name for path in (run.parent / "2").iterdir()} == {"task.json", "log-launch.txt"}


def test_a_folder_is_deleted_whatever_a_hook_left_in_it(run: Path) -> None:
    private, left = run.parents[1] / "private", run.parent / "2"
    nest(left / "deep")
    (left / "link").symlink_to(private)
    (left / "deep/link").symlink_to(private)
    (left / "moved-0").write_text("a name that is taken")
    os.mkfifo(left / "deep/fifo")
    (left / "closed/below").mkdir(parents=True)
    (left / "closed/below").chmod(0)
    (left / "closed").chmod(0)
    delete_folder(left)
    delete_folder(left)
    assert not left.exists()
    assert [path.name for path in private.iterdir()] == ["step-1.data"]


@pytest.mark.parametrize("planted", ["a link", "a folder with links"])
def test_a_generation_begins_in_a_folder_of_its_own(run: Path, planted: str) -> None:
    private, next_run = run.parents[1] / "private", run.parent / "2"
    if planted == "a link":
        next_run.symlink_to(private)
    else:
        next_run.mkdir()
        for name in ("task.json", "log-launch.txt", "started.tmp"):
            (next_run / name).symlink_to(private / "step-1.data")
    ranks = Ranks(run.parents[1], 2, LAUNCH)
    ranks.start(TASK, {"PATH": os.environ["PATH"]}, None, "/bin/true")
    assert next_run.is_dir()
    assert not next_run.is_symlink()
    assert (private / "step-1.data").read_text() == SECRET
    assert [path.name for path in private.iterdir()] == ["step-1.data"]


@pytest.mark.parametrize("content", ["a link", "another generation", "no generation"])
def test_ranks_decide_nothing_about_which_generations_were_started(run: Path, content: str) -> None:
    machine = run.parents[1]
    record = StartRecord(generation=9, launch_config=LAUNCH).model_dump_json()
    for generation in ("1", "9", "x"):
        (machine / "gen" / generation).mkdir(exist_ok=True)
        path = machine / "gen" / generation / "started.json"
        path.symlink_to(machine / "private/step-1.data") if content == "a link" else path.write_text(
            record if content == "another generation" else "{"
        )
    assert Ranks.latest_started(machine) is None
    assert not Ranks(machine, 9, LAUNCH).started


def test_a_started_generation_and_those_before_it_are_not_started_again(run: Path) -> None:
    machine = run.parents[1]
    Ranks(machine, 2, LAUNCH).start(TASK, {"PATH": os.environ["PATH"]}, None, "/bin/true")
    assert [Ranks(machine, generation, LAUNCH).started for generation in (1, 2, 3)] == [True, True, False]
    latest = Ranks.latest_started(machine)
    assert latest is not None
    assert (latest.generation, latest.folder, latest.launch_config) == (2, machine / "gen/2", LAUNCH)


@pytest.mark.parametrize("name", ["/etc/passwd.data", "../../private/a.data", "ckpt/../../x.data", "ckpt/a/b.data"])
def test_a_checkpoint_lies_in_the_folder_of_checkpoints(name: str) -> None:
    names = {"data": "ckpt/step-000000001.data", "manifest": "ckpt/step-000000001.json"}
    rest = {"step": 1, "reason": "periodic", "final": False, "lines": 1}
    CheckpointEvent.model_validate(names | rest)
    for field in names:
        with pytest.raises(ValidationError):
            CheckpointEvent.model_validate(names | rest | {field: name})


@pytest.mark.parametrize("step", [-1, 10**30])
def test_a_checkpoint_of_an_impossible_step_is_no_checkpoint(step: int) -> None:
    """Its commit could not be built, and the agent would end."""
    names = {"data": "ckpt/step-000000001.data", "manifest": "ckpt/step-000000001.json"}
    with pytest.raises(ValidationError):
        CheckpointEvent.model_validate(names | {"step": step, "reason": "periodic", "final": False, "lines": 1})


def test_a_name_that_no_file_can_have_is_not_there(run: Path) -> None:
    assert not exists(run / f"{'x' * 300}.data")


def test_a_kept_checkpoint_moves_and_deletes_nothing_outside_the_folder_of_checkpoints(run: Path) -> None:
    cache = run.parents[1] / "cache"
    cache.mkdir()
    link_to_a_folder(run)
    committed = SimpleNamespace(data=run / "ckpt/step-1.data", manifest=run / "ckpt/step-1.json")
    with pytest.raises(OSError, match=r"\[Errno"):
        CheckpointCache(cache).store("a" * 64, cast("Any", committed))
    assert (run.parents[1] / "private/step-1.data").read_text() == SECRET
