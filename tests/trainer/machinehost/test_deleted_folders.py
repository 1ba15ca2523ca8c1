# SPDX-License-Identifier: Apache-2.0
"""Machines whose folders somebody deletes: they end, and their host goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoestring_trainer.machinehost import host as machinehost
from shoestring_trainer.machinehost.host import MachineHost
from shoestring_trainer.machinehost.machine_folder import machine_environment

from tests.servers import PATIENCE_S
from tests.trainer.machinehost.local_cloud import SPOT

BODY = {**SPOT, "user_data": {}}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachineHost:
    """Its machines have no inits: whatever has a machine's environment is a process of it."""
    monkeypatch.setattr(MachineHost, "_start_init", lambda *_: None)
    monkeypatch.setattr(machinehost, "WATCH_INTERVAL_S", 0.0)
    monkeypatch.setattr(machinehost, "ACK_TIMEOUT_S", 0.0)
    return MachineHost(tmp_path, slots=4, command=["agent"])


@pytest.fixture
def process(host: MachineHost) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the machine that was launched for the token "t"."""
    _, machine = host.launch("t", BODY)
    process = subprocess.Popen(["sleep", "600"], env=os.environ | machine_environment(Path(machine["dir"])))
    yield process
    process.kill()
    process.wait()


def machine_of(host: MachineHost) -> dict[str, object]:
    [machine] = host.list_machines()["machines"]
    return machine


@pytest.mark.parametrize("deleted", ["the machine", "all"])
def test_a_machine_whose_folder_is_deleted_is_killed_and_reported_as_ended(
    host: MachineHost, process: subprocess.Popen[bytes], tmp_path: Path, deleted: str
) -> None:
    folder = Path(str(machine_of(host)["dir"]))
    shutil.rmtree(folder if deleted == "the machine" else tmp_path)
    assert machine_of(host)["ended_at"] is None
    host.watch()
    assert process.wait(PATIENCE_S) == -9
    ended = machine_of(host)
    assert (ended["state"], ended["end_cause"]) == ("ended", "crashed")
    host.watch()
    assert machine_of(host) == ended


def test_a_host_whose_folder_is_deleted_while_it_stops_its_machines_ends(
    host: MachineHost, process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json = machinehost.write_json

    def delete_and_write(path: Path, value: dict[str, object]) -> None:
        shutil.rmtree(tmp_path)
        write_json(path, value)

    monkeypatch.setattr(machinehost, "write_json", delete_and_write)
    host.stop_all()
    assert process.wait(PATIENCE_S) == -9
    assert machine_of(host)["state"] == "ended"


def test_a_request_to_a_machine_whose_folder_is_deleted_is_answered(host: MachineHost, tmp_path: Path) -> None:
    _, machine = host.launch("t", BODY)
    shutil.rmtree(tmp_path)
    assert host.stop(machine["id"])["ended_at"] is None
    assert host.preempt(machine["id"], {})["ended_at"] is None
    host.watch()
    assert host.stop(machine["id"])["state"] == "ended"
