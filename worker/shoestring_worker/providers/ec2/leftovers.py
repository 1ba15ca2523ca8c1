# SPDX-License-Identifier: Apache-2.0
"""What EC2 says about volumes, network interfaces, addresses, spot requests and placement groups, for the sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shoestring_core.decide.billing import hourly
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG
from shoestring_core.decide.sweeps import Leftover
from shoestring_core.decide.timeouts import S

from shoestring_worker.providers.ec2.extras import gp3_disk, public_ipv4

CALLS: Mapping[str, tuple[str, str, list[dict[str, Any]]]] = {
    "volume": ("describe_volumes", "Volumes", [{"Name": "status", "Values": ["available", "error"]}]),
    "network_interface": (
        "describe_network_interfaces",
        "NetworkInterfaces",
        [{"Name": "status", "Values": ["available"]}],
    ),
    "address": ("describe_addresses", "Addresses", []),
    "spot_request": (
        "describe_spot_instance_requests",
        "SpotInstanceRequests",
        [{"Name": "state", "Values": ["open", "active"]}],
    ),
    "placement_group": ("describe_placement_groups", "PlacementGroups", [{"Name": "state", "Values": ["available"]}]),
}
"""By kind: boto3's method, the key of its answer, and filters. What is attached goes with its instance."""

DELETIONS = {
    "volume": ("DeleteVolume", "delete_volume", "VolumeId"),
    "network_interface": ("DeleteNetworkInterface", "delete_network_interface", "NetworkInterfaceId"),
    "address": ("ReleaseAddress", "release_address", "AllocationId"),
    "spot_request": ("CancelSpotInstanceRequests", "cancel_spot_instance_requests", "SpotInstanceRequestIds"),
    "placement_group": ("DeletePlacementGroup", "delete_placement_group", "GroupName"),
}
"""By kind: the action, boto3's method and its argument."""

GONE = {
    "InvalidVolume.NotFound", "InvalidAllocationID.NotFound", "InvalidSpotInstanceRequestID.NotFound",
    "InvalidPlacementGroup.Unknown", "InvalidNetworkInterfaceID.NotFound",
}  # fmt: skip


def action_of(kind: str) -> str:
    """The action of EC2's API that lists it."""
    return "".join(part.capitalize() for part in CALLS[kind][0].split("_"))


def read_leftovers(
    provider: str, region: str, kind: str, deployment: str, answer: Mapping[str, Any]
) -> Iterator[Leftover]:
    """Those of the deployment."""
    for found in answer[CALLS[kind][1]]:
        tags = {tag["Key"]: tag["Value"] for tag in found.get("TagSet" if kind == "network_interface" else "Tags", [])}
        if tags.get(DEPLOYMENT_TAG) != deployment or found.get("AssociationId"):
            continue  # of an address: something has it
        match kind:
            case "volume":
                disk = gp3_disk(found["Size"], found.get("Iops", 0), found.get("Throughput", 0))
                created = round(found["CreateTime"].timestamp() * S)
                yield Leftover("volume", provider, region, found["VolumeId"], tags, None, created, hourly([disk]))
            case "address":
                yield Leftover("address", provider, region, found["AllocationId"], tags, hourly=hourly([public_ipv4()]))
            case "network_interface":
                yield Leftover("network_interface", provider, region, found["NetworkInterfaceId"], tags)
            case "placement_group":
                yield Leftover("placement_group", provider, region, found["GroupName"], tags)
            case _:
                since = found.get("CreateTime")
                yield Leftover(
                    "spot_request", provider, region, found["SpotInstanceRequestId"], tags, found.get("InstanceId"),
                    round(since.timestamp() * S) if since else None,
                )  # fmt: skip
