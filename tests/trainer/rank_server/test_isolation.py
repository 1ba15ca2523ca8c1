# SPDX-License-Identifier: Apache-2.0
"""Isolated ranks: what a hook reaches of the computer, the same bits, and their end with the agent.

The attacks run first without isolation, where they succeed. Where bubblewrap can't be had, the tests of isolated ranks
show that it is said, and what to do about it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from shoestring_trainer import processes
from shoestring_trainer.agent.ranks import MACHINE_VARIABLE, rank_server_environment, terminate_ranks
from shoestring_trainer.rank_server import isolation
from shoestring_trainer.rank_server.bubblewrap import isolated_environment
from shoestring_trainer.rank_server.client import RankServerClient
from shoestring_trainer.rank_server.isolation import (
    DATA_ROOTS_VARIABLE,
    HOOKS_ROOTS_VARIABLE,
    PRIVATE_VARIABLE,
    READABLE_OF_MACHINE,
    SWITCHES,
    WRITABLE_OF_MACHINE,
    Isolation,
    find_isolation,
    find_remedy,
)

from tests.isolation import found_isolation
from tests.servers import PATIENCE_S, until
from tests.trainer.training.gangs import DIGITS, base_environment, finished, gang

MARKER = "known-only-to-the-service"
MACHINE = "a-test-of-isolation"
SHORT = {"epochs": 1, "width": 4, "batch_size": 64}
AS_ORDINARY_USER = (
    "--unshare-user", "--uid", "1000", "--gid", "1000", "--dev-bind", "/", "/", "--cap-drop", "ALL", "--",
)  # fmt: skip


@dataclass
class Computer:
    """A service's folders with secrets in them, its user's home, and one machine."""

    folder: Path

    def __post_init__(self) -> None:
        self.home, self.data, self.hooks = self.folder / "home", self.folder / "home/my images", self.folder / "hooks"
        self.cloud = self.folder / "service/cloud"
        self.machine = self.cloud / "machines/lm-1"
        self.secrets = [
            self.folder / "service" / name
            for name in ("admin.key", "secret", "store.db", "client.json", "cloud/machinehost.json")
        ]
        self.secrets += [self.machine / name for name in ("session", "user-data", "spool/000000001.json", "agent.log")]
        self.secrets += [self.cloud / "machines/lm-2" / name for name in ("session", "gen/1/log-rank0.txt")]
        self.secrets += [self.home / name for name in (".config/shoestring/login.json", ".aws/credentials", "notes")]
        hidden = [self.data / name for name in ("store.db", "objects/checkpoint")]
        self.secrets += hidden
        for path in self.secrets:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(MARKER)
        own = [self.machine / name for name in (*READABLE_OF_MACHINE, *WRITABLE_OF_MACHINE)]
        for path in (self.data, self.hooks, *own):
            path.mkdir(parents=True, exist_ok=True)
        (self.data / "cat.png").write_bytes(b"a picture")
        (self.data / "link").symlink_to(self.secrets[0])
        self.machine.joinpath("cache/step-1.data").write_bytes(b"a checkpoint")
        self.hook = self.hooks / "attack.py"
        shutil.copy(Path(__file__).with_name("attack.py"), self.hook)
        self.folder.chmod(0o700)
        self.environment = base_environment() | {
            "HOME": str(self.home), DATA_ROOTS_VARIABLE: str(self.data), HOOKS_ROOTS_VARIABLE: str(self.hooks),
            PRIVATE_VARIABLE: f"{self.folder / 'service'}:{hidden[0]}:{hidden[1].parent}",
            "SHOESTRING_AGENT_AWS_SECRET_ACCESS_KEY": MARKER,
        }  # fmt: skip
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(self.folder / "service/redis.sock"))
        self.listening.listen()
        self.other = subprocess.Popen(["/bin/sleep", "600"], env={"KEY": MARKER})
        self.shared = Path(f"/dev/shm/shoestring-test-{os.getpid()}")
        self.shared.write_text(MARKER)
        product, self.key = Path(isolation.__file__), add_key()
        targets = {
            "secrets": [*map(str, self.secrets), str(self.data / "link")], "marker": MARKER,
            "key": self.key, "process": self.other.pid, "sockets": [self.listening.getsockname()], "variable": MARKER,
            "linkable": [str(self.data / "cat.png"), str(self.machine / "cache/step-1.data")],
            "unwritable": [str(path) for path in (
                self.data, self.data / "cat.png", self.hooks, self.hook, self.machine, self.home,
                self.machine / "cache", self.machine / "scratch",
                self.folder / "service", self.cloud / "machines/lm-2", *self.secrets,
            )],
            "system": [str(path) for path in (product, product.parent, "/", "/etc", "/etc/passwd", "/usr")],
            "namespace": str(Path("/proc/self/ns/user").readlink()),
        }  # fmt: skip
        (self.hooks / "targets.json").write_text(json.dumps(targets))

    def close(self) -> None:
        self.other.kill()
        self.other.wait()
        self.listening.close()
        self.shared.unlink()

    def run(self, *before: str) -> list[str]:
        """What the hook reaches as a program of its own."""
        folder = self.machine / "gen"
        environment = isolated_environment(rank_server_environment(MACHINE, self.environment))
        if not before:
            environment = self.environment
        subprocess.run(
            [*before, sys.executable, str(self.hook)], env=environment | {"ATTACK_FOLDER": str(folder)}, cwd=folder,
            stdin=subprocess.DEVNULL, timeout=PATIENCE_S, check=True,
        )  # fmt: skip
        return json.loads((folder / "reached.json").read_text())


@pytest.fixture
def computer() -> Iterator[Computer]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # ranks have a /tmp of their own
        computer = Computer(Path(folder) / "a computer")
        yield computer
        computer.close()


@pytest.fixture
def server(computer: Computer) -> Iterator[RankServerClient]:
    """Of the computer's machine; isolated if that can be had here."""
    wrapped = found_isolation().wrap(computer.machine, computer.environment)
    environment = isolated_environment(rank_server_environment(MACHINE, computer.environment))
    server = RankServerClient(
        environment, computer.machine / "rank-server.log", modules=["torch._dynamo"], isolation=wrapped
    )
    yield server
    server.close()
    assert not processes.find_by_environment({MACHINE_VARIABLE: MACHINE})


def add_key() -> str:
    """Add a key to a session keyring of the tests, which their processes inherit; returns its name, or "" without
    keyrings."""
    libc, name = ctypes.CDLL(None), "shoestring-test"
    keyctl, add = {"x86_64": (250, 248), "aarch64": (219, 217)}[platform.machine()]
    libc.syscall(keyctl, 1, None)
    key = libc.syscall(add, b"user", name.encode(), MARKER.encode(), len(MARKER), ctypes.c_int(-3))
    return name if key > 0 else ""


def require_isolation() -> bool:
    """Whether the test can go on; where it can't, the reason is known."""
    found = found_isolation()
    assert found or found.problem
    return bool(found)


def test_the_attacks_succeed_without_isolation(computer: Computer) -> None:
    reached = " ".join(computer.run())
    assert ("keyring" in reached.split()) == bool(computer.key)
    for path in computer.secrets:
        assert f"read  {path}" in reached
        assert f"write {path}" in reached
    for attempt in (
        "signal",
        "pidfd",
        "connect",
        "chmod",
        "utime",
        "write",
        "link",
        "shared memory",
        "variable",
    ):
        assert attempt in reached


def test_a_hook_reaches_nothing_of_the_service_and_its_gang_trains_to_the_same_bits(
    computer: Computer, server: RankServerClient, tmp_path: Path
) -> None:
    if not require_isolation():
        return
    params = DIGITS | SHORT
    hooked = params | {"hooks_file": str(computer.hook)}
    isolated = finished(computer.machine / "gen/1", server=server, nodes=2, params=hooked)
    assert json.loads((isolated.first / "reached.json").read_text()) == []
    left = [run.state_hashes() for run in (isolated, finished(tmp_path / "plain", nodes=2, params=params))]
    for hashes in left:
        del hashes["state.json"]  # names the hooks, which only one of the runs has
        assert "model.safetensors" in hashes
    assert left[0] == left[1]


def test_a_hook_of_an_ordinary_user_reaches_nothing_of_the_service(computer: Computer) -> None:
    if not require_isolation():
        return
    bubblewrap = found_isolation().command[0]
    become = (bubblewrap, *AS_ORDINARY_USER) if os.geteuid() == 0 else ()
    wrapped = found_isolation().wrap(computer.machine, computer.environment)
    reached = computer.run(*become, *wrapped)
    assert set(reached) <= {"keyring"}  # which the rank server leaves, and this is none


def test_killing_the_server_its_launcher_or_a_rank_leaves_no_process(
    computer: Computer, server: RankServerClient
) -> None:
    if not require_isolation():
        return
    endless = DIGITS | {"epochs": 10_000}
    with gang(computer.machine / "gen/1", server=server, params=endless) as run:
        run.until_step(1)
        (rank,) = run.rank_pids()
        os.kill(rank, signal.SIGKILL)
        assert run.wait() == [-signal.SIGKILL]
    kept = server.process
    with gang(computer.machine / "gen/2", server=server, params=endless) as run:
        run.until_step(1)
        assert server.process == kept
        asyncio.run(terminate_ranks(MACHINE, server, grace_s=0))
        assert run.wait() == [-signal.SIGKILL]
    assert server.process == kept
    with gang(computer.machine / "gen/3", server=server, params=endless) as run:
        run.until_step(1)
        assert server.launcher
        server.launcher.send_signal(signal.SIGKILL)
        assert run.wait() == [-signal.SIGKILL]
    until(lambda: not processes.find_by_environment({MACHINE_VARIABLE: MACHINE}))


def test_without_bubblewrap_the_line_that_installs_it_is_said(tmp_path: Path) -> None:
    found = find_isolation(tmp_path, {"PATH": str(tmp_path)})
    assert not found
    assert "bubblewrap isn't installed" in found.hooks_refusal()
    assert found.remedy.endswith("apt install bubblewrap")


def test_a_relative_place_that_python_imports_from_is_shown_at_its_own_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bubblewrap refuses a link called `.`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(".")
    view = isolation.find_view(tmp_path / "machine", {})
    assert tmp_path.resolve() in view.readable
    assert all(link.is_absolute() for link in view.links)


def test_where_bubblewrap_fails_its_message_is_said(tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    found = find_isolation(tmp_path, {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert not found
    assert "No permissions to create new namespace" in found.warning()


@pytest.mark.parametrize(("setting", "value", "remedy"), [(path, *switch) for path, switch in SWITCHES.items()])
def test_a_setting_of_linux_that_forbids_isolation_comes_with_what_allows_it(setting: str, value: str, remedy: str):
    assert find_remedy({setting: value}).endswith(remedy)
    assert find_remedy({setting: "other"}) == ""


def test_a_machine_that_was_told_nothing_is_not_isolated(tmp_path: Path) -> None:
    assert not Isolation.parse(None)
    assert Isolation.parse(None).wrap(tmp_path, {}) == []
    assert Isolation.parse(json.dumps(found_isolation().to_dict())) == found_isolation()
