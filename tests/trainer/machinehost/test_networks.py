# SPDX-License-Identifier: Apache-2.0
"""Machines with networks of their own: who reaches whom, and what is left of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from shoestring_core.machine_network import COMPUTER
from shoestring_trainer.machinehost.namespaces import run_inside
from shoestring_trainer.machinehost.network import METADATA_ADDRESS

from tests import servers
from tests.trainer.machinehost.local_cloud import LocalCloud, processes_without_init, until
from tests.trainer.machinehost.own_networks import (
    WAIT,
    knock,
    namespaces_in_use,
    needs_networks,
    sockets_at,
    within,
)

pytestmark = needs_networks
PORT = 29_500
GANG = {"groups": ["sg-gang"], "inbound": [{"protocol": "-1", "source": "sg-gang"}]}
STRANGER = {"groups": ["sg-other"], "inbound": [{"protocol": "-1", "source": "0.0.0.0/0"}]}
TTL = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    cloud = LocalCloud(tmp_path_factory.mktemp("cloud"))
    cloud.start(slots=8)
    yield cloud
    cloud.clean_up()


def boot(cloud: LocalCloud, token: str, network: dict[str, Any], script: str = WAIT) -> dict[str, Any]:
    machine = cloud.launch(token, user_data=script, network=network)
    return until(lambda: (shown := cloud.show(machine))["agent_pid"] and shown)


@pytest.fixture(scope="module")
def gang(cloud: LocalCloud) -> list[dict[str, Any]]:
    return [boot(cloud, f"gang-{slot}", GANG) for slot in range(2)]


@pytest.fixture(scope="module")
def stranger(cloud: LocalCloud) -> dict[str, Any]:
    return boot(cloud, "stranger", STRANGER)


def test_a_gang_meets_over_its_addresses_and_no_packet_of_a_stranger_gets_through(
    gang: list[dict[str, Any]], stranger: dict[str, Any]
):
    """docs.aws.amazon.com/vpc/latest/userguide/security-group-rules.html"""
    first, second = gang
    assert len({first["address"], second["address"], stranger["address"], "127.0.0.1"}) == 4
    listening, datagrams = sockets_at(first, PORT)
    kept = [knock(stranger, first["address"], PORT, b"of a stranger"), knock(second, first["address"], PORT, b"member")]
    # what the stranger sent before would be here before
    assert datagrams.recvfrom(99)[0] == b"member"
    assert listening.accept()[1][0] == second["address"]
    for each in (datagrams, listening):
        each.setblocking(False)
    with pytest.raises(BlockingIOError):
        datagrams.recvfrom(99)
    with pytest.raises(BlockingIOError):
        listening.accept()
    # the way back is open to answers, and to nothing else
    answered = kept[1][0]
    answered.setblocking(True)
    answered.sendall(b"hello")
    with socket.socket(fileno=sockets_at(stranger, PORT)[1].detach()) as at_stranger:
        knock(first, stranger["address"], PORT, b"its rule lets everybody in")
        assert at_stranger.recvfrom(99)[1][0] == first["address"]


def test_a_stranger_with_the_address_and_routes_of_a_member_gets_nothing_through(
    cloud: LocalCloud, gang: list[dict[str, Any]]
):
    first, second = gang
    _, datagrams = sockets_at(first, PORT + 1)
    changes = {"address": f"addr add {second['address']}/32", "neighbour": f"route add {first['address']}/32"}
    for name, change in changes.items():
        thief = boot(cloud, f"thief-of-{name}", STRANGER)
        with open(f"/proc/{thief['agent_pid']}/ns/net") as network:
            run_inside(network.fileno(), "ip", "-batch", "-", text=f"{change} dev eth0\n")
        source = {"address": second, "neighbour": thief}[name]["address"]
        kept = [knock(thief, first["address"], PORT + 1, b"stolen", source)]
        kept.append(knock(second, first["address"], PORT + 1, name.encode()))
        assert datagrams.recvfrom(99)[0] == name.encode()


def test_each_machine_has_its_own_metadata_at_ec2s_address(gang: list[dict[str, Any]], stranger: dict[str, Any]):
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html"""
    for machine in (*gang, stranger):
        with within(machine), httpx.Client(base_url=f"http://{METADATA_ADDRESS}/latest", trust_env=False) as http:
            token = {"X-aws-ec2-metadata-token": http.put("/api/token", headers=TTL).text}
            address = http.get("/meta-data/local-ipv4", headers=token).text
            assert http.get("/meta-data/instance-id", headers=token).text == machine["id"]
        assert address == machine["address"]


def test_a_machine_reaches_what_listens_at_this_computers_address_for_it_and_not_its_loopback(
    gang: list[dict[str, Any]],
):
    with socket.create_server((COMPUTER, 0)) as here, socket.create_server(("127.0.0.1", 0)) as private:
        with within(gang[0]):
            there = socket.create_connection(here.getsockname(), timeout=servers.PATIENCE_S)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(private.getsockname())
        served, _ = here.accept()
        content = os.urandom(3_000_000)
        served.sendall(content[:1_000])
        assert there.recv(1_000, socket.MSG_WAITALL) == content[:1_000]
        there.shutdown(socket.SHUT_WR)
        assert served.recv(1) == b"", "the end of one direction is told, and the other goes on"
        served.sendall(b"bye")
        served.close()
        assert there.recv(99, socket.MSG_WAITALL) == b"bye"


def test_a_machine_is_reached_at_its_public_address_by_what_its_rules_let_in(
    cloud: LocalCloud, gang: list[dict[str, Any]]
):
    """docs.aws.amazon.com/vpc/latest/userguide/vpc-eips.html"""
    web = {"groups": ["sg-web"], "inbound": [{"protocol": "udp", "source": "0.0.0.0/0", "first_port": PORT}]}
    for token, public in (("earlier", "198.18.0.9"), ("later", "198.18.0.9")):
        server = boot(cloud, token, web)
        address = f"/machines/{server['id']}/address"
        assert cloud.client.post(address, json={"address": public}).status_code == 202
        _, datagrams = sockets_at(server, PORT)
        kept = knock(gang[0], public, PORT, token.encode())
        assert datagrams.recvfrom(99) == (token.encode(), (gang[0]["address"], kept[1].getsockname()[1]))
        cloud.client.delete(f"/machines/{server['id']}", params={"grace_s": 0})
        cloud.wait_until_ended(server)
    refused = cloud.client.post(f"/machines/{gang[0]['id']}/address", json={"address": "10.0.0.1"})
    assert (refused.status_code, refused.json()["code"]) == (400, "bad-request")


def test_a_machine_sees_its_own_processes_and_mounts_and_is_ended_with_all_of_them(cloud: LocalCloud):
    script = (
        "#!/bin/sh\nls -d /proc/[0-9]* | wc -l > seen; mkdir here; mount -t tmpfs none here; : > here/inside\n"
        "trap 'echo told > end; exit' TERM\n(setsid sleep 600 &)\necho up > done; while :; do sleep 0.05; done\n"
    )
    machine = boot(cloud, "processes", GANG, script)
    folder = Path(machine["dir"])
    until((folder / "done").exists)
    assert int((folder / "seen").read_text()) < 6, "of this computer's processes none"
    assert list((folder / "here").iterdir()) == [], "mounted in the machine alone"
    cloud.client.delete(f"/machines/{machine['id']}", params={"grace_s": 2})
    assert cloud.wait_until_ended(machine)["end_cause"] == "requested"
    assert (folder / "end").read_text() == "told\n"
    assert not processes_without_init(folder)


def test_networks_outlive_a_killed_host_and_go_with_their_machines(tmp_path: Path):
    before = namespaces_in_use()
    interfaces = {name for _, name in socket.if_nameindex()}
    cloud = LocalCloud(tmp_path)
    cloud.start()
    first = boot(cloud, "first", GANG)
    cloud.kill_host()
    cloud.start()
    second = boot(cloud, "second", GANG)
    _, datagrams = sockets_at(first, PORT)
    kept = knock(second, first["address"], PORT, b"at the same bridge")
    assert datagrams.recvfrom(99)[0] == b"at the same bridge"
    assert {name for _, name in socket.if_nameindex()} == interfaces
    for each in (datagrams, *kept):
        each.close()
    cloud.kill_host()
    cloud.clean_up()  # each of its processes by SIGKILL
    until(lambda: namespaces_in_use() <= before)
