# SPDX-License-Identifier: Apache-2.0
"""What the service's machine boots and installs: an image, and a wheelhouse in the account's bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from shoestring_worker.providers.ec2.account import wheels
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.base_image import UBUNTU, find_image
from shoestring_worker.providers.ec2.account.ownership import object_store
from shoestring_worker.providers.ec2.account.service_launch import TYPE, Wanted
from shoestring_worker.providers.ec2.account.wheelhouse import Place, WheelhouseMaker


def choose_zone(aws: Aws, region: str, subnets: Iterable[str]) -> str:
    """The first of these zones that has the service's type of machine: its volume can't move to another later.

    Raises AwsError.
    source  docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-discovery.html: not each zone has each type
    """
    chosen = {"LocationType": "availability-zone", "Filters": [{"Name": "instance-type", "Values": [TYPE]}]}
    found = aws.read_all("ec2", region, "describe_instance_type_offerings", "InstanceTypeOfferings", **chosen)
    zones = {each["Location"] for each in found}
    if chosen_zone := next((zone for zone in subnets if zone in zones), None):
        return chosen_zone
    raise AwsError(
        f"None of the zones with a subnet in SHOESTRING_EC2_REGIONS has {TYPE}, on which the service runs. "
        + (f"Add a subnet in one of: {', '.join(sorted(zones))}" if zones else f"Name a region before {region}")
    )


def describe_image(aws: Aws, region: str, wanted: Wanted) -> dict[str, Any]:
    """As EC2 describes it. Raises AwsError."""
    id_ = wanted.image or find_image(aws, region, UBUNTU)
    images = aws.read("ec2", region, "describe_images", ImageIds=[id_])["Images"]
    if not images:
        raise AwsError(f"{id_} is not in {region}, or this account may not use it. Name another: --image AMI")
    found: dict[str, Any] = images[0]
    return found


def make_wheelhouse(aws: Aws, region: str, bucket: str, wanted: Wanted, report: Callable[[str], None]) -> str:
    """Its name; "": the image has our environment. What is in the bucket is not made again.

    Raises AwsError, WheelsMissing.
    """
    if wanted.has_ours:
        return ""
    place = Place.read(region, object_store(bucket))
    maker = WheelhouseMaker(
        aws, place, report, wheels.OF_SERVICE, python=wanted.python, from_image=wanted.from_image
    )  # fmt: skip
    return maker.make().name
