# SPDX-License-Identifier: Apache-2.0
"""What of ours a region or the account has. What has neither a tag nor a name of ours isn't listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shoestring_core.decide.reconcile import DEPLOYMENT_TAG

from shoestring_worker.providers.ec2.account.aws import GLOBAL_REGION, Aws, AwsError
from shoestring_worker.providers.ec2.account.ownership import (
    ANY_OF_OURS,
    BUDGET,
    NAME,
    OURS,
    ROLE_DESCRIPTION,
    SPOT_ROLE_PATH,
    has_account_tag,
)

ALIVE = {"Name": "instance-state-name", "Values": ["pending", "running", "shutting-down", "stopping", "stopped"]}


@dataclass(frozen=True)
class Thing:
    """One thing at AWS. `note`: what its owner should know before it is removed. `state`: of an instance."""

    kind: str
    region: str
    id: str
    note: str = ""
    state: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.id} in {self.region}" + (f" ({self.note})" if self.note else "")


def machines(aws: Aws, region: str) -> list[Thing]:
    """Spot requests first, so that none is fulfilled later; then instances. Raises AwsError."""
    open_ = [{"Name": "state", "Values": ["open", "active"]}]
    requests = aws.read("ec2", region, "describe_spot_instance_requests", Filters=open_)["SpotInstanceRequests"]
    instances = [
        instance
        for reservation in aws.read_all(
            "ec2", region, "describe_instances", "Reservations", Filters=[*ANY_OF_OURS, ALIVE]
        )
        for instance in reservation["Instances"]
    ]
    return [
        *(Thing("spot request", region, each["SpotInstanceRequestId"]) for each in requests if _is_ours(each)),
        *(Thing("instance", region, each["InstanceId"], state=each["State"]["Name"]) for each in instances),
    ]


def disks_and_addresses(aws: Aws, region: str) -> list[Thing]:
    """Those that go with no instance. Raises AwsError."""
    volumes = aws.read_all("ec2", region, "describe_volumes", "Volumes", Filters=ANY_OF_OURS)
    addresses = aws.read("ec2", region, "describe_addresses")["Addresses"]
    return [
        *(
            Thing("volume", region, each["VolumeId"], f"{each['Size']} GiB")
            for each in volumes
            if not any(attachment.get("DeleteOnTermination") for attachment in each.get("Attachments", []))
        ),
        *(Thing("address", region, each["AllocationId"]) for each in addresses if _is_ours(each)),
    ]


def images(aws: Aws, region: str) -> list[Thing]:
    """Images before the snapshots that they consist of. Raises AwsError."""
    own = aws.read("ec2", region, "describe_images", Owners=["self"], Filters=ANY_OF_OURS)["Images"]
    copies = aws.read_all("ec2", region, "describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=ANY_OF_OURS)
    return [
        *(Thing("image", region, each["ImageId"], each.get("Name", "")) for each in own),
        *(Thing("snapshot", region, each["SnapshotId"], f"{each['VolumeSize']} GiB") for each in copies),
    ]


def network(aws: Aws, region: str) -> list[Thing]:
    """In the order in which it can be removed. Raises AwsError."""

    def tagged(method: str, key: str) -> list[Any]:
        return aws.read_all("ec2", region, method, key, Filters=OURS)

    endpoints = tagged("describe_vpc_endpoints", "VpcEndpoints")
    return [
        *(
            Thing("endpoint", region, each["VpcEndpointId"])
            for each in endpoints
            if each["State"] not in ("deleting", "deleted")
        ),
        *(
            Thing("security group", region, each["GroupId"])
            for each in tagged("describe_security_groups", "SecurityGroups")
        ),
        *(Thing("subnet", region, each["SubnetId"]) for each in tagged("describe_subnets", "Subnets")),
        *(
            Thing("internet gateway", region, each["InternetGatewayId"])
            for each in tagged("describe_internet_gateways", "InternetGateways")
        ),
        *(Thing("VPC", region, each["VpcId"]) for each in tagged("describe_vpcs", "Vpcs")),
    ]  # fmt: skip


def of_account(aws: Aws) -> list[Thing]:
    """Buckets, the alarm and the role for spot machines. Raises AwsError."""
    return [*_buckets(aws), *_budget(aws), *_spot_role(aws)]


def spot_role(aws: Aws) -> dict[str, Any] | None:
    """The service-linked role that EC2 needs for spot machines, whoever made it. Raises AwsError."""
    roles = aws.read_all("iam", GLOBAL_REGION, "list_roles", "Roles", PathPrefix=SPOT_ROLE_PATH)
    return roles[0] if roles else None


def _buckets(aws: Aws) -> Iterator[Thing]:
    for bucket in aws.read("s3", GLOBAL_REGION, "list_buckets")["Buckets"]:
        name = bucket["Name"]
        if not name.startswith(f"{NAME}-"):
            continue
        region = aws.read("s3", GLOBAL_REGION, "get_bucket_location", Bucket=name)["LocationConstraint"]
        region = region or GLOBAL_REGION
        try:
            tags = aws.read("s3", region, "get_bucket_tagging", Bucket=name)["TagSet"]
        except AwsError as error:
            if error.code != "NoSuchTagSet":
                raise
            continue
        if has_account_tag(tags):
            page = aws.read("s3", region, "list_objects_v2", Bucket=name)
            count = f"{page.get('KeyCount', 0)}{' or more' if page.get('IsTruncated') else ''} objects"
            yield Thing("bucket", region, name, f"{count}: checkpoints and artifacts of jobs")


def _budget(aws: Aws) -> Iterator[Thing]:
    try:
        aws.read("budgets", GLOBAL_REGION, "describe_budget", AccountId=aws.account(), BudgetName=BUDGET)
    except AwsError as error:
        if error.code != "NotFoundException":
            raise
    else:
        yield Thing("alarm", GLOBAL_REGION, BUDGET)


def _spot_role(aws: Aws) -> Iterator[Thing]:
    role = spot_role(aws)
    if role and role.get("Description") == ROLE_DESCRIPTION:
        yield Thing("role", GLOBAL_REGION, role["RoleName"])


def _is_ours(found: Mapping[str, Any]) -> bool:
    tags = found.get("Tags", [])
    return has_account_tag(tags) or any(tag["Key"] == DEPLOYMENT_TAG for tag in tags)
