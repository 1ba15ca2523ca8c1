# SPDX-License-Identifier: Apache-2.0
"""The service in the account: one small machine that runs `up`, on a volume and at an address that stay.

Everything carries its tag from birth on, and the machine's idempotency token is on the volume before it is launched: so
a run that was stopped halfway is continued, and never launches a second machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from shoestring_worker.providers.ec2.account import inventory, policies
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.clock import Clock
from shoestring_worker.providers.ec2.account.data_role import find_data_role
from shoestring_worker.providers.ec2.account.ownership import (
    SERVICE,
    bucket_name,
    of_service,
    service_tags,
    tag_specifications,
)
from shoestring_worker.providers.ec2.account.service_environment import choose_zone, describe_image, make_wheelhouse
from shoestring_worker.providers.ec2.account.service_launch import (
    TYPE,
    VOLUME_GIB,
    Parts,
    Place,
    Wanted,
    launch_arguments,
)
from shoestring_worker.providers.ec2.account.service_login import read_login
from shoestring_worker.providers.ec2.account.service_role import make_service_role
from shoestring_worker.providers.ec2.account.steps import Steps
from shoestring_worker.providers.ec2.service_boot import ServiceLogin

DEVICE = "/dev/sdf"
LAUNCH_TAG = "shoestring-launch"
"""On the volume: the idempotency token of the machine that has it, or is to get it."""
ALIVE = {"Name": "instance-state-name", "Values": ["pending", "running"]}
USABLE = {"Name": "status", "Values": ["creating", "available", "in-use"]}
"""Of volumes: EC2 lists one for some time after it was deleted."""
NOT_ENDED = {"Name": "instance-state-name", "Values": ["pending", "running", "shutting-down", "stopping", "stopped"]}
ENDED = {"Name": "instance-state-name", "Values": ["shutting-down", "terminated"]}
RUNNING_S, READY_S, END_S, LISTED_S, PAUSE_S = 300.0, 600.0, 300.0, 60.0, 2.0
PROFILE_S = 60.0
"""How long a new instance profile may be unknown to EC2: docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html."""


class ServiceInAccount:
    """`up` and `down` of it. Raises AwsError."""

    def __init__(self, aws: Aws, wanted: Wanted, report: Callable[[str], None], clock: Clock | None = None) -> None:
        self._aws, self._wanted, self._steps, self._clock = aws, wanted, Steps(report), clock or Clock()
        self._region = next(iter(wanted.settings.regions))
        self._chosen = wanted.settings.regions[self._region]
        self._account = aws.account()
        self._bucket = bucket_name(self._account, self._region)
        self._place = Place(self._region, self._bucket)

    def up(self) -> ServiceLogin:
        """Make what is missing, and wait until the service runs."""
        self._require_bucket()
        make_service_role(self._aws, self._policy(), self._steps)
        address, volume = self._address(), self._volume()
        machine = self._machine(address, volume, self._group(volume["AvailabilityZone"]))
        self._attach(machine["InstanceId"], address, volume)
        return self._wait_for_login(machine["InstanceId"], machine["ClientToken"])

    def down(self) -> list[str]:
        """End the machine, whose id is returned. Volume and address stay."""
        ids = [machine["InstanceId"] for machine in self._machines(NOT_ENDED)]
        if ids:
            self._end(ids)
        else:
            self._steps.say("It does not run.")
        for volume in self._volumes():
            if any(tag["Key"] == LAUNCH_TAG for tag in volume["Tags"]):
                self._write("delete_tags", Resources=[volume["VolumeId"]], Tags=[{"Key": LAUNCH_TAG}])
        return ids

    def _end(self, ids: list[str]) -> None:
        self._write("terminate_instances", InstanceIds=ids)
        deadline = self._clock.monotonic() + END_S
        while self._machines(NOT_ENDED):
            if self._clock.monotonic() > deadline:
                raise AwsError(f"{', '.join(ids)} has not ended within {END_S:.0f} s. Run this again in some minutes.")
            self._clock.sleep(PAUSE_S)
        self._steps.say(f"ended     {', '.join(ids)}; its volume and its address stay: `aws up` goes on with them")
        self._tell_of_jobs()

    def _tell_of_jobs(self) -> None:
        """What of them still runs, in the regions that can be listed."""
        jobs, silent = list[inventory.Thing](), list[str]()
        for region in self._wanted.settings.regions:
            try:
                jobs += inventory.machines(self._aws, region)
            except AwsError as error:
                silent.append(f"Machines of jobs may still run in {region}, which can't be listed: {error}")
        for sentence in silent:
            self._steps.say(sentence)
        if left := [one for one in jobs if one.deployment and one.kind == "machine"]:
            self._steps.say(
                f"{inventory.count(left)} of jobs still run: they save a checkpoint and power off when their funding "
                "lease ends, within minutes. To end them now: shoestring aws panic"
            )

    def _require_bucket(self) -> None:
        buckets = self._aws.read("s3", self._region, "list_buckets")["Buckets"]
        if not any(each["Name"] == self._bucket for each in buckets):
            raise AwsError(
                f"There is no bucket {self._bucket}. Run first: shoestring aws bootstrap --region {self._region}"
            )

    def _policy(self) -> dict[str, Any]:
        settings = self._wanted.settings
        role = find_data_role(self._aws, settings.data_role)
        return policies.worker_policy(self._account, list(settings.regions), self._bucket, role)

    def _address(self) -> dict[str, Any]:
        def find() -> dict[str, Any] | None:
            return next(iter(self._read("describe_addresses", Filters=of_service())["Addresses"]), None)

        found = find()
        self._steps.ensure(
            "address of the service",
            found["PublicIp"] if found else None,
            lambda: self._write("allocate_address", Domain="vpc", TagSpecifications=service_tags("elastic-ip"))[
                "PublicIp"
            ],
        )
        return found or self._wait_for(find, "address")

    def _volume(self) -> dict[str, Any]:
        def find() -> dict[str, Any] | None:
            return min(self._volumes(), key=lambda volume: str(volume["VolumeId"]), default=None)

        found = find()
        self._steps.ensure(
            f"volume of {VOLUME_GIB} GiB, encrypted, for the service's data",
            found["VolumeId"] if found else None,
            lambda: self._write(
                "create_volume", AvailabilityZone=choose_zone(self._aws, self._region, self._chosen.subnets),
                Size=VOLUME_GIB, VolumeType="gp3", Encrypted=True,
                TagSpecifications=service_tags("volume"),
            )["VolumeId"],
        )  # fmt: skip
        return found or self._wait_for(find, "volume")

    def _group(self, zone: str) -> str:
        subnets = self._read("describe_subnets", SubnetIds=[self._subnet(zone)])["Subnets"]
        vpc, port = subnets[0]["VpcId"], self._wanted.port
        named = [{"Name": "group-name", "Values": [SERVICE]}, {"Name": "vpc-id", "Values": [vpc]}]
        groups = self._read("describe_security_groups", Filters=named)["SecurityGroups"]
        group = self._steps.ensure(
            f"security group {SERVICE}",
            groups[0]["GroupId"] if groups else None,
            lambda: self._write(
                "create_security_group", GroupName=SERVICE, VpcId=vpc, Description="The service of shoestring",
                TagSpecifications=tag_specifications("security-group", SERVICE),
            )["GroupId"],
        )  # fmt: skip
        rule = [{"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
        opened = [each for one in groups for each in one["IpPermissions"] if each.get("FromPort") == port]
        self._steps.ensure(
            f"its rule: port {port} from everywhere, as machines and people reach it by TLS",
            group if opened else None,
            lambda: self._write("authorize_security_group_ingress", GroupId=group, IpPermissions=rule) and group,
        )
        return str(group)

    def _machine(self, address: dict[str, Any], volume: dict[str, Any], group: str) -> dict[str, Any]:
        """The machine that runs, or a new one."""
        what, running = f"machine ({TYPE})", self._machines(ALIVE)
        if running:
            self._steps.ensure(what, running[0]["InstanceId"], lambda: "")
            return running[0]
        tags = {tag["Key"]: tag["Value"] for tag in volume.get("Tags", [])}
        where = (self._aws, self._region)
        parts = Parts(
            address, volume, self._subnet(volume["AvailabilityZone"]), group, describe_image(*where, self._wanted),
            make_wheelhouse(*where, self._bucket, self._wanted, self._steps.report),
        )  # fmt: skip
        launched: dict[str, Any] = {}

        def launch() -> str:
            token = tags.get(LAUNCH_TAG) or self._new_token(volume)
            try:
                launched.update(self._launch(token, parts))
            except AwsError as error:
                if error.code == "IdempotentParameterMismatch" and not self._has_ended(token):
                    raise AwsError(
                        "A run that was stopped has asked for a machine with other settings. Wait a minute and run "
                        "this again; or run first: shoestring aws down"
                    ) from error
                if error.code not in ("IdempotentInstanceTerminated", "IdempotentParameterMismatch"):
                    raise
                token = self._new_token(volume)
                launched.update(self._launch(token, parts))
            return str(launched["InstanceId"])

        self._steps.ensure(what, None, launch)
        return launched

    def _launch(self, token: str, parts: Parts) -> dict[str, Any]:
        """Launch with this token; repeated, until EC2 knows the new instance profile."""
        arguments = launch_arguments(self._wanted, self._place, token, parts)
        deadline = self._clock.monotonic() + PROFILE_S
        while True:
            try:
                launched: dict[str, Any] = self._write("run_instances", **arguments)["Instances"][0]
            except AwsError as error:
                unknown_yet = error.code == "InvalidParameterValue" and "iamInstanceProfile" in str(error)
                if not unknown_yet or self._clock.monotonic() > deadline:
                    raise
                self._clock.sleep(PAUSE_S)
            else:
                return {**launched, "ClientToken": token}

    def _new_token(self, volume: dict[str, Any]) -> str:
        token = str(uuid4())
        self._write("create_tags", Resources=[volume["VolumeId"]], Tags=[{"Key": LAUNCH_TAG, "Value": token}])
        return token

    def _attach(self, machine: str, address: dict[str, Any], volume: dict[str, Any]) -> None:
        """Volume and address to the machine, once it runs."""
        self._until(RUNNING_S, lambda: self._state(machine) == "running", machine, "is not running")
        there = any(each["InstanceId"] == machine for each in volume.get("Attachments", []))
        id_ = volume["VolumeId"]
        if not there:  # it may still be with a machine that ends
            self._until(
                END_S, lambda: self._volume_is_free(id_), machine, f"can't get {id_}, which is attached elsewhere"
            )
        self._steps.ensure(
            "the volume attached to it",
            machine if there else None,
            lambda: self._write("attach_volume", VolumeId=id_, InstanceId=machine, Device=DEVICE) and machine,
        )
        self._steps.ensure(
            "the address with it",
            machine if address.get("InstanceId") == machine else None,
            lambda: self._write(
                "associate_address", AllocationId=address["AllocationId"], InstanceId=machine, AllowReassociation=True
            ) and machine,
        )  # fmt: skip

    def _wait_for_login(self, machine: str, token: str) -> ServiceLogin:
        self._steps.say("waiting   for the service to start, which takes some minutes")
        found: list[ServiceLogin] = []

        def look() -> bool:
            login = read_login(self._aws, self._region, self._bucket)
            if login is not None and login.launch == token:
                if login.state == "failed":
                    raise AwsError(f"The service did not start on {machine}, which powers itself off: {login.problem}")
                found.append(login)
            return bool(found and found[-1].code)

        self._until(READY_S, look, machine, "runs, but the service left no login")
        return found[-1]

    def _until(self, patience_s: float, done: Callable[[], bool], machine: str, problem: str) -> None:
        deadline = self._clock.monotonic() + patience_s
        while not done():
            if (state := self._state(machine)) not in ("pending", "running"):
                raise AwsError(
                    f"{machine} is {state} before the service ran. Run: aws down, then aws up. Its log says why: "
                    f"aws ec2 get-console-output --latest --region {self._region} --instance-id {machine}"
                )
            if self._clock.monotonic() > deadline:
                raise AwsError(f"{machine} {problem} within {patience_s:.0f} s. Run again: aws down, then aws up")
            self._clock.sleep(PAUSE_S)

    def _state(self, machine: str) -> str:
        try:
            reservations = self._read("describe_instances", InstanceIds=[machine])["Reservations"]
        except AwsError as error:
            if error.code == "InvalidInstanceID.NotFound":  # just launched, and not visible everywhere yet
                return "pending"
            raise
        return str(reservations[0]["Instances"][0]["State"]["Name"]) if reservations else "pending"

    def _volume_is_free(self, volume: str) -> bool:
        return bool(self._read("describe_volumes", VolumeIds=[volume])["Volumes"][0]["State"] == "available")

    def _machines(self, in_states: dict[str, Any]) -> list[dict[str, Any]]:
        filters = [*of_service(), in_states]
        reservations = self._aws.read_all("ec2", self._region, "describe_instances", "Reservations", Filters=filters)
        return [machine for reservation in reservations for machine in reservation["Instances"]]

    def _subnet(self, zone: str) -> str:
        if (subnet := self._chosen.subnets.get(zone)) is None:
            raise AwsError(f"The service's volume is in {zone}, for which SHOESTRING_EC2_REGIONS has no subnet.")
        return subnet

    def _has_ended(self, token: str) -> bool:
        """Whether the machine of a token is known to have ended."""
        return any(machine["ClientToken"] == token for machine in self._machines(ENDED))

    def _volumes(self) -> list[dict[str, Any]]:
        return self._aws.read_all("ec2", self._region, "describe_volumes", "Volumes", Filters=[*of_service(), USABLE])

    def _wait_for(self, find: Callable[[], dict[str, Any] | None], what: str) -> dict[str, Any]:
        """What was just made: EC2 may list it some seconds later."""
        deadline = self._clock.monotonic() + LISTED_S
        while (found := find()) is None:
            if self._clock.monotonic() > deadline:
                raise AwsError(f"EC2 does not list the service's {what} yet. Run this again in a minute.")
            self._clock.sleep(PAUSE_S)
        return found

    def _read(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self._aws.read("ec2", self._region, method, **arguments)

    def _write(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self._aws.write("ec2", self._region, method, **arguments)
