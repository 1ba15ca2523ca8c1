# SPDX-License-Identifier: Apache-2.0
"""The RunInstances request of the service's own machine, with its user data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoestring_core.decide.billing import hourly

from shoestring_worker.providers.ec2 import service_boot, user_data
from shoestring_worker.providers.ec2.account.aws import AwsError
from shoestring_worker.providers.ec2.account.ownership import SERVICE, service_tags
from shoestring_worker.providers.ec2.account.wheelhouse import PYTHON
from shoestring_worker.providers.ec2.extras import gp3_disk, public_ipv4
from shoestring_worker.providers.ec2.run_instances import RootDisk
from shoestring_worker.providers.ec2.service_boot import ServiceBoot
from shoestring_worker.providers.ec2.settings import Ec2Settings

TYPE, PRICE = "t3.small", "0.0208"
"""2 vCPUs and 2 GiB; dollars per hour in us-east-1, 2026-01: aws.amazon.com/ec2/pricing/on-demand"""
MIN_ROOT_GIB, VOLUME_GIB = 8, 20
PORT = 8443
PASSED_ON = ("SHOESTRING_EC2_", "SHOESTRING_TIMEOUTS__", "SHOESTRING_OBJECT_STORE", "AWS_DEFAULT_REGION")
"""How the names begin of what the service gets of this command's environment: no credentials."""


@dataclass(frozen=True)
class Wanted:
    """
    budget       limit of the team's budget in dollars; "": as it is
    image        of the machine; "": Ubuntu's
    python       of the image
    has_ours     the image has our environment, at the settings' path: none is installed
    from_image   the image's Python has all but our own packages
    environment  of this command
    """

    settings: Ec2Settings
    environment: Mapping[str, str]
    budget: str = ""
    image: str = ""
    python: str = PYTHON
    has_ours: bool = False
    from_image: bool = False
    port: int = PORT


@dataclass(frozen=True)
class Place:
    region: str
    bucket: str


@dataclass(frozen=True)
class Parts:
    """What the machine gets. Address, volume and image: as EC2 describes them; `wheelhouse`: its name; "": none."""

    address: Mapping[str, Any]
    volume: Mapping[str, Any]
    subnet: str
    group: str
    image: Mapping[str, Any]
    wheelhouse: str


def launch_arguments(wanted: Wanted, place: Place, token: str, parts: Parts) -> dict[str, Any]:
    """Arguments of boto3's `run_instances`. Raises AwsError."""
    interface = {
        "DeviceIndex": 0, "SubnetId": parts.subnet, "Groups": [parts.group],
        "AssociatePublicIpAddress": True, "DeleteOnTermination": True,
    }  # fmt: skip
    owners = [{"Key": key, "Value": value} for key, value in sorted(wanted.settings.tags.items())]
    root = {"VolumeType": "gp3", "VolumeSize": _root_gib(parts.image), "Encrypted": True, "DeleteOnTermination": True}
    return {
        "ClientToken": token, "MinCount": 1, "MaxCount": 1, "ImageId": parts.image["ImageId"], "InstanceType": TYPE,
        "UserData": _user_data(wanted, place, token, parts),
        "IamInstanceProfile": {"Name": SERVICE},
        # or bursts are billed: docs.aws.amazon.com/AWSEC2/latest/UserGuide/burstable-performance-instances.html
        "CreditSpecification": {"CpuCredits": "standard"},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
        "BlockDeviceMappings": [{"DeviceName": parts.image["RootDeviceName"], "Ebs": root}],
        "NetworkInterfaces": [interface],
        "TagSpecifications": [
            {**each, "Tags": [*each["Tags"], *owners]}
            for kind, name in (("instance", SERVICE), ("network-interface", SERVICE), ("volume", f"{SERVICE}-root"))
            for each in service_tags(kind, name)
        ],
    }  # fmt: skip


def _user_data(wanted: Wanted, place: Place, token: str, parts: Parts) -> str:
    kept = {name: value for name, value in wanted.environment.items() if name.startswith(PASSED_ON)}
    store = {"SHOESTRING_OBJECT_STORE": f"s3://{place.bucket}/service", "AWS_DEFAULT_REGION": place.region}
    boot = ServiceBoot(
        launch=token, volume=parts.volume["VolumeId"], url=f"https://{parts.address['PublicIp']}:{wanted.port}",
        bucket=place.bucket, region=place.region, budget=wanted.budget,
        environment=store | kept | {"SHOESTRING_PROVIDERS": "ec2"},
        hosting={"name": f"{TYPE} in {parts.volume['AvailabilityZone']}", "hourly_usd": _hourly_usd(parts.image)},
    )  # fmt: skip
    text = service_boot.render(boot, wanted.settings.python, parts.wheelhouse)
    if len(text.encode()) > user_data.MAX_BYTES:
        raise AwsError("The settings are too long for a machine's user data (16 KB). Name fewer regions.")
    return text


def _root_gib(image: Mapping[str, Any]) -> int:
    """As large as the image needs it."""
    return RootDisk.of(image).gib or MIN_ROOT_GIB


def _hourly_usd(image: Mapping[str, Any]) -> str:
    """Of machine, root disk, volume and address, by the list prices of us-east-1."""
    return hourly([gp3_disk(_root_gib(image), 3_000, 125), gp3_disk(VOLUME_GIB, 3_000, 125), public_ipv4()], PRICE)
