# SPDX-License-Identifier: Apache-2.0
"""What of ours a region or the account has. What has neither a tag nor a name of ours isn't listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoestring_core.decide.reconcile import DEPLOYMENT_TAG

from shoestring_worker.providers.ec2.account.aws import GLOBAL_REGION, Aws, AwsError
from shoestring_worker.providers.ec2.account.ownership import (
    ANY_OF_OURS,
    BUDGET,
    OURS,
    ROLE_DESCRIPTION,
    SPOT_ROLE_PATH,
    bucket_name,
    has_account_tag,
)

ALIVE = {"Name": "instance-state-name", "Values": ["pending", "running", "shutting-down", "stopping", "stopped"]}
PLURALS = {
    "spot request": "spot requests", "machine": "machines", "volume": "volumes", "address": "addresses",
    "network interface": "network interfaces", "placement group": "placement groups",
}  # fmt: skip
"""What machines are made of, and what they leave."""
BUSY = {
    ("machine", "shutting-down"), ("volume", "creating"), ("volume", "deleting"), ("volume", "in-use"),
    ("network interface", "in-use"), ("network interface", "attaching"), ("network interface", "detaching"),
    ("address", "associated"),
}  # fmt: skip
"""Kinds and states in which something can't be removed yet."""


@dataclass(frozen=True)
class Thing:
    """One thing at AWS.

    deployment  whose machines it belongs to; "": the account's
    detail      its type, size or content: what its owner should know before it is removed
    state       EC2's word for it; "" where it has none
    held_by     a machine that isn't ours and has it; "": none
    """

    region: str
    kind: str
    id: str
    deployment: str = ""
    detail: str = ""
    state: str = ""
    held_by: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.id} in {self.region}" + (f" ({self.detail})" if self.detail else "")

    @property
    def busy(self) -> bool:
        return bool(self.held_by) or (self.kind, self.state) in BUSY

    @property
    def held(self) -> str:
        """Why it can't be removed by us, and what to do."""
        return f"{self.held_by}, which isn't ours, uses it. Detach it from there, and run this again."


def machines(aws: Aws, region: str) -> list[Thing]:
    """Spot requests first, so that none is fulfilled later; then instances. Raises AwsError."""
    open_ = [{"Name": "state", "Values": ["open", "active"]}]
    # EC2 would filter these by tag as well; the fake knows states alone
    requests = aws.read_all("ec2", region, "describe_spot_instance_requests", "SpotInstanceRequests", Filters=open_)
    filters = [*ANY_OF_OURS, ALIVE]
    reservations = aws.read_all("ec2", region, "describe_instances", "Reservations", Filters=filters)
    return [
        *(
            _thing(region, "spot request", each["SpotInstanceRequestId"], each, each.get("Type", "one-time"))
            for each in requests
            if _is_ours(each)
        ),
        *(
            _thing(region, "machine", each["InstanceId"], each, f"{each['InstanceType']}, {_market(each)}")
            for reservation in reservations
            for each in reservation["Instances"]
        ),
    ]


def disks_interfaces_and_addresses(aws: Aws, region: str) -> list[Thing]:
    """Those that go with no instance of ours. Raises AwsError.

    Their tags are compared here: a filter for one of two keys finds them at EC2, but not at the fake.
    """
    volumes = _ours(aws.read_all("ec2", region, "describe_volumes", "Volumes"))
    interfaces = _ours(aws.read_all("ec2", region, "describe_network_interfaces", "NetworkInterfaces"))
    addresses = _ours(aws.read("ec2", region, "describe_addresses")["Addresses"])
    attached = [attachment for each in volumes for attachment in each["Attachments"]]
    attached += [each.get("Attachment") or {} for each in interfaces]
    foreign = _foreign(aws, region, {one["InstanceId"] for one in [*attached, *addresses] if one.get("InstanceId")})

    def holder(*attachments: Mapping[str, Any]) -> str:
        return next((one["InstanceId"] for one in attachments if one.get("InstanceId") in foreign), "")

    def goes_with_ours(*attachments: Mapping[str, Any]) -> bool:
        return any(one.get("DeleteOnTermination") for one in attachments) and not holder(*attachments)

    return [
        *(
            _thing(region, "volume", each["VolumeId"], each, f"{each['Size']} GiB", holder(*each["Attachments"]))
            for each in volumes
            if not goes_with_ours(*each["Attachments"])
        ),
        *(
            _thing(
                region, "network interface", each["NetworkInterfaceId"], each, each.get("PrivateIpAddress", ""),
                holder(each.get("Attachment") or {}),
            )
            for each in interfaces
            if not goes_with_ours(each.get("Attachment") or {})
        ),
        *(
            _thing(region, "address", each["AllocationId"], each, each["PublicIp"], holder(each))
            for each in addresses
        ),
    ]  # fmt: skip


def placement_groups(aws: Aws, region: str) -> list[Thing]:
    """Raises AwsError."""
    groups = aws.read("ec2", region, "describe_placement_groups")["PlacementGroups"]
    return [_thing(region, "placement group", each["GroupName"], each, "") for each in groups if _is_ours(each)]


OF_MACHINES = (machines, disks_interfaces_and_addresses, placement_groups)
"""What lists what jobs have in a region, in the order in which it can be removed."""


def images(aws: Aws, region: str) -> list[Thing]:
    """Images before the snapshots that they consist of. Raises AwsError."""
    own = aws.read("ec2", region, "describe_images", Owners=["self"])["Images"]
    copies = aws.read_all("ec2", region, "describe_snapshots", "Snapshots", OwnerIds=["self"])
    return [
        *(Thing(region, "image", each["ImageId"], detail=each.get("Name", "")) for each in own if _is_ours(each)),
        *(
            Thing(region, "snapshot", each["SnapshotId"], detail=f"{each['VolumeSize']} GiB")
            for each in copies
            if _is_ours(each)
        ),
    ]


def network(aws: Aws, region: str) -> list[Thing]:
    """In the order in which it can be removed. Raises AwsError."""

    def tagged(method: str, key: str) -> list[Any]:
        return aws.read_all("ec2", region, method, key, Filters=OURS)

    endpoints = tagged("describe_vpc_endpoints", "VpcEndpoints")
    return [
        *(
            Thing(region, "endpoint", each["VpcEndpointId"])
            for each in endpoints
            if each["State"] not in ("deleting", "deleted")
        ),
        *(
            Thing(region, "security group", each["GroupId"])
            for each in tagged("describe_security_groups", "SecurityGroups")
        ),
        *(Thing(region, "subnet", each["SubnetId"]) for each in tagged("describe_subnets", "Subnets")),
        *(
            Thing(region, "internet gateway", each["InternetGatewayId"])
            for each in tagged("describe_internet_gateways", "InternetGateways")
        ),
        *(Thing(region, "VPC", each["VpcId"]) for each in tagged("describe_vpcs", "Vpcs")),
    ]  # fmt: skip


def of_account(aws: Aws) -> list[Thing]:
    """Buckets, the alarm and the role for spot machines. Raises AwsError."""
    return [*_buckets(aws), *_budget(aws), *_spot_role(aws)]


def spot_role(aws: Aws) -> dict[str, Any] | None:
    """The service-linked role that EC2 needs for spot machines, created by this service or not. Raises AwsError."""
    roles = aws.read_all("iam", GLOBAL_REGION, "list_roles", "Roles", PathPrefix=SPOT_ROLE_PATH)
    return roles[0] if roles else None


def count(things: Sequence[Thing]) -> str:
    """Such as "1 machine, 2 volumes"."""
    numbers = Counter(thing.kind for thing in things)
    return ", ".join(counted(kind, numbers[kind]) for kind in PLURALS if numbers[kind]) or "nothing"


def counted(kind: str, number: int) -> str:
    return f"{number} {kind if number == 1 else PLURALS[kind]}"


def _buckets(aws: Aws) -> Iterator[Thing]:
    account = aws.account()
    of_ours = bucket_name(account, "")
    for bucket in aws.read("s3", GLOBAL_REGION, "list_buckets")["Buckets"]:
        name = bucket["Name"]
        if not name.startswith(of_ours):
            continue  # nor may these credentials read the tags of others
        region = aws.read("s3", GLOBAL_REGION, "get_bucket_location", Bucket=name)["LocationConstraint"]
        region = region or GLOBAL_REGION
        tags = _bucket_tags(aws, region, name)
        page = aws.read("s3", region, "list_objects_v2", Bucket=name) if has_account_tag(tags) or not tags else {}
        # an empty one without tags was made just before `bootstrap` was stopped
        if has_account_tag(tags) or (not tags and not page.get("KeyCount") and name == bucket_name(account, region)):
            objects = f"{page.get('KeyCount', 0)}{' or more' if page.get('IsTruncated') else ''} objects"
            yield Thing(region, "bucket", name, detail=f"{objects}: checkpoints and artifacts of jobs")


def _bucket_tags(aws: Aws, region: str, bucket: str) -> list[Any]:
    try:
        return list(aws.read("s3", region, "get_bucket_tagging", Bucket=bucket)["TagSet"])
    except AwsError as error:
        if error.code != "NoSuchTagSet":
            raise
        return []


def _budget(aws: Aws) -> Iterator[Thing]:
    try:
        aws.read("budgets", GLOBAL_REGION, "describe_budget", AccountId=aws.account(), BudgetName=BUDGET)
    except AwsError as error:
        if error.code != "NotFoundException":
            raise
    else:
        yield Thing(GLOBAL_REGION, "alarm", BUDGET)


def _spot_role(aws: Aws) -> Iterator[Thing]:
    role = spot_role(aws)
    if role and role.get("Description") == ROLE_DESCRIPTION:
        yield Thing(GLOBAL_REGION, "role", role["RoleName"])


def _foreign(aws: Aws, region: str, instances: Iterable[str]) -> set[str]:
    """Those of the instances that are alive and not ours. Raises AwsError."""
    if not (wanted := sorted(instances)):
        return set()
    filters = [{"Name": "instance-id", "Values": wanted}, ALIVE]
    reservations = aws.read_all("ec2", region, "describe_instances", "Reservations", Filters=filters)
    found = [each for reservation in reservations for each in reservation["Instances"]]
    return {each["InstanceId"] for each in found if not _is_ours(each)}


def _thing(region: str, kind: str, id_: str, found: Mapping[str, Any], detail: str, held_by: str = "") -> Thing:
    """`found`: EC2's description, which has tags and a state."""
    state = found.get("State") or found.get("Status") or ("associated" if found.get("AssociationId") else "")
    if not isinstance(state, str):
        state = state["Name"]
    return Thing(region, kind, id_, _tags(found).get(DEPLOYMENT_TAG, ""), detail, state, held_by)


def _market(instance: Mapping[str, Any]) -> str:
    return str(instance.get("InstanceLifecycle", "on demand"))


def _ours(found: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in found if _is_ours(each)]


def _is_ours(found: Mapping[str, Any]) -> bool:
    return has_account_tag(_tag_list(found)) or DEPLOYMENT_TAG in _tags(found)


def _tags(found: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in _tag_list(found)}


def _tag_list(found: Mapping[str, Any]) -> list[Any]:
    """EC2 names them otherwise on network interfaces."""
    return [*found.get("Tags", []), *found.get("TagSet", [])]
