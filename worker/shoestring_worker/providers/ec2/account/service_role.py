# SPDX-License-Identifier: Apache-2.0
"""The role of the service's own machine: the worker's permissions, without keys that could be lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from shoestring_worker.providers.ec2.account.aws import GLOBAL_REGION, Aws, AwsError
from shoestring_worker.providers.ec2.account.inventory import Thing
from shoestring_worker.providers.ec2.account.ownership import SERVICE, SERVICE_PATH
from shoestring_worker.providers.ec2.account.steps import Steps

POLICY = "service"
EC2_MAY_USE_IT = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def make_service_role(aws: Aws, policy: dict[str, Any], steps: Steps) -> None:
    """A role with this policy, and the instance profile that gives it to a machine. Raises AwsError."""

    def write(method: str, **arguments: Any) -> str:
        aws.write("iam", GLOBAL_REGION, method, **arguments)
        return SERVICE

    roles, profiles = _roles(aws), _profiles(aws)
    steps.ensure(
        f"role {SERVICE}",
        SERVICE if roles else None,
        lambda: write(
            "create_role", RoleName=SERVICE, Path=SERVICE_PATH, AssumeRolePolicyDocument=json.dumps(EC2_MAY_USE_IT)
        ),
    )
    wanted = json.dumps(policy, sort_keys=True)
    steps.ensure(
        "its policy, the worker's",
        SERVICE if roles and _policy(aws) == policy else None,
        lambda: write("put_role_policy", RoleName=SERVICE, PolicyName=POLICY, PolicyDocument=wanted),
    )
    steps.ensure(
        f"instance profile {SERVICE}",
        SERVICE if profiles else None,
        lambda: write("create_instance_profile", InstanceProfileName=SERVICE, Path=SERVICE_PATH),
    )
    steps.ensure(
        "the role in the instance profile",
        SERVICE if profiles and profiles[0]["Roles"] else None,
        lambda: write("add_role_to_instance_profile", InstanceProfileName=SERVICE, RoleName=SERVICE),
    )


def list_service_role(aws: Aws) -> Iterator[Thing]:
    """In the order in which it can be removed. Raises AwsError."""
    for _ in _profiles(aws):
        yield Thing(GLOBAL_REGION, "instance profile", SERVICE)
    for _ in _roles(aws):
        yield Thing(GLOBAL_REGION, "service role", SERVICE)


def remove_profile(aws: Aws) -> None:
    """Raises AwsError."""
    for profile in _profiles(aws):
        for role in profile["Roles"]:
            arguments = {"InstanceProfileName": SERVICE, "RoleName": role["RoleName"]}
            aws.write("iam", GLOBAL_REGION, "remove_role_from_instance_profile", **arguments)
    aws.write("iam", GLOBAL_REGION, "delete_instance_profile", InstanceProfileName=SERVICE)


def remove_role(aws: Aws) -> None:
    """Raises AwsError."""
    if _policy(aws):
        aws.write("iam", GLOBAL_REGION, "delete_role_policy", RoleName=SERVICE, PolicyName=POLICY)
    aws.write("iam", GLOBAL_REGION, "delete_role", RoleName=SERVICE)


def _roles(aws: Aws) -> list[Any]:
    found = aws.read_all("iam", GLOBAL_REGION, "list_roles", "Roles", PathPrefix=SERVICE_PATH)
    return [role for role in found if role["RoleName"] == SERVICE]


def _profiles(aws: Aws) -> list[Any]:
    found = aws.read_all("iam", GLOBAL_REGION, "list_instance_profiles", "InstanceProfiles", PathPrefix=SERVICE_PATH)
    return [profile for profile in found if profile["InstanceProfileName"] == SERVICE]


def _policy(aws: Aws) -> Any:
    """None: the role has none."""
    try:
        return aws.read("iam", GLOBAL_REGION, "get_role_policy", RoleName=SERVICE, PolicyName=POLICY)["PolicyDocument"]
    except AwsError as error:
        if error.code == "NoSuchEntity":
            return None
        raise
