# SPDX-License-Identifier: Apache-2.0
"""Instances that run: the fake's states follow their machines. Each test names the AWS page whose rule it checks."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest
from botocore.exceptions import ClientError
from shoestring_core.store.objects import Objects, open_objects
from shoestring_core.wheelhouse import Wheelhouse, file_key, manifest_key
from shoestring_core.wire import BootData, WheelhouseReply
from shoestring_worker.fake_ec2.__main__ import BUCKET
from shoestring_worker.providers.ec2.account import wheels
from shoestring_worker.providers.ec2.account.aws import Aws
from shoestring_worker.providers.ec2.account.policies import worker_policy
from shoestring_worker.providers.ec2.account.service_role import make_service_role
from shoestring_worker.providers.ec2.account.steps import Steps
from shoestring_worker.providers.ec2.account.wheelhouse import Place, WheelhouseMaker

from tests.servers import until
from tests.trainer.agent.services import Service
from tests.trainer.machinehost.local_cloud import LocalCloud, processes_without_init
from tests.worker.providers.fake_aws import IMAGE, REGION, ROOT, ZONE, FakeAws, launch_request

STAND_IN_RANKS = ROOT / "tests" / "trainer" / "agent" / "stand_in_ranks.py"
WAIT = "#!/bin/sh\nwhile [ ! -e off ]; do sleep 0.05; done; poweroff\n"
COUNT_BOOTS = f"""#!{sys.executable}
import pathlib, subprocess, time
import boto3
def run(*command):
    return subprocess.run(command, capture_output=True, text=True)
while not (disks := run("lsblk", "--nodeps", "--noheadings", "--paths", "--output", "NAME,SERIAL").stdout.split()):
    time.sleep(0.05)
if run("blkid", "-p", disks[0]).returncode == 2:
    run("mkfs", "-t", "ext4", disks[0])
pathlib.Path("disk").mkdir()
run("mount", disks[0], "disk")
with open("disk/boots", "a") as file:
    file.write(disks[1] + " " + boto3.Session().get_credentials().access_key + "\\n")
run("poweroff")
"""
SPOT = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time"}}


class Cloud:
    """A fake whose instances run on a machine host with two slots."""

    def __init__(self, folder: Path) -> None:
        self.host = LocalCloud(folder)
        self.host.start(slots=2, env={"SHOESTRING_AGENT_RANK_COMMAND": f"{sys.executable} {STAND_IN_RANKS}"})
        self.aws = FakeAws.start("--machinehost", str(folder / "machinehost.json"), settings=folder / "fake.json")

    def run(self, token: str, script: str = WAIT, **changed: Any) -> str:
        arguments = {"ImageId": IMAGE, "InstanceType": "g5.xlarge", "MinCount": 1, "MaxCount": 1, "UserData": script}
        launched = self.aws.ec2().run_instances(ClientToken=token, **arguments | changed)["Instances"]
        return launched[0]["InstanceId"]

    def describe(self, instance: str) -> dict[str, Any]:
        return self.aws.ec2().describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]

    def state(self, instance: str) -> str:
        return self.describe(instance)["State"]["Name"]

    def until_ended(self, instance: str) -> dict[str, Any]:
        until(lambda: self.state(instance) == "terminated")
        return self.describe(instance)

    def folder(self, instance: str) -> Path:
        machines = self.host.client.get("/machines").json()["machines"]
        return Path(next(machine["dir"] for machine in machines if machine["token"] == instance))

    def open_requests(self) -> list[dict[str, Any]]:
        wanted = [{"Name": "state", "Values": ["open", "active"]}]
        return self.aws.ec2().describe_spot_instance_requests(Filters=wanted)["SpotInstanceRequests"]

    def end_all(self) -> None:
        for instance in self.aws.instances():
            self.aws.ec2().terminate_instances(InstanceIds=[instance["InstanceId"]])
        until(lambda: not self.aws.instances(states=("pending", "running", "shutting-down")))


def presigned(objects: Objects, name: str) -> WheelhouseReply:
    """As the API answers."""
    manifest = objects.read(manifest_key(name), 1 << 20)
    files = Wheelhouse.model_validate_json(manifest).files
    urls = [objects.get_url(file_key(file.sha256), int(time.time()) + 60) for file in files]
    return WheelhouseReply(manifest=manifest.decode(), urls=urls)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    yield cloud
    cloud.aws.stop()
    cloud.host.clean_up()


@pytest.fixture
def cloud(running: Cloud) -> Iterator[Cloud]:
    yield running
    running.end_all()


def test_an_instance_is_pending_until_it_boots_and_terminated_once_it_has_powered_itself_off(cloud: Cloud):
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html; API_StateReason.html"""
    instance = cloud.run("off")
    until(lambda: cloud.state(instance) == "running")
    (cloud.folder(instance) / "off").touch()
    ended = cloud.until_ended(instance)
    assert ended["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert ended["StateTransitionReason"].startswith("User initiated (")


def test_an_instance_shuts_down_until_its_last_process_has_ended(cloud: Cloud):
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/terminating-instances.html"""
    instance = cloud.run("stop", "#!/bin/sh\ntrap '' TERM\necho x > up\nwhile :; do sleep 0.05; done\n")
    until(lambda: (cloud.folder(instance) / "up").exists())
    for _ in range(2):
        (answer,) = cloud.aws.ec2().terminate_instances(InstanceIds=[instance])["TerminatingInstances"]
        assert answer["CurrentState"]["Name"] == "shutting-down"
    assert cloud.state(instance) == "shutting-down"
    cloud.host.client.delete(f"/machines/{cloud.folder(instance).name}", params={"grace_s": 0})
    assert cloud.until_ended(instance)["StateReason"]["Code"] == "Client.UserInitiatedShutdown"


def test_an_interrupted_instance_is_told_in_its_metadata_and_leaves_nothing(cloud: Cloud):
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html; spot-request-status.html"""
    instance = cloud.run("spot", InstanceMarketOptions=SPOT)
    request = cloud.describe(instance)["SpotInstanceRequestId"]
    assert [(one["SpotInstanceRequestId"], one["InstanceId"]) for one in cloud.open_requests()] == [(request, instance)]
    assert cloud.aws.read("left")["spot_requests"] == [request]
    cloud.aws.control("rebalance", instance=instance)
    cloud.aws.control("interrupt", instance=instance, notice_s=0.1)
    assert cloud.until_ended(instance)["StateReason"]["Code"] == "Server.SpotInstanceTermination"
    assert cloud.open_requests() == []
    assert cloud.aws.ec2().describe_volumes()["Volumes"] == []
    assert cloud.aws.read("left") == {"instances": [], "volumes": [], "spot_requests": []}


def test_a_volume_outlives_the_instances_that_it_is_attached_to_and_their_role_gives_them_credentials(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
):
    """docs.aws.amazon.com/ebs/latest/userguide/ebs-attaching-volume.html, identify-nvme-ebs-device.html;
    docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html"""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", cloud.aws.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    policy = worker_policy("123456789012", [REGION], "bucket")
    make_service_role(Aws(cloud.aws.url), policy, Steps(lambda _: None))
    volume = cloud.aws.ec2().create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]
    for boot in ("first", "second"):
        instance = cloud.run(boot, COUNT_BOOTS, IamInstanceProfile={"Name": "shoestring-service"})
        until(lambda instance=instance: cloud.state(instance) == "running")
        cloud.aws.ec2().attach_volume(VolumeId=volume, InstanceId=instance, Device="/dev/sdf")
        cloud.until_ended(instance)
        (left,) = cloud.aws.ec2().describe_volumes(VolumeIds=[volume])["Volumes"]
        assert (left["State"], left["Attachments"]) == ("available", [])
    files = list(cloud.host.folder.glob(f"volumes/{volume}/boots"))
    assert files[0].read_text() == f"{volume.replace('-', '')} {cloud.aws.access_key}\n" * 2
    cloud.aws.ec2().delete_volume(VolumeId=volume)
    assert not files[0].exists()


def test_an_address_goes_with_its_instance_only_until_that_ends(cloud: Cloud):
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/working-with-eips.html"""
    ec2, instance = cloud.aws.ec2(), cloud.run("addressed")
    address = ec2.allocate_address(Domain="vpc")["AllocationId"]
    ec2.associate_address(AllocationId=address, InstanceId=instance)
    (cloud.folder(instance) / "off").touch()
    cloud.until_ended(instance)
    (left,) = ec2.describe_addresses(AllocationIds=[address])["Addresses"]
    assert not left.get("AssociationId")
    ec2.release_address(AllocationId=address)


def test_without_room_for_it_an_instance_is_refused_and_its_token_stays_free(cloud: Cloud):
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html: InsufficientInstanceCapacity"""
    first, second = cloud.run("one"), cloud.run("two")
    with pytest.raises(ClientError, match="InsufficientInstanceCapacity"):
        cloud.run("three")
    assert {one["InstanceId"] for one in cloud.aws.instances()} == {first, second}
    (cloud.folder(first) / "off").touch()
    cloud.until_ended(first)
    assert cloud.run("three") not in (first, second)


def test_nobody_without_its_key_has_commands_executed_by_it(cloud: Cloud):
    """No rule of AWS: a client that may launch an instance of this fake runs commands as its user."""
    stranger = cloud.aws.client_with_key("stranger")
    for call in (stranger.describe_instances, lambda: stranger.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)):
        with pytest.raises(ClientError, match="AuthFailure"):
            call()
    assert httpx.get(f"{cloud.aws.url}/_fake/calls").status_code == 401
    assert cloud.aws.settings_file.stat().st_mode & 0o077 == 0


def test_the_settings_that_it_writes_offer_spot_machines_in_every_zone(cloud: Cloud):
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotPriceHistory.html"""
    history = cloud.aws.ec2().describe_spot_price_history(InstanceTypes=["g5.xlarge"])["SpotPriceHistory"]
    assert {price["AvailabilityZone"] for price in history} == set(cloud.aws.written()["regions"][REGION]["subnets"])


def test_a_machine_that_the_provider_launches_boots_trains_and_saves_its_work_before_it_is_interrupted(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
):
    """From RunInstances to the last checkpoint: the real provider, user data, wheelhouse in S3 and agent, whose
    environment has our own packages as wheels and the others from the image; ranks that need no PyTorch."""
    for name, value in {"ACCESS_KEY_ID": cloud.aws.access_key, "SECRET_ACCESS_KEY": "none"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials of other tests
    service = Service()
    boot = BootData(server_url=service.url, machine=service.machine, boot_token=service.boot_token)
    python = "{}.{}".format(*sys.version_info)
    place = Place.read(REGION, f"s3://{BUCKET}/service")
    made = WheelhouseMaker(
        Aws(cloud.aws.url), place, lambda _: None, wheels.OF_MACHINES, python=python, from_image=True
    ).make()
    objects = open_objects(f"s3://{BUCKET}/service", "", "", cloud.aws.url)
    service.wheelhouse = lambda asked: presigned(objects, asked.wheelhouse)
    provider = cloud.aws.provider(settings=cloud.aws.settings(wheelhouse=made.name))
    launched = provider.launch(launch_request(str(service.machine), user_data=boot))
    service.run(1, nproc_per_node=2, steps=10_000)
    until(lambda: len(service.points("train/loss")) > 5)
    assert [(boot.phase, boot.failure) for boot in service.boots] == [
        ("boot", None), ("wheelhouse", None), ("driver", None), ("download", None), ("install", None),
    ]  # fmt: skip
    assert cloud.folder(launched.id).joinpath("environments", made.name, "complete").exists()
    folder = cloud.folder(launched.id)
    cloud.aws.control("interrupt", instance=launched.id)
    assert cloud.until_ended(launched.id)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    (listed,) = [machine for machine in provider.list("us") if machine.id == launched.id]
    assert (listed.state, listed.end_cause, listed.token) == ("ended", "exited", str(service.machine))
    steps = [step for step, _ in service.points("train/loss")]
    assert service.exits(1) == ["drained", "drained"]
    assert service.commits[-1].step == steps[-1] == len(steps)
    assert not processes_without_init(folder)
    service.stop()


@pytest.mark.parametrize(
    ("role", "refused"),
    [
        ("private-data", None),
        ("other-data", r"may not read s3://private/cats, neither .* nor with its role other-data \(.*AccessDenied"),
        (None, r"may not read s3://private/cats \(.*AccessDenied.*SHOESTRING_EC2_DATA_ROLE"),
    ],
)  # fmt: skip
def test_a_private_bucket_is_read_with_the_role_of_the_machine_and_its_ranks_get_nothing_of_it(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, role: str | None, refused: str | None
):
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html; from RunInstances to the
    job's own copy: the real provider, user data and agent."""
    for name, value in {"ACCESS_KEY_ID": cloud.aws.access_key, "SECRET_ACCESS_KEY": "none"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3 = cloud.aws.s3()
    s3.create_bucket(Bucket="private")
    s3.put_object(Bucket="private", Key="cats/a.jpg", Body=b"a cat")
    if role:
        cloud.aws.make_data_role(role, role.removesuffix("-data"))
    service = Service()
    boot = BootData(server_url=service.url, machine=service.machine, boot_token=service.boot_token)
    provider = cloud.aws.provider(settings=cloud.aws.settings(python=sys.executable))
    launched = provider.launch(launch_request(str(service.machine), user_data=boot, data_role=role))
    service.run(1, nproc_per_node=1, data="s3://private/cats", steps=10_000)
    if refused:
        until(lambda: service.exits(1))
        assert re.search(refused, str(service.members[-1].exits[0].message))
        assert service.members[-1].exits[0].kind == "data"
        return service.stop()
    until(lambda: len(service.points("train/loss")) > 5)
    (copied,) = cloud.folder(launched.id).glob("scratch/*/private/cats/a.jpg")
    assert copied.read_bytes() == b"a cat"
    assert cloud.describe(launched.id)["IamInstanceProfile"]["Arn"].endswith("/private-data")
    generation = str(cloud.folder(launched.id) / "gen" / "1")
    ranks = [one for one in psutil.process_iter(["cmdline"]) if generation in str(one.info["cmdline"])]
    assert ranks
    assert not [name for one in ranks for name in one.environ() if "METADATA" in name or "AGENT_AWS" in name]
    return service.stop()
