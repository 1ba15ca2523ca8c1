# SPDX-License-Identifier: Apache-2.0
"""The RunInstances request of a machine: made of what was stored when it was planned, so that it can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from shoestring_core.launch_request import LaunchDisk, LaunchRequest

from shoestring_worker.providers.ec2 import user_data
from shoestring_worker.providers.ec2.settings import Ec2Region, Ec2Settings

TAGGED_AT_BIRTH = ("instance", "volume", "network-interface")
"""And the spot request, where there is one. RunInstances creates all of them with their tags, or nothing."""


@dataclass(frozen=True)
class RootDisk:
    """Of an image: settings under another device's name would add a second disk. `gib`: what it needs at least."""

    device: str
    gib: int

    @classmethod
    def of(cls, image: Mapping[str, Any]) -> Self:
        disks = {each["DeviceName"]: each.get("Ebs") or {} for each in image.get("BlockDeviceMappings", [])}
        device = image["RootDeviceName"]
        return cls(device, int(disks.get(device, {}).get("VolumeSize") or 0))


def disk_of(request: LaunchRequest, settings: Ec2Settings) -> LaunchDisk:
    """The root disk of the machine."""
    return request.disk or LaunchDisk(settings.disk_gib, settings.disk_iops, settings.disk_mib_per_s)


def run_instances(request: LaunchRequest, settings: Ec2Settings, root_device: str) -> dict[str, Any]:
    """Arguments of boto3's `run_instances`. `root_device`: the name of the image's root device.

    Raises KeyError if the settings don't have the request's region and zone any more.
    """
    region = settings.regions[request.region]
    arguments: dict[str, Any] = {
        "ClientToken": request.token,
        "MinCount": 1,
        "MaxCount": 1,
        "ImageId": region.image,
        "InstanceType": request.type,
        "UserData": user_data.render(request.user_data, settings.python, settings.wheelhouse),
        "InstanceInitiatedShutdownBehavior": "terminate",
        # a hop limit of 1: what runs in a container on the machine can't reach the metadata service
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
        "BlockDeviceMappings": [{"DeviceName": root_device, "Ebs": _root_volume(disk_of(request, settings))}],
        "NetworkInterfaces": [_network_interface(region, request)],
        "TagSpecifications": _tag_specifications(request, settings),
    }
    if request.data_role:
        # of the request and not of the settings: these may have changed since the first call with its token
        named = "Arn" if request.data_role.startswith("arn:") else "Name"
        arguments["IamInstanceProfile"] = {named: request.data_role}
    if request.placement_group:
        arguments["Placement"] = {"GroupName": request.placement_group}
    if request.market == "spot":
        # without a maximum price, which is then the on-demand price: that is what was held for it
        options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        arguments["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
    return arguments


def _root_volume(disk: LaunchDisk) -> dict[str, Any]:
    return {
        "VolumeType": "gp3",
        "VolumeSize": disk.gib,
        "Iops": disk.iops,
        "Throughput": disk.mib_per_s,
        "Encrypted": True,
        "DeleteOnTermination": True,
    }


def create_placement_group(request: LaunchRequest, settings: Ec2Settings) -> dict[str, Any]:
    """Arguments of boto3's `create_placement_group`, of the group that the request names."""
    tags = [tag for tag in _tags(request, settings) if tag["Key"] != "slot"]
    return {
        "GroupName": request.placement_group,
        "Strategy": "cluster",
        "TagSpecifications": [{"ResourceType": "placement-group", "Tags": tags}],
    }


def _network_interface(region: Ec2Region, request: LaunchRequest) -> dict[str, Any]:
    """A public address, because the machine calls the service and there is no NAT gateway to pay for.

    With EFA it stays the only interface: EC2 gives no public address to an instance with several.
    """
    interface: dict[str, Any] = {
        "DeviceIndex": 0,
        "SubnetId": region.subnets[request.zone],
        "AssociatePublicIpAddress": True,
        "DeleteOnTermination": True,
    }
    if request.efa:
        interface["InterfaceType"] = "efa"
    if region.security_groups:
        interface["Groups"] = list(region.security_groups)
    return interface


def _tags(request: LaunchRequest, settings: Ec2Settings) -> list[dict[str, str]]:
    """Ours, and the owner's."""
    return [{"Key": key, "Value": value} for key, value in sorted({**settings.tags, **request.tags}.items())]


def _tag_specifications(request: LaunchRequest, settings: Ec2Settings) -> list[dict[str, Any]]:
    tags = _tags(request, settings)
    tagged = [*TAGGED_AT_BIRTH, *(["spot-instances-request"] if request.market == "spot" else [])]
    return [{"ResourceType": kind, "Tags": tags} for kind in tagged]
