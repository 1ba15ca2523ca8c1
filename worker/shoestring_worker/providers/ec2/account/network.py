# SPDX-License-Identifier: Apache-2.0
"""The network of machines in a region: a VPC with a public subnet in each zone, in which only a gang reaches itself."""

from __future__ import annotations

from typing import Any

from shoestring_worker.providers.ec2.account.aws import Aws
from shoestring_worker.providers.ec2.account.ownership import NAME, OURS, tag_specifications
from shoestring_worker.providers.ec2.account.steps import Steps

ADDRESSES = "10.83"
"""The first half of a VPC's addresses: a /16, of which each zone's subnet has a /20."""
EVERYWHERE = "0.0.0.0/0"
_KEYS = {
    "vpcs": "Vpcs",
    "internet_gateways": "InternetGateways",
    "subnets": "Subnets",
    "security_groups": "SecurityGroups",
    "vpc_endpoints": "VpcEndpoints",
}


def make_network(aws: Aws, region: str, steps: Steps) -> tuple[dict[str, str | None], str | None]:
    """Returns the subnets by zone, and the security group. Raises AwsError."""
    return _Network(aws, region, steps).make()


class _Network:
    def __init__(self, aws: Aws, region: str, steps: Steps) -> None:
        self._aws, self._region, self._steps = aws, region, steps

    def make(self) -> tuple[dict[str, str | None], str | None]:
        vpc = self._steps.ensure(
            f"VPC {ADDRESSES}.0.0/16 in {self._region}",
            _first(self._tagged("vpcs"), "VpcId"),
            lambda: self._create(
                "create_vpc", CidrBlock=f"{ADDRESSES}.0.0/16", TagSpecifications=tag_specifications("vpc")
            )["Vpc"]["VpcId"],
        )
        gateway = self._gateway(vpc)
        table, routes = self._main_routes(vpc)
        known = routes.get(EVERYWHERE)
        # one to a gateway that was removed leads nowhere; one that somebody made to something else stays
        is_stale = known is not None and known.startswith("igw-") and known != gateway
        self._steps.ensure(
            "route to the internet, with no NAT gateway",
            None if known is None or is_stale else table,
            lambda: self._create(
                "replace_route" if is_stale else "create_route", RouteTableId=table or self._main_routes(vpc)[0],
                DestinationCidrBlock=EVERYWHERE, GatewayId=gateway,
            ) and EVERYWHERE,
        )  # fmt: skip
        subnets, group = self._subnets(vpc), self._group(vpc)
        endpoints = [
            each
            for each in self._tagged("vpc_endpoints")
            if each["State"] not in ("deleting", "deleted") and each["VpcId"] == vpc
        ]
        self._steps.ensure(
            f"S3 gateway endpoint in {self._region}",
            _first(endpoints, "VpcEndpointId"),
            lambda: self._create(
                "create_vpc_endpoint", VpcId=vpc, ServiceName=f"com.amazonaws.{self._region}.s3",
                VpcEndpointType="Gateway", RouteTableIds=[table or self._main_routes(vpc)[0]],
                TagSpecifications=tag_specifications("vpc-endpoint"),
            )["VpcEndpoint"]["VpcEndpointId"],
        )  # fmt: skip
        return subnets, group

    def _gateway(self, vpc: str | None) -> str | None:
        """The VPC's own: of two bootstraps at once, each may have made a VPC with a gateway."""
        gateways = self._tagged("internet_gateways")
        attached = [each for each in gateways if any(one["VpcId"] == vpc for one in each["Attachments"])]
        free = [each for each in gateways if not each["Attachments"]]
        gateway = self._steps.ensure(
            f"internet gateway in {self._region}",
            _first(attached or free, "InternetGatewayId"),
            lambda: self._create("create_internet_gateway", TagSpecifications=tag_specifications("internet-gateway"))[
                "InternetGateway"
            ]["InternetGatewayId"],
        )
        self._steps.ensure(
            "the gateway attached to the VPC",
            gateway if attached else None,
            lambda: self._create("attach_internet_gateway", InternetGatewayId=gateway, VpcId=vpc) and str(gateway),
        )
        return gateway

    def _subnets(self, vpc: str | None) -> dict[str, str | None]:
        known = {each["AvailabilityZone"]: each["SubnetId"] for each in self._tagged("subnets") if each["VpcId"] == vpc}
        made = {}
        for zone in self._zones():
            block = f"{ADDRESSES}.{16 * (ord(zone[-1]) - ord('a'))}.0/20"

            def create(zone: str = zone, block: str = block) -> str:
                where = {"VpcId": vpc, "AvailabilityZone": zone, "CidrBlock": block}
                subnet = self._create("create_subnet", **where, TagSpecifications=tag_specifications("subnet"))
                return str(subnet["Subnet"]["SubnetId"])

            made[zone] = self._steps.ensure(f"public subnet {block} in {zone}", known.get(zone), create)
        return made

    def _group(self, vpc: str | None) -> str | None:
        named = [each for each in self._tagged("security_groups") if each["VpcId"] == vpc and each["GroupName"] == NAME]
        group = self._steps.ensure(
            f"security group {NAME} in {self._region}",
            _first(named, "GroupId"),
            lambda: self._create(
                "create_security_group", GroupName=NAME, VpcId=vpc, Description="Machines of a gang reach each other",
                TagSpecifications=tag_specifications("security-group"),
            )["GroupId"],
        )  # fmt: skip
        among = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
        self._steps.ensure(
            "its only rule for what comes in: from the same group",
            group if any(each["IpPermissions"] for each in named) else None,
            lambda: self._create("authorize_security_group_ingress", GroupId=group, IpPermissions=among) and str(group),
        )
        outward = [rule for each in named for rule in each.get("IpPermissionsEgress", []) if rule["UserIdGroupPairs"]]
        self._steps.ensure(
            "a rule for what goes out to the same group, which EFA needs by name",
            group if outward else None,
            lambda: self._create("authorize_security_group_egress", GroupId=group, IpPermissions=among) and str(group),
        )
        return group

    def _create(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self._aws.write("ec2", self._region, method, **arguments)

    def _tagged(self, kind: str) -> list[dict[str, Any]]:
        return self._aws.read_all("ec2", self._region, f"describe_{kind}", _KEYS[kind], Filters=OURS)

    def _zones(self) -> list[str]:
        """Availability Zones: Local and Wavelength Zones have prices of their own."""
        zones = self._aws.read("ec2", self._region, "describe_availability_zones")["AvailabilityZones"]
        return sorted(zone["ZoneName"] for zone in zones if zone.get("ZoneType") == "availability-zone")

    def _main_routes(self, vpc: str | None) -> tuple[str | None, dict[str, str]]:
        """The VPC's main route table, which its subnets use, and the gateways of its destinations; "": no gateway."""
        if vpc is None:
            return None, {}
        of_vpc = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "association.main", "Values": ["true"]}]
        (table,) = self._aws.read("ec2", self._region, "describe_route_tables", Filters=of_vpc)["RouteTables"]
        return table["RouteTableId"], {
            route.get("DestinationCidrBlock", ""): route.get("GatewayId", "") for route in table["Routes"]
        }


def _first(found: list[dict[str, Any]], id_: str) -> str | None:
    return min((str(each[id_]) for each in found), default=None)
