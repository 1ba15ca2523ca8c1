# SPDX-License-Identifier: Apache-2.0
"""`shoestring aws up` and `down` against the fake's tables, wherever they are stopped, and what the machine runs."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shoestring_core.tls import find_authority
from shoestring_core.wheelhouse import Wheelhouse
from shoestring_worker.fake_ec2.machines import DISKS
from shoestring_worker.providers.ec2 import service_machine, user_data
from shoestring_worker.providers.ec2.account import panic, wheels
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.bootstrap import Made
from shoestring_worker.providers.ec2.account.clock import Clock
from shoestring_worker.providers.ec2.account.ownership import bucket_name
from shoestring_worker.providers.ec2.account.service import ServiceInAccount
from shoestring_worker.providers.ec2.account.service_launch import Wanted
from shoestring_worker.providers.ec2.service_boot import LOGIN_KEY, ServiceBoot, ServiceLogin
from shoestring_worker.providers.ec2.service_machine import BootFailed
from shoestring_worker.providers.ec2.settings import Ec2Settings

from tests.worker.providers.ec2.test_account import (
    account_of,
    changes,
    killed_again_and_again,
    run_bootstrap,
    run_teardown,
    silent,
    tables,
)
from tests.worker.providers.ec2.test_user_data import arguments_of
from tests.worker.providers.fake_aws import IMAGE, OTHER_REGION, REGION, UBUNTU_IMAGE, ZONE, FakeAws, launch_request

SERVICE = [{"Name": "tag:Name", "Values": ["shoestring-service"]}]


class Operator:
    """Somebody at a terminal, and a machine that leaves a login while they wait."""

    def __init__(self, aws: FakeAws, made: Made) -> None:
        self.aws, self.made, self.told = aws, made, list[str]()
        self.answer = {"state": "running", "url": "https://127.0.0.1:8443", "ca": "PEM", "code": "once"}
        self.budget, self.image, self._now = "25", IMAGE, 0.0
        self.chosen: dict[str, str] = {}
        """Settings in the environment, by name without their prefix."""

    def service(self, account: Aws) -> ServiceInAccount:
        given = {"regions": self.made.settings, "endpoint_url": self.aws.url}
        settings = Ec2Settings.model_validate(given | {name.lower(): value for name, value in self.chosen.items()})
        environment = {"AWS_SECRET_ACCESS_KEY": "secret", "SHOESTRING_KEY": "secret", "SHOESTRING_EC2_MAX_PRICE": "1.5"}
        environment |= {f"SHOESTRING_EC2_{name}": value for name, value in self.chosen.items()}
        wanted = Wanted(settings, environment, self.budget, self.image, has_ours=bool(self.image), from_image=True)
        return ServiceInAccount(account, wanted, self.told.append, Clock(lambda: self._now, self.wait))

    def up(self, account: Aws) -> ServiceLogin:
        return self.service(account).up()

    def down(self, account: Aws) -> None:
        self.service(account).down()

    def wait(self, seconds: float) -> None:
        """Time goes by a hundred times as fast as they think."""
        self._now += 100 * seconds
        for machine in self.machines():
            login = ServiceLogin(launch=machine["ClientToken"], **self.answer)
            self.aws.s3().put_object(Bucket=self.made.bucket, Key=LOGIN_KEY, Body=login.model_dump_json().encode())

    def machines(self) -> list[dict[str, Any]]:
        reservations = self.aws.ec2().describe_instances(Filters=SERVICE)["Reservations"]
        machines = [machine for reservation in reservations for machine in reservation["Instances"]]
        return [machine for machine in machines if machine["State"]["Name"] == "running"]

    def volumes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.aws.ec2().describe_volumes(Filters=SERVICE)["Volumes"]
        return found

    def addresses(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.aws.ec2().describe_addresses(Filters=SERVICE)["Addresses"]
        return found


@pytest.fixture
def operator(aws: FakeAws) -> Operator:
    """With what it needs of what bootstrap makes: a subnet, a bucket."""
    regions = {REGION: {"image": IMAGE, "subnets": {ZONE: aws.subnet()}}}
    made = Made(bucket=bucket_name("123456789012", REGION), settings=regions)
    aws.s3().create_bucket(Bucket=made.bucket)
    return Operator(aws, made)


def test_from_bootstrap_to_a_job_s_machine_and_a_service_that_is_stopped_and_goes_on_teardown_leaves_nothing(
    aws: FakeAws,
):
    before, account = tables(aws), account_of(aws.url)
    made = run_bootstrap(account)
    settings = Ec2Settings.model_validate({"regions": made.settings, "endpoint_url": aws.url})
    aws.provider(settings=settings).launch(launch_request())
    aws.s3().put_object(Bucket=made.bucket, Key="service/checkpoint", Body=b"weights")
    (instance,) = aws.instances()
    assert instance["SubnetId"] == made.settings[REGION]["subnets"][ZONE]
    asked = aws.calls("RunInstances")[0]["parameters"]  # moto forgets the groups of interfaces
    assert [asked["NetworkInterface.1.SecurityGroupId.1"]] == made.settings[REGION]["security_groups"]
    operator = Operator(aws, made)
    login = operator.up(account)
    (first,), (volume,), (address,) = operator.machines(), operator.volumes(), operator.addresses()
    assert (login.code, login.launch) == ("once", first["ClientToken"])
    assert volume["Attachments"][0]["InstanceId"] == address["InstanceId"] == first["InstanceId"]
    assert volume["Encrypted"]
    operator.down(account)
    assert operator.machines() == []
    assert [one["State"] for one in operator.volumes()] == ["available"]
    operator.up(account)
    (second,), (kept,), (same,) = operator.machines(), operator.volumes(), operator.addresses()
    assert second["InstanceId"] != first["InstanceId"]
    assert (kept["VolumeId"], same["PublicIp"]) == (volume["VolumeId"], address["PublicIp"])
    assert kept["Attachments"][0]["InstanceId"] == second["InstanceId"]
    run_teardown(account)
    assert tables(aws) == before


WITHOUT_T3 = "us-east-1e"
"""A real one, in the table of types and zones that moto has from EC2."""


def test_a_volume_from_a_backup_takes_the_place_of_one_that_lost_its_tag_as_the_guide_says(
    operator: Operator, aws: FakeAws
):
    account, ec2 = account_of(aws.url), aws.ec2()
    operator.up(account)
    (old,) = operator.volumes()
    operator.down(account)
    snapshot = ec2.create_snapshot(VolumeId=old["VolumeId"])["SnapshotId"]
    ec2.delete_tags(Resources=[old["VolumeId"]], Tags=[{"Key": "shoestring-account"}])
    tags = [{"Key": "shoestring-account", "Value": "service"}, {"Key": "Name", "Value": "shoestring-service"}]
    restored = ec2.create_volume(
        SnapshotId=snapshot, AvailabilityZone=old["AvailabilityZone"], VolumeType="gp3",
        TagSpecifications=[{"ResourceType": "volume", "Tags": tags}],
    )["VolumeId"]  # fmt: skip
    operator.up(account)
    (machine,) = operator.machines()
    attached = {one["VolumeId"]: [to["InstanceId"] for to in one["Attachments"]] for one in operator.volumes()}
    assert attached == {old["VolumeId"]: [], restored: [machine["InstanceId"]]}


def test_the_service_is_in_a_zone_that_has_its_type_of_machine(aws: FakeAws, operator: Operator):
    subnets = operator.made.settings[REGION]["subnets"]
    operator.made.settings[REGION]["subnets"] = {WITHOUT_T3: aws.subnet(WITHOUT_T3)}
    with pytest.raises(AwsError, match=r"has t3\.small, on .* Add a subnet in one of: us-east-1a, us-east-1b"):
        operator.up(account_of(aws.url))
    assert operator.volumes() == []
    operator.made.settings[REGION]["subnets"] |= subnets
    operator.up(account_of(aws.url))
    assert [volume["AvailabilityZone"] for volume in operator.volumes()] == [ZONE]


def test_run_twice_neither_up_nor_down_changes_anything(aws: FakeAws, operator: Operator):
    account = account_of(aws.url)
    for verb in (operator.up, operator.down):
        verb(account)
        calls = changes(aws)
        verb(account)
        assert changes(aws) == calls


def test_killed_after_each_of_its_calls_and_run_again_up_launches_one_machine(aws: FakeAws, operator: Operator):
    assert killed_again_and_again(operator.up, aws.url) == 12
    assert [len(found()) for found in (operator.machines, operator.volumes, operator.addresses)] == [1, 1, 1]
    assert killed_again_and_again(operator.down, aws.url) == 2
    assert [len(found()) for found in (operator.machines, operator.volumes, operator.addresses)] == [0, 1, 1]
    assert killed_again_and_again(operator.up, aws.url) == 4
    assert [len(found()) for found in (operator.machines, operator.volumes, operator.addresses)] == [1, 1, 1]


def test_a_region_of_jobs_that_can_not_be_listed_is_told_when_the_service_ends(aws: FakeAws, operator: Operator):
    operator.up(account_of(aws.url))
    operator.made.settings[OTHER_REGION] = {"image": IMAGE, "subnets": {f"{OTHER_REGION}a": "subnet-00000000"}}
    aws.fault("error", "DescribeInstances", region=OTHER_REGION, code="OptInRequired", status=403, times=9)
    operator.down(account_of(aws.url))
    assert operator.machines() == []
    assert any(f"may still run in {OTHER_REGION}, which can't be listed: " in line for line in operator.told)


def test_a_launch_whose_answer_is_lost_is_found_by_its_token(aws: FakeAws, operator: Operator):
    aws.fault("lost_reply")
    with pytest.raises(AwsError, match="did not answer RunInstances"):
        operator.up(account_of(aws.url))
    operator.up(account_of(aws.url))
    assert len(operator.machines()) == 1


def test_other_settings_never_launch_a_second_machine_beside_one_that_is_not_listed_yet(
    aws: FakeAws, operator: Operator
):
    aws.fault("lost_reply")
    with pytest.raises(AwsError):
        operator.up(account_of(aws.url))
    (machine,) = operator.machines()
    aws.ec2().create_tags(Resources=[machine["InstanceId"]], Tags=[{"Key": "Name", "Value": "not listed yet"}])
    operator.budget = "30"
    with pytest.raises(AwsError, match="with other settings"):
        operator.up(account_of(aws.url))
    assert len(aws.instances()) == 1
    aws.ec2().terminate_instances(InstanceIds=[machine["InstanceId"]])
    operator.down(account_of(aws.url))
    operator.up(account_of(aws.url))
    assert len(operator.machines()) == 1


def test_the_user_data_has_the_settings_and_no_secret_and_the_machine_a_role_and_one_open_port(
    aws: FakeAws, operator: Operator
):
    operator.chosen["TAGS"] = "cost-centre=4711"
    operator.up(account_of(aws.url))
    (machine,) = operator.machines()
    assert {"Key": "cost-centre", "Value": "4711"} in machine["Tags"]
    asked = aws.calls("RunInstances")[0]["parameters"]
    text = base64.b64decode(asked["UserData"]).decode()
    assert len(text.encode()) <= user_data.MAX_BYTES
    assert "secret" not in text
    boot = boot_of(text)
    assert boot.environment["SHOESTRING_EC2_MAX_PRICE"] == "1.5"
    assert boot.environment["SHOESTRING_EC2_TAGS"] == "cost-centre=4711", "of its jobs' machines"
    assert boot.environment["SHOESTRING_OBJECT_STORE"] == f"s3://{operator.made.bucket}/service"
    assert boot.url == f"https://{operator.addresses()[0]['PublicIp']}:8443"
    assert 0.02 < float(boot.hosting["hourly_usd"]) < 0.05
    assert asked["IamInstanceProfile.Name"] == "shoestring-service"
    assert asked["MetadataOptions.HttpTokens"] == "required"
    assert asked["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert asked["CreditSpecification.CpuCredits"] == "standard"
    named = [{"Name": "group-name", "Values": ["shoestring-service"]}]
    (group,) = aws.ec2().describe_security_groups(Filters=named)["SecurityGroups"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in group["IpPermissions"]] == [(8443, 8443)]


def test_the_service_may_pass_the_role_for_data_only_once_it_is_set_and_teardown_leaves_that_role(
    aws: FakeAws, operator: Operator
):
    role, account = aws.make_data_role("training-data", "images"), account_of(aws.url)
    asked = ("iam", REGION, "get_role_policy")
    operator.up(account)

    def passed() -> list[Any]:
        policy = account.read(*asked, RoleName="shoestring-service", PolicyName="service")["PolicyDocument"]
        return [one["Resource"] for one in policy["Statement"] if "iam:PassRole" in one["Action"]]

    assert passed() == []
    operator.down(account)
    operator.chosen = {"DATA_ROLE": "training-data"}
    operator.up(account)
    assert passed() == [[role]]
    boot = boot_of(base64.b64decode(aws.calls("RunInstances")[-1]["parameters"]["UserData"]).decode())
    assert boot.environment["SHOESTRING_EC2_DATA_ROLE"] == "training-data"
    operator.chosen = {"DATA_ROLE": "trainig-data"}
    with pytest.raises(AwsError, match="The account has no instance profile trainig-data"):
        operator.up(account)
    run_teardown(account)
    assert account.read("iam", REGION, "get_role", RoleName="training-data")["Role"]["Arn"] == role


def boot_of(text: str) -> ServiceBoot:
    """In its user data."""
    return ServiceBoot.model_validate(arguments_of(text)["boot"])


def test_without_an_image_the_machine_boots_ubuntu_and_installs_this_installation_from_the_bucket(
    aws: FakeAws, operator: Operator
):
    operator.image = ""
    operator.up(account_of(aws.url))
    asked = aws.calls("RunInstances")[0]["parameters"]
    assert (asked["ImageId"], asked["BlockDeviceMapping.1.DeviceName"]) == (UBUNTU_IMAGE, "/dev/sda1")
    text = base64.b64decode(asked["UserData"]).decode()
    assert len(text.encode()) <= user_data.MAX_BYTES
    keys = arguments_of(text)["wheelhouse"]
    stored = aws.s3().get_object(Bucket=operator.made.bucket, Key=keys["manifest"])["Body"].read()
    manifest = Wheelhouse.model_validate_json(stored)
    assert (manifest.name, manifest.min_driver) == (keys["name"], 0)
    assert [file.name.partition("-")[0] for file in manifest.files] == sorted(wheels.OURS.values())
    for file in manifest.files:
        aws.s3().head_object(Bucket=operator.made.bucket, Key=keys["files"] + file.sha256)


def test_what_keeps_a_service_from_running_is_told(aws: FakeAws, operator: Operator):
    account = account_of(aws.url)
    operator.answer = {"state": "failed", "problem": "the disk is full"}
    with pytest.raises(AwsError, match=r"did not start on i-.*: the disk is full"):
        operator.up(account)
    (machine,) = operator.machines()
    aws.s3().delete_object(Bucket=operator.made.bucket, Key=LOGIN_KEY)
    operator.answer = {"state": "running", "url": "https://127.0.0.1:8443"}
    with pytest.raises(AwsError, match="left no login within 600 s"):
        operator.up(account)
    operator.wait = lambda _: aws.ec2().terminate_instances(InstanceIds=[machine["InstanceId"]])  # type: ignore[method-assign]
    with pytest.raises(AwsError, match=r"is terminated before the service ran.*get-console-output"):
        operator.up(account)


def test_without_bootstrap_it_says_what_to_run_and_changes_nothing(aws: FakeAws, operator: Operator):
    aws.s3().delete_bucket(Bucket=operator.made.bucket)
    calls = changes(aws)
    with pytest.raises(AwsError, match="Run first: shoestring aws bootstrap"):
        operator.up(account_of(aws.url))
    assert changes(aws) == calls


def test_panic_ends_the_service_s_machine_and_keeps_its_data(aws: FakeAws, operator: Operator):
    account = account_of(aws.url)
    operator.up(account)
    (result,) = panic.end_everything(
        account, panic.find_everything(account, [REGION], None), None, silent, sleep=lambda _: None
    )
    assert (result.left, operator.machines(), len(operator.volumes())) == ([], [], 1)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """The commands of a machine: those of the fake, or others."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def write(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(script.format(attached=tmp_path / "attached"))
        path.chmod(0o700)

    for name, script in DISKS.items():
        write(name, script)
    return write


def test_a_blank_volume_is_formatted_once_and_its_files_stay(tmp_path: Path, commands: Callable[[str, str], None]):
    (tmp_path / "volume").mkdir()

    def attach(_seconds: float) -> None:
        (tmp_path / "attached").mkdir()
        (tmp_path / "attached" / "vol0a").symlink_to(tmp_path / "volume")

    service_machine.mount_volume("vol-0a", tmp_path / "first", sleep=attach)
    (tmp_path / "first" / "data").write_text("kept")
    commands("mkfs", "#!/bin/sh\nexit 1\n")
    service_machine.mount_volume("vol-0a", tmp_path / "second")
    assert (tmp_path / "second" / "data").read_text() == "kept"
    commands("blkid", "#!/bin/sh\necho no such device >&2; exit 4\n")
    with pytest.raises(BootFailed, match="can't be examined: blkid: no such device"):
        service_machine.mount_volume("vol-0a", tmp_path / "third")
    now = iter(range(0, 10_000, 200))
    with pytest.raises(BootFailed, match="vol-0b was not attached within 300 s"):
        service_machine.mount_volume("vol-0b", tmp_path / "f", lambda: float(next(now)), lambda _: None)


def test_its_certificate_is_for_its_address_is_kept_and_is_renewed_before_it_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = service_machine.ensure_certificate(tmp_path, "203.0.113.7")
    certificate = made[0].read_text()
    assert find_authority(*made, "203.0.113.7", "") == certificate
    assert made[1].stat().st_mode & 0o077 == 0
    service_machine.ensure_certificate(tmp_path, "203.0.113.7")
    assert made[0].read_text() == certificate
    monkeypatch.setattr(service_machine, "RENEWED_BEFORE_DAYS", 900)
    service_machine.ensure_certificate(tmp_path, "203.0.113.7")
    assert made[0].read_text() != certificate
