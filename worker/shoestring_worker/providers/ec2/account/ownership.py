# SPDX-License-Identifier: Apache-2.0
"""How what these commands make is recognized later: by a tag from birth on, or by a name where AWS takes no tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring_core.decide.reconcile import DEPLOYMENT_TAG

ACCOUNT_TAG, ACCOUNT_VALUE = "shoestring-account", "bootstrap"
TAGS = [{"Key": ACCOUNT_TAG, "Value": ACCOUNT_VALUE}, {"Key": "Name", "Value": "shoestring"}]
OURS = [{"Name": f"tag:{ACCOUNT_TAG}", "Values": [ACCOUNT_VALUE]}]
"""A filter of EC2's."""
ANY_OF_OURS = [{"Name": "tag-key", "Values": [DEPLOYMENT_TAG, ACCOUNT_TAG]}]
"""A filter of EC2's: machines of any deployment, and what these commands made."""

NAME = "shoestring"
"""Of the security group, and how the names of buckets begin."""
BUDGET = "shoestring-aws-bootstrap"
SPOT_ROLE, SPOT_SERVICE = "AWSServiceRoleForEC2Spot", "spot.amazonaws.com"
SPOT_ROLE_PATH = f"/aws-service-role/{SPOT_SERVICE}/"
ROLE_DESCRIPTION = "Made by `shoestring aws bootstrap`"
"""Marks the role at birth, which IAM creates without tags. One with another description was there before."""

SERVICE = "shoestring-service"
"""Name of the machine that runs the service, and of its volume, address, security group, role and instance profile."""
SERVICE_PATH = "/shoestring/"
"""Of role and instance profile: IAM lists them by it."""
SERVICE_VALUE = "service"
"""Of ACCOUNT_TAG, on what `aws up` makes and `aws down` keeps or ends."""


def tag_specifications(kind: str, name: str = NAME) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": [TAGS[0], {"Key": "Name", "Value": name}]}]


def service_tags(kind: str, name: str = SERVICE) -> list[dict[str, Any]]:
    tags = [{"Key": ACCOUNT_TAG, "Value": SERVICE_VALUE}, {"Key": "Name", "Value": name}]
    return [{"ResourceType": kind, "Tags": tags}]


def of_service() -> list[dict[str, Any]]:
    """A filter of EC2's."""
    return [{"Name": f"tag:{ACCOUNT_TAG}", "Values": [SERVICE_VALUE]}, {"Name": "tag:Name", "Values": [SERVICE]}]


def bucket_name(account: str, region: str) -> str:
    return f"{NAME}-{account}-{region}"


def object_store(bucket: str) -> str:
    """Where in its bucket a service keeps its objects."""
    return f"s3://{bucket}/service"


def has_account_tag(tags: list[Mapping[str, str]]) -> bool:
    return any(tag["Key"] == ACCOUNT_TAG for tag in tags)
