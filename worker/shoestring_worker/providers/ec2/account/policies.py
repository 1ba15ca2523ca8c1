# SPDX-License-Identifier: Apache-2.0
"""The least that credentials need, as IAM policies to review and attach; `bootstrap` prints them and attaches none."""

from __future__ import annotations

from typing import Any

from shoestring_core.decide.reconcile import DEPLOYMENT_TAG

from shoestring_worker.providers.ec2.account.base_image import BASE, UBUNTU
from shoestring_worker.providers.ec2.account.ownership import ACCOUNT_TAG, NAME, SERVICE_PATH, SPOT_ROLE, SPOT_SERVICE

SWEPT = ("instance", "volume", "network-interface", "elastic-ip", "spot-instances-request", "placement-group")
USED = ("subnet", "security-group", "key-pair", "placement-group")
NETWORK = ("Vpc", "Subnet", "InternetGateway", "SecurityGroup")
CREATING = ["RunInstances", "CreatePlacementGroup"]


def worker_policy(account: str, regions: list[str], bucket: str, data_role: str = "") -> dict[str, Any]:
    """Of API and worker: they launch only in these regions, and change only what carries a deployment's tag.

    data_role  ARN of the role that machines may get to read their job's data; "": none
    """
    in_regions = {"StringEquals": {"aws:RequestedRegion": regions}}
    tagged = {"Null": {f"aws:RequestTag/{DEPLOYMENT_TAG}": "false"}}
    swept = [f"arn:aws:ec2:*:{account}:{kind}/*" for kind in SWEPT]
    used = [f"arn:aws:ec2:*:{account}:{kind}/*" for kind in USED]
    return _policy(
        _allow(["ec2:Describe*", "servicequotas:ListServiceQuotas", "pricing:GetProducts"], ["*"]),
        _allow(["ec2:RunInstances"], [*used, "arn:aws:ec2:*::image/*"], in_regions),
        _allow(["ec2:RunInstances", "ec2:CreatePlacementGroup"], swept, {**tagged, **in_regions}),
        _allow(["ec2:CreateTags"], swept, {"StringEquals": {"ec2:CreateAction": CREATING}}),
        _allow(
            [
                "ec2:TerminateInstances", "ec2:DeleteVolume", "ec2:ReleaseAddress", "ec2:CancelSpotInstanceRequests",
                "ec2:DeletePlacementGroup", "ec2:DeleteNetworkInterface",
            ],
            swept, _tagged(DEPLOYMENT_TAG),
        ),
        _allow(["s3:ListBucket"], [f"arn:aws:s3:::{bucket}"]),
        _allow(["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"], [f"arn:aws:s3:::{bucket}/*"]),
        *([_pass_to_machines(data_role)] if data_role else []),
    )  # fmt: skip


def account_policy(account: str, regions: list[str], bucket: str) -> dict[str, Any]:
    """Of the person who runs `shoestring aws`, besides the worker's: it makes, checks and removes what bootstrap makes.

    It removes only what has a tag of ours, in any region. Whose bucket another one of ours is, teardown asks as well.
    """
    in_regions = {"StringEquals": {"aws:RequestedRegion": regions}}
    makes = [
        *(f"ec2:Create{kind}" for kind in (*NETWORK, "Route", "VpcEndpoint", "Volume", "Tags")), "ec2:DeleteTags",
        "ec2:AttachInternetGateway", "ec2:AuthorizeSecurityGroupIngress", "ec2:AuthorizeSecurityGroupEgress",
        "ec2:RunInstances", "ec2:AttachVolume", "ec2:AllocateAddress", "ec2:AssociateAddress", "ec2:ReplaceRoute",
    ]  # fmt: skip
    copies = ["ec2:DeregisterImage", "ec2:DeleteSnapshot"]
    removes = [
        *(f"ec2:Delete{kind}" for kind in (*NETWORK, "VpcEndpoints", "Volume")), *copies,
        "ec2:DetachInternetGateway", "ec2:TerminateInstances", "ec2:ReleaseAddress", "ec2:DeleteNetworkInterface",
    ]  # fmt: skip
    role = f"arn:aws:iam::{account}:role/aws-service-role/{SPOT_SERVICE}/{SPOT_ROLE}"
    service = [f"arn:aws:iam::{account}:{kind}{SERVICE_PATH}*" for kind in ("role", "instance-profile")]
    roles = [
        *(f"iam:{verb}Role" for verb in ("Create", "Delete", "Pass")),
        *(f"iam:{verb}RolePolicy" for verb in ("Get", "Put", "Delete")),
        *(f"iam:{verb}InstanceProfile" for verb in ("Create", "Delete")),
        "iam:AddRoleToInstanceProfile", "iam:RemoveRoleFromInstanceProfile",
    ]  # fmt: skip
    buckets = [
        "s3:GetObject", "s3:CreateBucket", "s3:DeleteBucket", "s3:ListBucketVersions", "s3:DeleteObject",
        "s3:DeleteObjectVersion", "s3:PutBucketTagging", "s3:GetBucketPublicAccessBlock",
        "s3:PutBucketPublicAccessBlock", "s3:GetLifecycleConfiguration", "s3:PutLifecycleConfiguration",
        "s3:ListBucketMultipartUploads", "s3:AbortMultipartUpload",
    ]  # fmt: skip
    return _policy(
        _allow(makes, ["*"], in_regions),
        _allow(removes, ["*"], _tagged(ACCOUNT_TAG)),
        _allow(copies, ["*"], _tagged(DEPLOYMENT_TAG)),
        _allow(["ec2:Describe*", "servicequotas:ListServiceQuotas", "pricing:GetProducts"], ["*"]),
        _allow(["ssm:GetParameter"], [f"arn:aws:ssm:*::parameter{image.parameter}" for image in (BASE, UBUNTU)]),
        _allow(["iam:ListRoles", "iam:ListInstanceProfiles", "s3:ListAllMyBuckets"], ["*"]),
        _allow(roles, service),
        _allow(["iam:CreateServiceLinkedRole", "iam:DeleteServiceLinkedRole"], [role]),
        _allow(["s3:GetBucketLocation", "s3:GetBucketTagging", "s3:ListBucket"], [f"arn:aws:s3:::{NAME}-{account}-*"]),
        _allow(buckets, [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]),
        _allow(
            ["budgets:ViewBudget", "budgets:ModifyBudget", "budgets:TagResource"],
            [f"arn:aws:budgets::{account}:budget/*"],
        ),
    )


def _pass_to_machines(role: str) -> dict[str, Any]:
    """docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_use_passrole.html"""
    return _allow(["iam:PassRole"], [role], {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}})


def _policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _tagged(tag: str) -> dict[str, Any]:
    """A condition: the thing has this tag, with any value."""
    return {"Null": {f"aws:ResourceTag/{tag}": "false"}}


def _allow(actions: list[str], resources: list[str], condition: dict[str, Any] | None = None) -> dict[str, Any]:
    allowed: dict[str, Any] = {"Effect": "Allow", "Action": actions, "Resource": resources}
    return allowed | ({"Condition": condition} if condition else {})
