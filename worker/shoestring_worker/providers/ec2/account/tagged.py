# SPDX-License-Identifier: Apache-2.0
"""Everything in an AWS account that has our tag: what it is, how it is listed, how it is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shoestring_core.decide.reconcile import DEPLOYMENT_TAG

from shoestring_worker.providers.ec2.leftovers import GONE

AT_ONCE = 100
"""Ids in a call. EC2 takes 1,000 and recommends fewer for TerminateInstances (its API reference)."""


@dataclass(frozen=True)
class Tagged:
    """Something that costs money, or makes what does.

    kind    spot request | machine | volume | address
    detail  its type, size or address, for people
    state   EC2's word for it; "" where it has none
    """

    region: str
    kind: str
    id: str
    deployment: str
    detail: str
    state: str


@dataclass(frozen=True)
class Kind:
    """How things of a kind are listed and removed.

    filters  which of them still cost something, or will
    busy     states in which it can't be removed yet
    """

    name: str
    plural: str
    describe: str
    filters: dict[str, list[str]]
    read: Callable[[dict[str, Any]], Iterator[tuple[str, str, str, dict[str, Any]]]]
    """Yields id, detail, state and the description that has the tags."""
    remove: Callable[[Any, Sequence[str]], Any]
    busy: frozenset[str] = frozenset()

    def counted(self, count: int) -> str:
        return f"{count} {self.name if count == 1 else self.plural}"


def _machines(page: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for reservation in page["Reservations"]:
        for one in reservation["Instances"]:
            market = one.get("InstanceLifecycle", "on demand")
            yield one["InstanceId"], f"{one['InstanceType']}, {market}", one["State"]["Name"], one


def _spot_requests(page: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for one in page["SpotInstanceRequests"]:
        yield one["SpotInstanceRequestId"], one.get("Type", "one-time"), one["State"], one


def _volumes(page: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for one in page["Volumes"]:
        yield one["VolumeId"], f"{one['Size']} GiB", one["State"], one


def _addresses(page: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for one in page["Addresses"]:
        yield one["AllocationId"], one["PublicIp"], "associated" if one.get("AssociationId") else "", one


KINDS = (
    Kind(
        "spot request", "spot requests", "describe_spot_instance_requests",
        {"state": ["open", "active"]}, _spot_requests,
        lambda ec2, ids: ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=ids),
    ),
    Kind(
        "machine", "machines", "describe_instances",
        {"instance-state-name": ["pending", "running", "stopping", "stopped"]}, _machines,
        lambda ec2, ids: ec2.terminate_instances(InstanceIds=ids),
    ),
    Kind(
        "volume", "volumes", "describe_volumes", {"status": ["creating", "available", "in-use", "error"]}, _volumes,
        lambda ec2, ids: [ec2.delete_volume(VolumeId=one) for one in ids], frozenset({"creating", "in-use"}),
    ),
    Kind(
        "address", "addresses", "describe_addresses", {}, _addresses,
        lambda ec2, ids: [ec2.release_address(AllocationId=one) for one in ids], frozenset({"associated"}),
    ),
)  # fmt: skip
"""In the order of removal: requests first, or they launch again; what machines hold last, once these have ended."""

ENDED = GONE | {"InvalidInstanceID.NotFound"}
"""EC2's codes for what isn't there any more."""


def list_tagged(ec2: Any, region: str, deployment: str | None) -> list[Tagged]:
    """What has our tag in a region: of one deployment, or of all. Raises ClientError and BotoCoreError."""
    found = []
    for kind in KINDS:
        filters = [{"Name": name, "Values": values} for name, values in kind.filters.items()]
        call = getattr(ec2, kind.describe)
        pages = ec2.get_paginator(kind.describe).paginate if ec2.can_paginate(kind.describe) else _only_page(call)
        for page in pages(Filters=filters):
            for id_, detail, state, description in kind.read(page):
                tags = {tag["Key"]: tag["Value"] for tag in description.get("Tags", [])}
                if DEPLOYMENT_TAG in tags and deployment in (None, tags[DEPLOYMENT_TAG]):
                    found.append(Tagged(region, kind.name, id_, tags[DEPLOYMENT_TAG], detail, state))
    return found


def _only_page(call: Callable[..., dict[str, Any]]) -> Callable[..., Iterator[dict[str, Any]]]:
    def pages(**arguments: Any) -> Iterator[dict[str, Any]]:
        yield call(**arguments)

    return pages
