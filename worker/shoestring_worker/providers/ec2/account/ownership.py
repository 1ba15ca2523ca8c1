# SPDX-License-Identifier: Apache-2.0
"""How what `bootstrap` makes is recognized later: by a tag from birth on, or by a name where AWS takes no tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring_core.decide.reconcile import DEPLOYMENT_TAG

ACCOUNT_TAG, ACCOUNT_VALUE = "shoestring-account", "bootstrap"
TAGS = [{"Key": ACCOUNT_TAG, "Value": ACCOUNT_VALUE}, {"Key": "Name", "Value": "shoestring"}]
OURS = [{"Name": f"tag:{ACCOUNT_TAG}", "Values": [ACCOUNT_VALUE]}]
"""A filter of EC2's."""
ANY_OF_OURS = [{"Name": "tag-key", "Values": [DEPLOYMENT_TAG, ACCOUNT_TAG]}]
"""A filter of EC2's: machines of any deployment, and what bootstrap made."""

NAME = "shoestring"
"""Of the security group, and how the names of buckets begin."""
BUDGET = "shoestring-aws-bootstrap"
SPOT_ROLE, SPOT_SERVICE = "AWSServiceRoleForEC2Spot", "spot.amazonaws.com"
SPOT_ROLE_PATH = f"/aws-service-role/{SPOT_SERVICE}/"
ROLE_DESCRIPTION = "Made by `shoestring aws bootstrap`"
"""Marks the role at birth, which IAM creates without tags. One with another description was there before."""


def tag_specifications(kind: str) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": TAGS}]


def bucket_name(account: str, region: str) -> str:
    return f"{NAME}-{account}-{region}"


def has_account_tag(tags: list[Mapping[str, str]]) -> bool:
    return any(tag["Key"] == ACCOUNT_TAG for tag in tags)
