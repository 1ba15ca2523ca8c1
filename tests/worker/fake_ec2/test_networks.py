# SPDX-License-Identifier: Apache-2.0
"""Instances with networks of their own: their security groups decide who reaches whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from shoestring_core.machine_network import COMPUTER

from tests.trainer.machinehost.local_cloud import LocalCloud, until
from tests.trainer.machinehost.own_networks import WAIT, knock, needs_networks, sockets_at
from tests.worker.providers.fake_aws import IMAGE, FakeAws

pytestmark = needs_networks
PORT = 29_500


@dataclass
class Cloud:
    host: LocalCloud
    aws: FakeAws


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    host = LocalCloud(tmp_path)
    host.start()
    options = ("--host", COMPUTER, "--network", "own", "--machinehost", str(tmp_path / "machinehost.json"))
    aws = FakeAws.start(*options, settings=tmp_path / "fake.json")
    yield Cloud(host, aws)
    aws.stop()
    host.clean_up()


def launch(cloud: Cloud, token: str, *groups: str) -> dict[str, Any]:
    """Its machine."""
    ec2 = cloud.aws.ec2()
    arguments = {"ImageId": IMAGE, "InstanceType": "g5.xlarge", "MinCount": 1, "MaxCount": 1, "UserData": WAIT}
    (launched,) = ec2.run_instances(ClientToken=token, SecurityGroupIds=list(groups), **arguments)["Instances"]
    instance = launched["InstanceId"]

    def machine() -> dict[str, Any] | None:
        machines = cloud.host.client.get("/machines").json()["machines"]
        return next((each for each in machines if each["token"] == instance and each["agent_pid"]), None)

    found = until(machine)
    described = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    assert described["PrivateIpAddress"] == found["address"]
    return found


def test_members_of_the_default_group_meet_and_others_need_a_rule(cloud: Cloud):
    """docs.aws.amazon.com/vpc/latest/userguide/default-security-group.html, security-group-rules.html"""
    ec2 = cloud.aws.ec2()
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    web = ec2.create_security_group(GroupName="web", Description="web", VpcId=vpc)["GroupId"]
    anywhere = {"FromPort": PORT, "ToPort": PORT, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[anywhere])
    first, second, server = launch(cloud, "first"), launch(cloud, "second"), launch(cloud, "server", web)
    _, datagrams = sockets_at(first, PORT)
    knock(server, first["address"], PORT, b"of another group")
    knock(second, first["address"], PORT, b"of its own")
    assert datagrams.recvfrom(99)[0] == b"of its own"
    listening, datagrams = sockets_at(server, PORT)
    kept = knock(first, server["address"], PORT, b"no rule lets UDP in")
    assert listening.accept()[1][0] == first["address"]
    datagrams.setblocking(False)
    with pytest.raises(BlockingIOError):
        datagrams.recvfrom(99)
    del kept
