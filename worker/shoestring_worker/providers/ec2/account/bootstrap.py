# SPDX-License-Identifier: Apache-2.0
"""Make what an account needs for machines. What is there is left as it is, so that it can be run again at any time.

Each thing carries its mark from the call on that makes it, so that one that was stopped half-way finds what it made.
Nothing here costs money while no machine runs: VPC, subnets, internet gateway and gateway endpoint are free.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shoestring_worker.providers.ec2.account import policies
from shoestring_worker.providers.ec2.account.aws import GLOBAL_REGION, Aws, AwsError
from shoestring_worker.providers.ec2.account.inventory import spot_role
from shoestring_worker.providers.ec2.account.ownership import (
    BUDGET,
    NAME,
    OURS,
    ROLE_DESCRIPTION,
    SPOT_ROLE,
    SPOT_SERVICE,
    TAGS,
    bucket_name,
    has_account_tag,
    tag_specifications,
)

NETWORK = "10.83"
"""The first half of a VPC's addresses: a /16, of which each zone's subnet has a /20."""
ABORT_AFTER_DAYS = 1
ALARM_AT_PERCENT = 80.0
NO_IMAGE = "ami-00000000"
"""Stands in the settings where --image was not given."""


@dataclass(frozen=True)
class Wanted:
    """`email`: where AWS Budgets writes; None: no alarm. `monthly_usd`: the limit of which it writes at 80 %."""

    regions: tuple[str, ...]
    email: str | None = None
    monthly_usd: str = "50"
    image: str = NO_IMAGE
    dry_run: bool = False


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


def bootstrap(aws: Aws, wanted: Wanted, report: Callable[[str], None]) -> Made:
    """Raises AwsError; what was made stays, and the next run goes on from there."""
    made = Made(account=aws.account())
    builder = _Builder(aws, wanted, made, report)
    for region in wanted.regions:
        builder.network(region)
    builder.spot_role()
    builder.bucket(wanted.regions[0])
    builder.budget()
    arguments = (made.account, list(wanted.regions), made.bucket)
    made.policies = {
        "API and worker": policies.worker_policy(*arguments),
        "shoestring aws": policies.account_policy(*arguments),
    }
    return made


def environment(made: Made) -> dict[str, str]:
    """The variables of a service that uses it."""
    return {
        "SHOESTRING_PROVIDERS": "ec2",
        "SHOESTRING_EC2_REGIONS": json.dumps(made.settings),
        "SHOESTRING_OBJECT_STORE": f"s3://{made.bucket}/service",
        "AWS_DEFAULT_REGION": next(iter(made.settings)),
        "SHOESTRING_TIMEOUTS__FUNDING_LEASE": "15m",
        "SHOESTRING_TIMEOUTS__MACHINE_LEASE": "90s",
    }


class _Builder:
    def __init__(self, aws: Aws, wanted: Wanted, made: Made, report: Callable[[str], None]) -> None:
        self._aws, self._wanted, self._made, self._report = aws, wanted, made, report

    def network(self, region: str) -> None:
        """A VPC with a public subnet in each zone, and a security group in which machines reach each other alone."""

        def create(method: str, **arguments: Any) -> dict[str, Any]:
            return self._aws.write("ec2", region, method, **arguments)

        def tagged(kind: str) -> list[dict[str, Any]]:
            return self._aws.read_all("ec2", region, f"describe_{kind}", _KEYS[kind], Filters=OURS)

        vpc = self._ensure(
            f"VPC {NETWORK}.0.0/16 in {region}",
            _first(tagged("vpcs"), "VpcId"),
            lambda: create("create_vpc", CidrBlock=f"{NETWORK}.0.0/16", TagSpecifications=tag_specifications("vpc"))[
                "Vpc"
            ]["VpcId"],
        )
        gateways = tagged("internet_gateways")
        gateway = self._ensure(
            f"internet gateway in {region}",
            _first(gateways, "InternetGatewayId"),
            lambda: create("create_internet_gateway", TagSpecifications=tag_specifications("internet-gateway"))[
                "InternetGateway"
            ]["InternetGatewayId"],
        )
        attached = [each for each in gateways if each["InternetGatewayId"] == gateway and each["Attachments"]]
        self._ensure(
            "the gateway attached to the VPC",
            gateway if attached else None,
            lambda: create("attach_internet_gateway", InternetGatewayId=gateway, VpcId=vpc) and str(gateway),
        )
        table, routes = self._main_routes(region, vpc)
        self._ensure(
            "route to the internet, with no NAT gateway",
            table if "0.0.0.0/0" in routes else None,
            lambda: create(
                "create_route", RouteTableId=table or self._main_routes(region, vpc)[0],
                DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway,
            ) and "0.0.0.0/0",
        )  # fmt: skip
        subnets = {each["AvailabilityZone"]: each["SubnetId"] for each in tagged("subnets") if each["VpcId"] == vpc}
        zones = {}
        for zone in self._zones(region):
            block = f"{NETWORK}.{16 * (ord(zone[-1]) - ord('a'))}.0/20"

            def create_subnet(zone: str = zone, block: str = block) -> str:
                tags = tag_specifications("subnet")
                subnet = create(
                    "create_subnet", VpcId=vpc, AvailabilityZone=zone, CidrBlock=block, TagSpecifications=tags
                )
                return str(subnet["Subnet"]["SubnetId"])

            zones[zone] = self._ensure(f"public subnet {block} in {zone}", subnets.get(zone), create_subnet)
        group = self._group(region, vpc, tagged("security_groups"), create)
        endpoints = [each for each in tagged("vpc_endpoints") if each["State"] not in ("deleting", "deleted")]
        self._ensure(
            f"S3 gateway endpoint in {region}",
            _first(endpoints, "VpcEndpointId"),
            lambda: create(
                "create_vpc_endpoint", VpcId=vpc, ServiceName=f"com.amazonaws.{region}.s3", VpcEndpointType="Gateway",
                RouteTableIds=[table or self._main_routes(region, vpc)[0]],
                TagSpecifications=tag_specifications("vpc-endpoint"),
            )["VpcEndpoint"]["VpcEndpointId"],
        )  # fmt: skip
        self._made.settings[region] = {
            "image": self._wanted.image, "subnets": zones, "security_groups": [group],
        }  # fmt: skip

    def _group(
        self, region: str, vpc: str | None, groups: list[dict[str, Any]], create: Callable[..., dict[str, Any]]
    ) -> str | None:
        group = self._ensure(
            f"security group {NAME} in {region}",
            _first([each for each in groups if each["VpcId"] == vpc], "GroupId"),
            lambda: create(
                "create_security_group", GroupName=NAME, VpcId=vpc, Description="Machines of a gang reach each other",
                TagSpecifications=tag_specifications("security-group"),
            )["GroupId"],
        )  # fmt: skip
        allowed = [each for each in groups if each["GroupId"] == group and each["IpPermissions"]]
        among = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
        self._ensure(
            "its only rule for what comes in: from the same group",
            group if allowed else None,
            lambda: create("authorize_security_group_ingress", GroupId=group, IpPermissions=among) and str(group),
        )
        return group

    def spot_role(self) -> None:
        """The service-linked role that EC2 needs for spot machines: one for the whole account."""
        found = spot_role(self._aws)
        self._ensure(
            "service-linked role for spot machines",
            str(found["RoleName"]) if found else None,
            lambda: self._aws.write(
                "iam", GLOBAL_REGION, "create_service_linked_role",
                AWSServiceName=SPOT_SERVICE, Description=ROLE_DESCRIPTION,
            ) and SPOT_ROLE,
        )  # fmt: skip

    def bucket(self, region: str) -> None:
        """A private bucket, without public access, which forgets uploads that nobody completes."""
        name = self._made.bucket = bucket_name(self._made.account, region)

        def change(method: str, **arguments: Any) -> str:
            self._aws.write("s3", region, method, Bucket=name, **arguments)
            return name

        there = any(each["Name"] == name for each in self._aws.read("s3", region, "list_buckets")["Buckets"])
        where = {} if region == GLOBAL_REGION else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        self._ensure(f"bucket {name}", name if there else None, lambda: change("create_bucket", **where))
        tags = self._bucket_part(region, "get_bucket_tagging").get("TagSet", []) if there else []
        if there and not has_account_tag(tags):
            self._refuse_foreign(region, name, tags)
        self._ensure(
            "tag of the bucket",
            name if has_account_tag(tags) else None,
            lambda: change("put_bucket_tagging", Tagging={"TagSet": TAGS}),
        )
        blocked = self._bucket_part(region, "get_public_access_block").get("PublicAccessBlockConfiguration", {})
        flags = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
        self._ensure(
            "public access to the bucket blocked",
            name if blocked and all(blocked.get(flag) for flag in flags) else None,
            lambda: change("put_public_access_block", PublicAccessBlockConfiguration=dict.fromkeys(flags, True)),
        )
        rules = self._bucket_part(region, "get_bucket_lifecycle_configuration").get("Rules", [])
        rule = {
            "ID": "aborted-uploads", "Status": "Enabled", "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORT_AFTER_DAYS},
        }  # fmt: skip
        self._ensure(
            "rule that removes aborted uploads",
            name if any("AbortIncompleteMultipartUpload" in each for each in rules) else None,
            lambda: change("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [*rules, rule]}),
        )

    def budget(self) -> None:
        """An alarm of AWS Budgets by e-mail: a witness that doesn't depend on this service."""
        if self._wanted.email is None:
            self._say("AWS Budgets writes to nobody: name an address with --email")
            return
        account, limit = self._made.account, {"Amount": self._wanted.monthly_usd, "Unit": "USD"}
        try:
            known = self._aws.read(
                "budgets", GLOBAL_REGION, "describe_budget", AccountId=account, BudgetName=BUDGET
            )["Budget"]["BudgetName"]  # fmt: skip
        except AwsError as error:
            if error.code != "NotFoundException":
                raise
            known = None
        notification = {
            "NotificationType": "ACTUAL", "ComparisonOperator": "GREATER_THAN",
            "Threshold": ALARM_AT_PERCENT, "ThresholdType": "PERCENTAGE",
        }  # fmt: skip
        to = [{"SubscriptionType": "EMAIL", "Address": self._wanted.email}]

        def create() -> str:
            self._aws.write(
                "budgets", GLOBAL_REGION, "create_budget", AccountId=account,
                Budget={"BudgetName": BUDGET, "BudgetType": "COST", "TimeUnit": "MONTHLY", "BudgetLimit": limit},
                NotificationsWithSubscribers=[{"Notification": notification, "Subscribers": to}],
                ResourceTags=TAGS,
            )  # fmt: skip
            return BUDGET

        what = f"alarm of AWS Budgets at {ALARM_AT_PERCENT:.0f} % of ${self._wanted.monthly_usd} a month"
        self._ensure(what, known, create)

    def _ensure(self, what: str, found: str | None, create: Callable[[], Any]) -> str | None:
        """The id of what there is, or of what is created now; None in a dry run that would create it."""
        if found is not None:
            self._say(f"there is  {what}: {found}")
            return found
        self._made.created += 1
        if self._wanted.dry_run:
            self._say(f"to create {what}")
            return None
        created = str(create())
        self._say(f"created   {what}: {created}")
        return created

    def _say(self, step: str) -> None:
        self._made.steps.append(step)
        self._report(step)

    def _zones(self, region: str) -> list[str]:
        """Availability Zones: Local and Wavelength Zones have prices of their own."""
        zones = self._aws.read("ec2", region, "describe_availability_zones")["AvailabilityZones"]
        return sorted(zone["ZoneName"] for zone in zones if zone.get("ZoneType") == "availability-zone")

    def _main_routes(self, region: str, vpc: str | None) -> tuple[str | None, set[str]]:
        """The VPC's main route table, which its subnets use, and its destinations."""
        if vpc is None:
            return None, set()
        of_vpc = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "association.main", "Values": ["true"]}]
        (table,) = self._aws.read("ec2", region, "describe_route_tables", Filters=of_vpc)["RouteTables"]
        return table["RouteTableId"], {route.get("DestinationCidrBlock", "") for route in table["Routes"]}

    def _bucket_part(self, region: str, method: str) -> dict[str, Any]:
        """A part of the bucket's configuration; {} if it has none."""
        try:
            return self._aws.read("s3", region, method, Bucket=self._made.bucket)
        except AwsError as error:
            if error.code.startswith("NoSuch"):
                return {}
            raise

    def _refuse_foreign(self, region: str, name: str, tags: list[Any]) -> None:
        """An empty one without tags is ours: it was made just before this command was stopped."""
        if tags or self._aws.read("s3", region, "list_objects_v2", Bucket=name, MaxKeys=1).get("KeyCount"):
            raise AwsError(
                f"The bucket {name} is there and was not made by this command: it isn't changed. "
                "Empty it, or tag it with shoestring-account=bootstrap to have it used."
            )


_KEYS = {
    "vpcs": "Vpcs",
    "internet_gateways": "InternetGateways",
    "subnets": "Subnets",
    "security_groups": "SecurityGroups",
    "vpc_endpoints": "VpcEndpoints",
}


def _first(found: list[dict[str, Any]], id_: str) -> str | None:
    return min((str(each[id_]) for each in found), default=None)
