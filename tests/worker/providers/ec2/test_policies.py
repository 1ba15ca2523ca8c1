# SPDX-License-Identifier: Apache-2.0
"""The IAM policies that `bootstrap` prints allow what the code calls, and nothing that it doesn't.

Calls are read in the source, by the names that boto3's methods have. What AWS asks for each:
docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import shoestring_core.store.objects
import shoestring_worker.providers.ec2.account
from botocore import xform_name
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG
from shoestring_worker.providers.ec2.account import policies
from shoestring_worker.providers.ec2.account.ownership import ACCOUNT_TAG
from shoestring_worker.providers.ec2.account.removal import CALLS

ACCOUNT, REGION, BUCKET = "123456789012", "us-east-1", "shoestring-123456789012-us-east-1"
COMMANDS = Path(shoestring_worker.providers.ec2.account.__path__[0])
PROVIDER, OBJECTS = COMMANDS.parent, Path(shoestring_core.store.objects.__path__[0])
SERVICES = {
    "ec2": "ec2", "s3": "s3", "iam": "iam", "sts": "sts", "ssm": "ssm", "budgets": "budgets", "pricing": "pricing",
    "service-quotas": "servicequotas",
}  # fmt: skip
"""Names of IAM by those of boto3."""
OTHERWISE_NAMED = {
    "sts:GetCallerIdentity": [],
    "s3:ListBuckets": ["s3:ListAllMyBuckets"],
    "s3:HeadBucket": ["s3:ListBucket"],
    "s3:HeadObject": ["s3:GetObject"],
    "s3:ListObjectsV2": ["s3:ListBucket"],
    "s3:ListObjectVersions": ["s3:ListBucketVersions"],
    "s3:ListMultipartUploads": ["s3:ListBucketMultipartUploads"],
    "s3:CreateMultipartUpload": ["s3:PutObject"],
    "s3:UploadPart": ["s3:PutObject"],
    "s3:CompleteMultipartUpload": ["s3:PutObject"],
    "s3:DeleteObjects": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
    "s3:GetPublicAccessBlock": ["s3:GetBucketPublicAccessBlock"],
    "s3:PutPublicAccessBlock": ["s3:PutBucketPublicAccessBlock"],
    "s3:GetBucketLifecycleConfiguration": ["s3:GetLifecycleConfiguration"],
    "s3:PutBucketLifecycleConfiguration": ["s3:PutLifecycleConfiguration"],
    "budgets:DescribeBudget": ["budgets:ViewBudget"],
    "budgets:CreateBudget": ["budgets:ModifyBudget", "budgets:TagResource"],
    "budgets:DeleteBudget": ["budgets:ModifyBudget"],
}
FOR_OTHERS = {"iam:PassRole", "s3:AbortMultipartUpload"}
"""What AWS asks of who launches a machine with a role; and an aborted upload of a machine that has the URL for it."""
REMOVED_WITH = {
    DEPLOYMENT_TAG: {
        "spot request",
        "machine",
        "volume",
        "network interface",
        "address",
        "placement group",
        "image",
        "snapshot",
    },
    ACCOUNT_TAG: set(CALLS) - {"spot request", "placement group"},
}
"""Kinds of things that carry one tag alone, and that teardown removes."""


@functools.cache
def operations() -> dict[str, str]:
    """Such as "list_buckets": "s3:ListBuckets"."""
    session = botocore.session.get_session()
    return {
        xform_name(name): f"{prefix}:{name}"
        for service, prefix in SERVICES.items()
        for name in session.get_service_model(service).operation_names
        if "_" in xform_name(name)
    }


def actions_called(files: Iterator[Path]) -> set[str]:
    """IAM's actions for the methods of boto3 that these modules name, as attributes or as strings."""
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    names = {node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None) for node in nodes}
    found = {operations()[name] for name in names if isinstance(name, str) and name in operations()}
    return {action for operation in found for action in OTHERWISE_NAMED.get(operation, [operation])}


def actions_of(policy: dict[str, Any]) -> set[str]:
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def is_allowed(action: str, actions: set[str]) -> bool:
    return action in actions or (action.startswith("ec2:Describe") and "ec2:Describe*" in actions)


def allows_on_tagged(policy: dict[str, Any], action: str, tag: str) -> bool:
    """Whether it allows this on a thing with this tag and no other."""
    return any(
        action in statement["Action"]
        and all(key == f"aws:ResourceTag/{tag}" for key in statement.get("Condition", {}).get("Null", {}))
        for statement in policy["Statement"]
    )


def worker_policy() -> dict[str, Any]:
    return policies.worker_policy(ACCOUNT, [REGION], BUCKET)


def account_policy() -> dict[str, Any]:
    return policies.account_policy(ACCOUNT, [REGION], BUCKET)


def test_the_workers_policy_allows_what_the_worker_calls_and_nothing_more():
    calls = actions_called(file for folder in (PROVIDER, OBJECTS) for file in folder.glob("*.py"))
    allowed = actions_of(worker_policy())
    assert {call for call in calls if not is_allowed(call, allowed)} == set()
    assert allowed - calls - FOR_OTHERS - {"ec2:Describe*", "ec2:CreateTags"} == set()


def test_the_accounts_policy_allows_what_the_commands_call_and_nothing_more():
    calls = actions_called(COMMANDS.glob("*.py"))
    allowed = actions_of(account_policy())
    assert {call for call in calls if not is_allowed(call, allowed | actions_of(worker_policy()))} == set()
    # the checks read quotas and prices by the provider's modules
    by_provider = {"servicequotas:ListServiceQuotas", "pricing:GetProducts"}
    assert allowed - calls - FOR_OTHERS - by_provider - {"ec2:Describe*"} == set()


def test_teardown_may_remove_what_has_either_tag_and_nothing_else():
    both = {"Statement": worker_policy()["Statement"] + account_policy()["Statement"]}
    for tag, kinds in REMOVED_WITH.items():
        actions = {kind: operations()[CALLS[kind][0]] for kind in kinds}
        assert {kind for kind, action in actions.items() if not allows_on_tagged(both, action, tag)} == set()
    removing = {operations()[method] for method, _ in CALLS.values()}
    foreign = {action for action in removing if allows_on_tagged(both, action, "somebody-elses")}
    assert foreign == set()


def test_no_policy_reaches_a_foreign_bucket():
    for policy in (worker_policy(), account_policy()):
        for statement in policy["Statement"]:
            if any(action.startswith("s3:") for action in statement["Action"]) and statement["Resource"] != ["*"]:
                assert all(one.startswith(f"arn:aws:s3:::shoestring-{ACCOUNT}-") for one in statement["Resource"])
