# SPDX-License-Identifier: Apache-2.0
"""Ranks as a user of their own: what they reach of the machine's folder, and what is the agent's alone."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shoestring_core.task import RecipeTask
from shoestring_core.wire import LaunchConfig
from shoestring_trainer.agent.boot import create_folders, load_or_create_session_secret
from shoestring_trainer.agent.checkpoints import CheckpointCache, LocalCheckpoint
from shoestring_trainer.agent.rank_user import UMASK, find_rank_user, give_to_ranks
from shoestring_trainer.agent.ranks import Ranks
from shoestring_trainer.agent.spool import write_durably

USER = 64083 if os.geteuid() == 0 else os.geteuid()
"""Only root can have ranks of another user; for others the files' owners and modes are looked at."""
TASK = RecipeTask(format=1, job="job", generation=1, recipe="digits/quickstart")
LAUNCH = LaunchConfig(node_rank=0, nnodes=1, nproc_per_node=1, master_addr="127.0.0.1", master_port=1, task=TASK)
AGENTS_FILES = ("session", "started.json", "upload.json", "boot-data.json", "spool")


@pytest.fixture
def machine() -> Iterator[Path]:
    """The folder of a machine whose agent has data and has started a generation."""
    before = os.umask(UMASK)
    try:
        with tempfile.TemporaryDirectory() as reachable:
            Path(reachable).chmod(0o755)
            folder = Path(reachable) / "machine"
            folder.mkdir()
            create_folders(folder, USER)
            load_or_create_session_secret(folder)
            write_durably(folder / "upload.json", "{}")
            (folder / "boot-data.json").write_text("{}")
            (folder / "scratch" / "images").mkdir()
            (folder / "scratch" / "images" / "1.png").write_bytes(b"an image")
            ranks = Ranks(folder, 1, LAUNCH)
            ranks.start(TASK, {}, None, "true", USER)
            ranks.drain()
            yield folder
    finally:
        os.umask(before)


def as_rank(attempts: dict[str, Callable[[], object]]) -> set[str]:
    """The attempts that succeed as the user of ranks, in a fork."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(USER)
                os.setuid(USER)
            os.write(writer, json.dumps([name for name, attempt in attempts.items() if succeeds(attempt)]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        succeeded = json.loads(told.read())
    os.waitpid(child, 0)
    return set(succeeded)


def succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def test_a_rank_reads_its_task_and_data_and_writes_its_run(machine: Path) -> None:
    run = machine / "gen" / "1"
    needed: dict[str, Callable[[], object]] = {
        "its task": (run / "task.json").read_text,
        "its order to stop": (run / "order").read_text,
        "the data": (machine / "scratch" / "images" / "1.png").read_bytes,
        "its log": lambda: (run / "log-launch.txt").open("a"),
        "a checkpoint": lambda: (run / "ckpt").mkdir(),
        "decoded images": lambda: (machine / "scratch" / "ranks" / "images-1").mkdir(),
    }
    assert as_rank(needed) == set(needed)
    assert stat.S_IMODE((machine / "gen").stat().st_mode) == 0o2750
    assert (run.stat().st_uid, run.stat().st_gid) == (USER, USER)


def test_a_rank_resumes_from_what_is_cached(machine: Path) -> None:
    data = machine / "gen" / "1" / "ckpt" / "step-000000007.data"
    assert as_rank({"saved": lambda: (data.parent.mkdir(), data.write_bytes(b"weights"))})
    manifest = machine / "manifest.json"
    write_durably(manifest, "{}")
    CheckpointCache(machine / "cache").store("sha", LocalCheckpoint(1, 7, data, manifest, "periodic", 0))
    cached: dict[str, Callable[[], object]] = {
        name: (machine / "cache" / name).read_bytes for name in ("sha.data", "sha.json")
    }
    assert as_rank(cached) == set(cached)
    assert (machine / "cache" / "sha.json").stat().st_mode & 0o777 == 0o640


def test_nothing_of_the_agent_is_a_rank_s(machine: Path) -> None:
    for name in AGENTS_FILES:
        assert (machine / name).stat().st_mode & 0o007 == 0, name
        assert (machine / name).stat().st_gid == os.getegid(), name
    assert machine.stat().st_mode & 0o777 == 0o711
    if os.geteuid() != 0:
        return  # ranks are the agent's user
    attacks: dict[str, Callable[[], object]] = {name: lambda n=name: os.open(machine / n, 0) for name in AGENTS_FILES}
    attacks |= {
        "the names of its files": lambda: list(machine.iterdir()),
        "a file beside the session": lambda: (machine / "mine").touch(),
        "another generation": lambda: (machine / "gen" / "2").mkdir(),
        "a checkpoint in the cache": lambda: (machine / "cache" / "forged.data").touch(),
        "an image of the data": lambda: (machine / "scratch" / "images" / "1.png").write_bytes(b"another"),
        "its task": lambda: (machine / "gen" / "1" / "task.json").write_text("{}"),
        "root's home": lambda: list(Path("/root").iterdir()),
        "the agent's environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "the agent itself": lambda: os.kill(os.getppid(), 0),
        "root's rights": lambda: os.setuid(0),
    }
    assert as_rank(attacks) == set()


def test_a_link_that_a_rank_left_gives_it_nothing(machine: Path) -> None:
    link = machine / "scratch" / "ranks" / "stream"
    assert as_rank({"a link": lambda: link.symlink_to(machine / "session")})
    give_to_ranks(link, USER)
    assert (machine / "session").stat().st_uid == os.geteuid()


def test_without_a_user_of_their_own_ranks_are_the_agent_s(tmp_path: Path) -> None:
    assert find_rank_user({}) is None
    assert find_rank_user({"SHOESTRING_RANK_USER": "64083"}) == 64083
    create_folders(tmp_path, None)
    assert (tmp_path / "gen").stat().st_mode & 0o2000 == 0
