# SPDX-License-Identifier: Apache-2.0
"""Machines whose user data is a script: executed at boot, with metadata as on EC2; only powering off ends them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.machinehost.local_cloud import SPOT, LocalCloud, events, processes_without_init, until

PYTHON = f"""#!{sys.executable}
import subprocess, sys, time
sys.path.append({str(Path(__file__).parent)!r})
from stand_in_agent import metadata
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    cloud = LocalCloud(tmp_path_factory.mktemp("cloud"))
    cloud.start()
    yield cloud
    cloud.clean_up()


def boot(cloud: LocalCloud, token: str, script: str, **more: Any) -> dict[str, Any]:
    return cloud.launch(token, user_data=script, **more)


def wrote(machine: dict[str, Any], name: str) -> str:
    """What the machine wrote into a file of its folder, once it has."""
    file = Path(machine["dir"]) / name
    until(lambda: file.exists() and file.read_text().endswith("\n"))
    return file.read_text().strip()


def test_a_machine_runs_after_its_script_has_ended_and_until_it_powers_itself_off(cloud: LocalCloud) -> None:
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/user-data.html: scripts run once, during the first boot."""
    off = "while [ ! -e go ]; do sleep 0.05; done; poweroff"
    machine = boot(cloud, "off", f"#!/bin/sh\nsetsid sh -c '{off}' &\n(echo booted) > done\nexit 1\n")
    assert wrote(machine, "done") == "booted"
    assert cloud.show(machine)["state"] == "running"
    (Path(machine["dir"]) / "go").touch()
    ended = cloud.wait_until_ended(machine)
    assert (ended["end_cause"], ended["exit_code"]) == ("exited", 0)
    assert not processes_without_init(machine["dir"])


def test_a_machine_is_stopped_with_all_that_its_script_left_running(cloud: LocalCloud) -> None:
    machine = boot(cloud, "left", "#!/bin/sh\nsetsid sleep 600 &\necho yes > done\n")
    wrote(machine, "done")
    cloud.client.delete(f"/machines/{machine['id']}", params={"grace_s": 0})
    assert cloud.wait_until_ended(machine)["end_cause"] == "requested"
    assert not processes_without_init(machine["dir"])


def test_a_script_finds_the_metadata_and_the_commands_of_its_request(cloud: LocalCloud) -> None:
    names = ("instance-id", "placement/availability-zone")
    script = f"""{PYTHON}
found = [metadata(f"meta-data/{{name}}") for name in {names!r}]
found.append(subprocess.check_output(["nvidia-smi"], text=True).strip())
print(*found, file=open("found", "w"))
"""
    facts = {"instance-id": "i-1", "placement/availability-zone": "us-east-1a"}
    machine = boot(cloud, "facts", script, metadata=facts, commands={"nvidia-smi": "#!/bin/sh\necho 580\n"})
    assert wrote(machine, "found") == "i-1 us-east-1a 580"
    cloud.stop(machine)


def test_a_recommendation_and_a_notice_stand_in_the_metadata_from_when_they_are_made(cloud: LocalCloud) -> None:
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html, …/rebalance-…"""
    script = f"""{PYTHON}
for name in ("events/recommendations/rebalance", "spot/instance-action"):
    while not (document := metadata(f"meta-data/{{name}}")):
        time.sleep(0.05)
    print(document, file=open(name.rpartition("/")[2], "w"))
"""
    machine = boot(cloud, "notice", script)
    assert cloud.client.post(f"/machines/{machine['id']}/rebalance").status_code == 202
    assert wrote(machine, "rebalance").startswith('{"noticeTime":"20')
    assert cloud.client.post(f"/machines/{machine['id']}/preempt", json={"notice_s": 2}).status_code == 202
    assert wrote(machine, "instance-action").startswith('{"action":"terminate","time":"20')
    assert cloud.wait_until_ended(machine)["end_cause"] == "preempted"
    assert [event for event in events(machine) if event in ("rebalance", "notice")] == ["rebalance", "notice"]


@pytest.mark.parametrize(
    ("wrong", "detail"),
    [
        ({"user_data": "echo no interpreter"}, "user_data"),
        ({"user_data": "#!/bin/sh\n" + "#" * 16_384}, "16384"),
        ({"user_data": "#!/bin/sh\n", "commands": {"../sh": ""}}, "commands"),
        ({"user_data": {}, "commands": {"sh": ""}}, "commands"),
        ({"user_data": "#!/bin/sh\n", "metadata": {"instance-id": 1}}, "metadata"),
    ],
)
def test_a_script_that_could_not_run_is_refused(cloud: LocalCloud, wrong: dict[str, Any], detail: str) -> None:
    refused = cloud.client.put("/machines/wrong", json={**SPOT, **wrong})
    assert (refused.status_code, refused.json()["code"]) == (400, "bad-request")
    assert detail in refused.json()["detail"]
