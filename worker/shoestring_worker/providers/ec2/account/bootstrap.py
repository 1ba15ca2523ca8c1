# SPDX-License-Identifier: Apache-2.0
"""Make what an account needs for machines. What is there is left as it is, so that it can be run again at any time.

Resources are tagged by the call that creates them, so that after an interrupted run the next one finds them.
Nothing here costs money while no machine runs: VPC, subnets, internet gateway and gateway endpoint are free.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shoestring_worker.providers.ec2.account import policies
from shoestring_worker.providers.ec2.account.aws import GLOBAL_REGION, Aws, AwsError
from shoestring_worker.providers.ec2.account.base_image import BASE, find_image
from shoestring_worker.providers.ec2.account.bucket import make_bucket
from shoestring_worker.providers.ec2.account.data_role import DATA_ROLE, find_data_role
from shoestring_worker.providers.ec2.account.inventory import spot_role
from shoestring_worker.providers.ec2.account.network import make_network
from shoestring_worker.providers.ec2.account.ownership import (
    BUDGET,
    ROLE_DESCRIPTION,
    SPOT_ROLE,
    SPOT_SERVICE,
    TAGS,
    bucket_name,
    object_store,
)
from shoestring_worker.providers.ec2.account.steps import Steps

ALARM_AT_PERCENT = 80.0


@dataclass(frozen=True)
class Wanted:
    """
    email        where AWS Budgets writes; None: no alarm
    monthly_usd  the limit of which it writes at 80 %
    image        of machines, with our environment; "": AWS's base image, newest now
    data_role    instance profile of machines whose job's data are in S3; "": none
    """

    regions: tuple[str, ...]
    email: str | None = None
    monthly_usd: str = "50"
    image: str = ""
    dry_run: bool = False
    data_role: str = ""


@dataclass
class Made:
    """What a service needs to know. `steps`: what was done, or would be, a sentence each; `created`: how many."""

    account: str = ""
    bucket: str = ""
    steps: list[str] = field(default_factory=list)
    created: int = 0
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The value of SHOESTRING_EC2_REGIONS."""
    policies: dict[str, Any] = field(default_factory=dict)
    data_role: str = ""
    """As it was wanted: the service's setting."""


def bootstrap(aws: Aws, wanted: Wanted, report: Callable[[str], None]) -> Made:
    """Raises AwsError; what was made stays, and the next run continues from there."""
    steps = Steps(report, wanted.dry_run)
    account, home = aws.account(), wanted.regions[0]
    data_role = find_data_role(aws, wanted.data_role)
    bucket = bucket_name(account, home)
    settings = {}
    for region in wanted.regions:
        subnets, group = make_network(aws, region, steps)
        image = wanted.image or find_image(aws, region, BASE)
        steps.say(f"machines  boot {image} in {region}" + ("" if wanted.image else f", {BASE.what}"))
        settings[region] = {"image": image, "subnets": subnets, "security_groups": [group]}
    _make_spot_role(aws, steps)
    make_bucket(aws, home, bucket, steps)
    _make_alarm(aws, account, wanted, steps)
    arguments = (account, list(wanted.regions), bucket)
    printed = {
        "API and worker": policies.worker_policy(*arguments, data_role),
        "shoestring aws": policies.account_policy(*arguments),
    }
    return Made(account, bucket, steps.told, steps.created, settings, printed, wanted.data_role)


def environment(made: Made, wheelhouse: str) -> dict[str, str]:
    """The variables of a service that uses it. `wheelhouse`: its name; "": the image has our environment."""
    given = {"SHOESTRING_EC2_WHEELHOUSE": wheelhouse, DATA_ROLE: made.data_role}
    return {name: value for name, value in given.items() if value} | {
        "SHOESTRING_PROVIDERS": "ec2",
        "SHOESTRING_EC2_REGIONS": json.dumps(made.settings),
        "SHOESTRING_OBJECT_STORE": object_store(made.bucket),
        "AWS_DEFAULT_REGION": next(iter(made.settings)),
        "SHOESTRING_TIMEOUTS__FUNDING_LEASE": "15m",
        "SHOESTRING_TIMEOUTS__MACHINE_LEASE": "90s",
    }


def _make_spot_role(aws: Aws, steps: Steps) -> None:
    """The service-linked role that EC2 needs for spot machines: one for the whole account."""
    found = spot_role(aws)
    steps.ensure(
        "service-linked role for spot machines",
        str(found["RoleName"]) if found else None,
        lambda: aws.write(
            "iam", GLOBAL_REGION, "create_service_linked_role",
            AWSServiceName=SPOT_SERVICE, Description=ROLE_DESCRIPTION,
        ) and SPOT_ROLE,
    )  # fmt: skip


def _make_alarm(aws: Aws, account: str, wanted: Wanted, steps: Steps) -> None:
    """An alarm of AWS Budgets by e-mail: a witness that doesn't depend on this service."""
    if wanted.email is None:
        steps.say("AWS Budgets writes to nobody: name an address with --email")
        return
    try:
        known = aws.read(
            "budgets", GLOBAL_REGION, "describe_budget", AccountId=account, BudgetName=BUDGET
        )["Budget"]["BudgetName"]  # fmt: skip
    except AwsError as error:
        if error.code != "NotFoundException":
            raise
        known = None
    limit = {"Amount": wanted.monthly_usd, "Unit": "USD"}
    notification = {
        "NotificationType": "ACTUAL", "ComparisonOperator": "GREATER_THAN",
        "Threshold": ALARM_AT_PERCENT, "ThresholdType": "PERCENTAGE",
    }  # fmt: skip
    to = [{"SubscriptionType": "EMAIL", "Address": wanted.email}]

    def create() -> str:
        aws.write(
            "budgets", GLOBAL_REGION, "create_budget", AccountId=account,
            Budget={"BudgetName": BUDGET, "BudgetType": "COST", "TimeUnit": "MONTHLY", "BudgetLimit": limit},
            NotificationsWithSubscribers=[{"Notification": notification, "Subscribers": to}],
            ResourceTags=TAGS,
        )  # fmt: skip
        return BUDGET

    what = f"alarm of AWS Budgets at {ALARM_AT_PERCENT:.0f} % of ${wanted.monthly_usd} a month"
    steps.ensure(what, known, create)
