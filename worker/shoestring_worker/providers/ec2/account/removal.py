# SPDX-License-Identifier: Apache-2.0
"""The calls that remove what the inventory lists. What is gone already is no error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from shoestring_core.wording.units import counted

from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.inventory import Thing
from shoestring_worker.providers.ec2.account.service_role import remove_profile, remove_role

AT_ONCE = 100
"""Ids in a call. EC2 takes 1,000 and recommends fewer for TerminateInstances (its API reference)."""
CALLS = {
    "spot request": ("cancel_spot_instance_requests", "SpotInstanceRequestIds"),
    "machine": ("terminate_instances", "InstanceIds"),
    "volume": ("delete_volume", "VolumeId"),
    "network interface": ("delete_network_interface", "NetworkInterfaceId"),
    "address": ("release_address", "AllocationId"),
    "placement group": ("delete_placement_group", "GroupName"),
    "image": ("deregister_image", "ImageId"),
    "snapshot": ("delete_snapshot", "SnapshotId"),
    "endpoint": ("delete_vpc_endpoints", "VpcEndpointIds"),
    "security group": ("delete_security_group", "GroupId"),
    "subnet": ("delete_subnet", "SubnetId"),
    "VPC": ("delete_vpc", "VpcId"),
}
"""By kind: boto3's method of EC2 and its argument, a list of ids if it ends in s."""
GONE = ("NoSuchBucket", "NoSuchEntity", "NotFoundException", "InvalidPlacementGroup.Unknown")


def remove_all(aws: Aws, things: Sequence[Thing]) -> dict[Thing, AwsError]:
    """Remove them in this order, together where EC2 takes several; returns those that could not be removed."""
    failed: dict[Thing, AwsError] = {}
    for (kind, _), group in groupby(things, lambda thing: (thing.kind, thing.region)):
        alike, at_once = list(group), AT_ONCE if CALLS.get(kind, ("", ""))[1].endswith("s") else 1
        for begin in range(0, len(alike), at_once):
            some = alike[begin : begin + at_once]
            try:
                _remove(aws, some)
            except AwsError as error:
                failed |= {some[0]: error} if len(some) == 1 else _remove_each(aws, some)
    return failed


def _remove_each(aws: Aws, things: Sequence[Thing]) -> dict[Thing, AwsError]:
    failed = {}
    for thing in things:
        try:
            _remove(aws, [thing])
        except AwsError as error:
            failed[thing] = error
    return failed


def _remove(aws: Aws, things: Sequence[Thing]) -> None:
    """Things of a kind in a region; one, where EC2 takes no list. Raises AwsError."""
    thing = things[0]
    try:
        match thing.kind:
            case "internet gateway":
                _remove_gateway(aws, thing)
            case "bucket":
                _remove_bucket(aws, thing)
            case "alarm":
                account = aws.account()
                aws.write("budgets", thing.region, "delete_budget", AccountId=account, BudgetName=thing.id)
            case "instance profile":
                remove_profile(aws)
            case "service role":
                remove_role(aws)
            case "role":
                aws.write("iam", thing.region, "delete_service_linked_role", RoleName=thing.id)
            case _:
                method, argument = CALLS[thing.kind]
                ids = [each.id for each in things] if argument.endswith("s") else thing.id
                aws.write("ec2", thing.region, method, **{argument: ids})
    except AwsError as error:
        if len(things) > 1 or not _is_gone(error):
            raise


def _remove_gateway(aws: Aws, gateway: Thing) -> None:
    listed = aws.read("ec2", gateway.region, "describe_internet_gateways", InternetGatewayIds=[gateway.id])
    for attachment in listed["InternetGateways"][0]["Attachments"]:
        vpc = attachment["VpcId"]
        aws.write("ec2", gateway.region, "detach_internet_gateway", InternetGatewayId=gateway.id, VpcId=vpc)
    aws.write("ec2", gateway.region, "delete_internet_gateway", InternetGatewayId=gateway.id)


def _remove_bucket(aws: Aws, bucket: Thing) -> None:
    """With all versions of its objects, and uploads that were never completed."""

    def pages(method: str, *keys: str) -> list[Any]:
        return [each for key in keys for each in aws.read_all("s3", bucket.region, method, key, Bucket=bucket.id)]

    found = pages("list_object_versions", "Versions", "DeleteMarkers")
    versions = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in found]
    refused: list[Any] = []
    for first in range(0, len(versions), 1_000):
        chosen = {"Objects": versions[first : first + 1_000], "Quiet": True}
        answer = aws.write("s3", bucket.region, "delete_objects", Bucket=bucket.id, Delete=chosen)
        refused += answer.get("Errors", [])
    for upload in pages("list_multipart_uploads", "Uploads"):
        which = {"Bucket": bucket.id, "Key": upload["Key"], "UploadId": upload["UploadId"]}
        aws.write("s3", bucket.region, "abort_multipart_upload", **which)
    if refused:
        raise AwsError(_told(refused), str(refused[0]["Code"]))
    aws.write("s3", bucket.region, "delete_bucket", Bucket=bucket.id)


def _told(refused: Sequence[Mapping[str, str]]) -> str:
    """Of versions that S3 didn't delete."""
    first = refused[0]
    return (
        f"{counted(len(refused), 'version')} of objects can't be deleted, such as {first['Key']}: {first['Code']}: "
        f"{first.get('Message', '').rstrip('.')}. If Object Lock retains them, wait until that ends, or delete those "
        "in governance mode with s3:BypassGovernanceRetention; else allow s3:DeleteObjectVersion. Then run this again."
    )


def _is_gone(error: AwsError) -> bool:
    return error.code.endswith(".NotFound") or error.code in GONE
