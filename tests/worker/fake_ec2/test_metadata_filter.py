# SPDX-License-Identifier: Apache-2.0
"""Training processes on an instance with a network of its own: what they do to reach the metadata fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shoestring_trainer.machinehost.namespaces import inside
from shoestring_trainer.rank_server.isolation import find_isolation
from shoestring_worker.providers.ec2 import user_data_script
from shoestring_worker.providers.ec2.user_data_script import RANK_USER

from tests.servers import PATIENCE_S
from tests.trainer.machinehost.local_cloud import LocalCloud, until
from tests.trainer.machinehost.own_networks import needs_networks

SHIELD = f"""#!{sys.executable}
__name__ = "user data"
exec(open({user_data_script.__file__!r}).read())
while not os.path.exists("filter"):
    time.sleep(0.05)
print(shield_metadata(), flush=True)
while not os.path.exists("off"):
    time.sleep(0.05)
"""
COMMON = """
import os, socket, subprocess, urllib.request

def read(path, header, value, method):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(f"http://169.254.169.254/latest/{path}", headers={header: value}, method=method)
    with opener.open(asked, timeout=5) as answer:
        return answer.read().decode()

def credentials():
    token = read("api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60", "PUT")
    return read("meta-data/iam/security-credentials/data", "X-aws-ec2-metadata-token", token, "GET")

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

"""
SEVERAL = """
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
    "for the role's credentials": credentials,
    "by its device": lambda: connect("lo"),
    "by another device": lambda: connect("eth0"),
    "by TCP Fast Open": by_fast_open,
    "in root's group": lambda: as_group(lambda: os.setgid(0)),
    "in root's group, of several": lambda: as_group(lambda: os.setgroups([0])),
    "without the filter": lambda: (subprocess.run(["nft", "flush", "ruleset"], check=True), connect()),
}.items() if succeeds(attack)])
"""
CREDENTIALS, ATTACKS = f"{COMMON}\nprint(credentials())", COMMON + SEVERAL


@needs_networks
def test_a_rank_cant_reach_the_metadata_nor_the_role_s_credentials_and_root_can(tmp_path: Path):
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-limiting-access.html,
    instance-metadata-security-credentials.html"""
    if not (isolation := find_isolation(tmp_path, os.environ)):
        pytest.skip(isolation.problem)
    cloud = LocalCloud(tmp_path / "cloud")
    cloud.start()
    role = {"iam/security-credentials": "data", "iam/security-credentials/data": "the keys"}
    machine = cloud.launch("m", user_data=SHIELD, network={"groups": [], "inbound": []}, metadata=role)
    folder = Path(machine["dir"])
    for name in ("cache", "scratch/ranks", "gen"):
        (folder / name).mkdir(parents=True)
    agent = until(lambda: cloud.show(machine)["agent_pid"])

    def succeeded(script: str, **groups: Any) -> str:
        command = [*isolation.wrap(folder, os.environ), sys.executable, "-c", script]
        with open(f"/proc/{agent}/ns/net") as network, inside(network.fileno()):
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, **groups)
        return done.stdout.strip() or done.stderr

    rank: dict[str, Any] = {"group": RANK_USER, "extra_groups": []}
    assert succeeded(CREDENTIALS, **rank) == "the keys", "without the filter"
    (folder / "filter").touch()
    until(lambda: (folder / "agent.log").read_text().endswith("\n"))
    assert succeeded(ATTACKS, **rank) == "[]", (folder / "agent.log").read_text()
    assert succeeded(CREDENTIALS) == "the keys", "its agent's group"
    cloud.clean_up()
