# SPDX-License-Identifier: Apache-2.0
"""The role with which machines of jobs read their data: the account's owner creates it, and names its profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoestring_worker.providers.ec2.account.aws import GLOBAL_REGION, Aws, AwsError

DATA_ROLE = "SHOESTRING_EC2_DATA_ROLE"
HOW_TO_MAKE_IT = "docs/aws.md, Your data, has the commands that make one"


def find_data_role(aws: Aws, profile: str) -> str:
    """ARN of the role in an instance profile; "" without a profile. Raises AwsError if there is none."""
    if not profile:
        return ""
    profiles = aws.read_all("iam", GLOBAL_REGION, "list_instance_profiles", "InstanceProfiles")
    if role := role_in(profiles, profile):
        return role
    raise AwsError(f"{what_is_missing(profiles, profile)} Correct {DATA_ROLE}; {HOW_TO_MAKE_IT}.")


def role_in(profiles: Sequence[Mapping[str, Any]], profile: str) -> str:
    """ARN of the role in the profile of this name or ARN; "": there is no such profile, or it is empty."""
    found = [role for each in profiles if _is_named(each, profile) for role in each["Roles"]]
    return str(found[0]["Arn"]) if found else ""


def what_is_missing(profiles: Sequence[Mapping[str, Any]], profile: str) -> str:
    """A sentence, where there is no such role."""
    if any(_is_named(each, profile) for each in profiles):
        return f"There is no role in the instance profile {profile}."
    return f"The account has no instance profile {profile}."


def _is_named(profile: Mapping[str, Any], name: str) -> bool:
    return name in (profile["InstanceProfileName"], profile["Arn"])
