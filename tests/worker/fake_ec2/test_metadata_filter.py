# SPDX-License-Identifier: Apache-2.0
"""Training processes on an instance with a network of its own: what they do to reach the metadata fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shoestring_trainer.machinehost.namespaces import inside
from shoestring_trainer.rank_server.isolation import find_isolation
from shoestring_worker.providers.ec2 import user_data_script
from shoestring_worker.providers.ec2.user_data_script import RANK_GROUP

from tests.trainer.machinehost.local_cloud import LocalCloud, until
from tests.trainer.machinehost.own_networks import needs_networks

SHIELD = f"""#!{sys.executable}
__name__ = "user data"
exec(open({user_data_script.__file__!r}).read())
print(shield_metadata(), flush=True)
while not os.path.exists("off"):
    time.sleep(0.05)
"""
ATTACKS = """
import os, socket, subprocess

def connect(device=""):
    with socket.socket() as stream:
        stream.settimeout(5)
        if device:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        stream.connect(("169.254.169.254", 80))

def succeeds(attack):
    try:
        attack()
    except (OSError, subprocess.SubprocessError):
        return False
    return True

def as_group(change):
    change()
    connect()

def by_fast_open():
    with socket.socket() as stream:
        stream.settimeout(5)
        stream.sendto(b"GET / HTTP/1.0", 0x20000000, ("169.254.169.254", 80))
        stream.recv(1)

print([name for name, attack in {
    "plainly": connect,
    "by its device": lambda: connect("lo"),
    "by another device": lambda: connect("eth0"),
    "by TCP Fast Open": by_fast_open,
    "in root's group": lambda: as_group(lambda: os.setgid(0)),
    "in root's group, of several": lambda: as_group(lambda: os.setgroups([0])),
    "without the filter": lambda: (subprocess.run(["nft", "flush", "ruleset"], check=True), connect()),
}.items() if succeeds(attack)])
"""


@needs_networks
@pytest.mark.parametrize("filtered", [True, False])
def test_a_rank_cant_reach_the_metadata_and_root_can(tmp_path: Path, filtered: bool):
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-limiting-access.html"""
    if not (isolation := find_isolation(tmp_path, os.environ)):
        pytest.skip(isolation.problem)
    cloud = LocalCloud(tmp_path / "cloud")
    cloud.start()
    script = SHIELD if filtered else SHIELD.replace("shield_metadata()", "'unfiltered'")
    machine = cloud.launch("m", user_data=script, network={"groups": [], "inbound": []})
    folder = Path(machine["dir"])
    until(lambda: (log := folder / "agent.log").exists() and log.read_text().endswith("\n"))
    for name in ("cache", "scratch/ranks", "gen"):
        (folder / name).mkdir(parents=True)
    command = [sys.executable, "-c", ATTACKS]
    with open(f"/proc/{cloud.show(machine)['agent_pid']}/ns/net") as network, inside(network.fileno()):
        rank = subprocess.run(
            [*isolation.wrap(folder, os.environ), *command], group=RANK_GROUP, extra_groups=[],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        root = subprocess.run([*isolation.wrap(folder, os.environ), *command], capture_output=True, text=True)
    cloud.clean_up()
    assert "plainly" in root.stdout, root.stderr
    assert ("plainly" in rank.stdout) is not filtered, rank.stderr
    if filtered:
        assert rank.stdout.strip() == "[]", (folder / "agent.log").read_text()
