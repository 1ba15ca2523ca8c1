# SPDX-License-Identifier: Apache-2.0
"""The agent on machines of the real machine host: it boots there, is taken, is told to end, and dies with its ranks."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.agent.services import Service
from tests.trainer.machinehost.local_cloud import LocalCloud, journal, processes_without_init, until

LAUNCHER = Path(__file__).with_name("stand_in_ranks.py")


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalCloud]:
    cloud = LocalCloud(tmp_path / "cloud")
    agent = [sys.executable, "-m", "shoestring_trainer", "agent"]
    cloud.start(
        env={
            "PYTHONPATH": os.pathsep.join(str(Path(folder).resolve()) for folder in sys.path if folder),
            "SHOESTRING_AGENT_COMMAND": json.dumps(agent),
            "SHOESTRING_AGENT_RANK_COMMAND": f"{sys.executable} {LAUNCHER}",
        }
    )
    yield cloud
    cloud.clean_up()


def train(cloud: LocalCloud, service: Service) -> dict[str, object]:
    """A machine whose two ranks have trained for a few steps."""
    user_data = {"server_url": service.url, "machine": str(service.machine), "boot_token": service.boot_token}
    machine = cloud.launch(user_data=user_data)
    service.run(1, nproc_per_node=2, steps=10_000)
    until(lambda: len(service.points("train/loss")) > 5)
    return machine


def saved(service: Service) -> bool:
    """The newest commit holds all that was trained, and the drained ranks were told."""
    steps = [step for step, _ in service.points("train/loss")]
    return service.exits(1) == ["drained", "drained"] and service.commits[-1].step == steps[-1] == len(steps)


def test_a_preempted_machine_saves_its_work_first(cloud: LocalCloud, service: Service) -> None:
    machine = train(cloud, service)
    cloud.preempt(machine, notice_s=120)
    ended = cloud.wait_until_ended(machine)
    assert (ended["end_cause"], ended["exit_code"]) == ("preempted", 0)
    assert saved(service)
    assert not processes_without_init(ended["dir"])


def test_a_machine_that_is_ended_saves_its_work_first(cloud: LocalCloud, service: Service) -> None:
    machine = train(cloud, service)
    cloud.stop(machine)
    ended = cloud.wait_until_ended(machine)
    assert (ended["end_cause"], ended["exit_code"]) == ("requested", 0)
    assert saved(service)


def test_a_killed_agent_takes_its_ranks_with_it(cloud: LocalCloud, service: Service) -> None:
    machine = train(cloud, service)
    [agent] = [line["pid"] for line in journal(machine) if line["event"] == "agent_start"]
    os.kill(agent, signal.SIGKILL)
    ended = cloud.wait_until_ended(machine)
    assert ended["end_cause"] == "crashed"
    assert not processes_without_init(ended["dir"])
