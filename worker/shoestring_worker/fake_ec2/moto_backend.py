# SPDX-License-Identifier: Apache-2.0
"""What the fake reads and changes in moto's memory: its API knows no states, ends and prices but its own."""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.base_backend import BackendDict
from moto.core.model_instances import reset_model_data
from moto.ec2.models import EC2Backend, elastic_ip_addresses
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.ec2.models.instances import Instance, StateReason
from moto.ec2.models.security_groups import SecurityGroup

STATE_CODES = {"pending": 0, "running": 16, "shutting-down": 32}
SERVICE = "Server."
"""How the codes of EC2's own reasons begin."""


@dataclass(frozen=True)
class MotoInstance:
    """`groups`: the security groups of its network interface; `inbound`: what these let in, for the machine host."""

    id: str
    type: str
    zone: str
    state: str
    spot: bool
    groups: tuple[str, ...]
    inbound: tuple[dict[str, Any], ...]


def find_instance(region: str, instance: str) -> MotoInstance | None:
    found = _find(region, instance)
    return found and _described(found)


def alive() -> list[tuple[str, MotoInstance]]:
    """The instances of all regions that have not ended, each with its region."""
    return [
        (region, _described(instance))
        for region in get_backend("ec2")[DEFAULT_ACCOUNT_ID]
        for instance in _instances(region)
        if instance.state != "terminated"
    ]


def volumes() -> list[str]:
    """Of all regions."""
    return [volume for backend in get_backend("ec2")[DEFAULT_ACCOUNT_ID].values() for volume in backend.volumes]


def vcpus_of(type_: str) -> int:
    """Raises KeyError for an unknown type."""
    return int(INSTANCE_TYPES[type_]["VCpuInfo"]["DefaultVCpus"])


def can_cluster(type_: str) -> bool:
    """Whether instances of the type can be in a cluster placement group."""
    return "cluster" in INSTANCE_TYPES.get(type_, {}).get("PlacementGroupInfo", {}).get("SupportedStrategies", ())


def zone_of_subnet(region: str, subnet: str) -> str:
    """An empty text: there is no such subnet."""
    zones = (zone for zone, subnets in _backend(region).subnets.items() if subnet in subnets)
    return next(zones, "")


def default_subnets(region: str) -> dict[str, str]:
    """Ids by zone."""
    return {zone: subnet.id for zone, subnet in sorted(_backend(region).get_default_subnets().items())}


def has_ended(region: str, instance: str) -> bool | None:
    """None: it never existed, or was forgotten since."""
    found = _find(region, instance)
    return None if found is None else found.state == "terminated"


def set_state(region: str, instance: str, state: str) -> None:
    found = _get(region, instance)
    found._state.name, found._state.code = state, STATE_CODES[state]


def set_private_address(region: str, instance: str, address: str) -> None:
    _get(region, instance).nics[0].private_ip_address = address


def set_spot_request(region: str, instance: str, request: str) -> None:
    _get(region, instance).spot_instance_request_id = request


def tag_interfaces(region: str, instance: str, tags: dict[str, str]) -> None:
    """As RunInstances does; moto gives them none."""
    for interface in _get(region, instance).nics.values():
        interface.add_tags(tags)


def set_launch_time(region: str, instance: str, at: datetime) -> None:
    _get(region, instance).launch_time = at.replace(tzinfo=None)


def end_instance(region: str, instance: str, code: str, message: str, at: datetime | None = None) -> None:
    """Raises KeyError if there is none that runs."""
    found = _get(region, instance)
    if found.state == "terminated":
        raise KeyError(instance)
    found.terminate()
    who = "Service" if code.startswith(SERVICE) else "User"
    found._reason = f"{who} initiated ({at or datetime.now(UTC):%Y-%m-%d %H:%M:%S} GMT)"
    found.state_reason = StateReason(f"{code}: {message}", code)
    release_addresses_of_ended(region)


def release_addresses_of_ended(region: str) -> None:
    """Elastic addresses go with no instance that has ended, as moto's do.

    docs.aws.amazon.com/AWSEC2/latest/UserGuide/working-with-eips.html
    """
    for address in _backend(region).addresses:
        if address.instance is not None and address.instance.state == "terminated":
            address.instance = address.eni = address.association_id = None


def use_test_addresses() -> None:
    """Make elastic addresses of RFC 2544's block, which can be routed; moto's are of loopback."""
    block = ipaddress.IPv4Network("198.18.0.0/15")
    elastic_ip_addresses.random_ip = lambda: str(block[1 + secrets.randbelow(block.num_addresses - 2)])


def elastic_address(region: str, allocation: str) -> str:
    return str(next(each.public_ip for each in _backend(region).addresses if each.allocation_id == allocation))


def forget(region: str, instance: str) -> None:
    """Undo a launch, as if there had never been one."""
    _get(region, instance).terminate()
    backend = _backend(region)
    backend.reservations = {
        id_: reservation
        for id_, reservation in backend.reservations.items()
        if instance not in {one.id for one in reservation.instances}
    }


def role_of_profile(named: str) -> str | None:
    """Name of the role in the instance profile of this name or ARN; "": there is none in it. None: no such profile."""
    profiles = get_backend("iam")[DEFAULT_ACCOUNT_ID]["aws"].instance_profiles.values()
    found = next((each for each in profiles if named in (each.name, each.arn)), None)
    return None if found is None else next((str(role.name) for role in found.roles), "")


def inline_policies(role: str) -> list[dict[str, Any]]:
    """Raises KeyError for an unknown role."""
    roles = get_backend("iam")[DEFAULT_ACCOUNT_ID]["aws"].roles.values()
    found = {each.name: each for each in roles}[role]
    return [json.loads(document) for document in found.policies.values()]


def create_bucket(name: str) -> None:
    """In us-east-1."""
    get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(name, "us-east-1")


def reset() -> None:
    """Forget everything."""
    BackendDict.reset()
    reset_model_data()


def _described(instance: Instance) -> MotoInstance:
    zone, spot = instance.availability_zone or "", instance.lifecycle == "spot"
    groups = instance.nics[0].group_set
    inbound = tuple(rule for group in groups for rule in _inbound(group))
    ids = tuple(str(group.id) for group in groups)
    return MotoInstance(instance.id, instance.instance_type, zone, instance.state, spot, ids, inbound)


def _inbound(group: SecurityGroup) -> Iterator[dict[str, Any]]:
    """IPv4 alone. A default group lets in what comes from itself, which moto's doesn't.

    docs.aws.amazon.com/vpc/latest/userguide/default-security-group.html
    """
    if group.is_default:
        yield {"protocol": "-1", "source": group.id}
    for rule in group.ingress_rules:
        if source := rule.source_group.get("GroupId") or rule.cidr_ipv4:
            inbound = {"protocol": rule.ip_protocol, "source": source}
            if rule.ip_protocol in ("tcp", "udp"):
                inbound |= {"first_port": rule.from_port, "last_port": rule.to_port}
            yield inbound


def _get(region: str, instance: str) -> Instance:
    """Raises KeyError."""
    if (found := _find(region, instance)) is None:
        raise KeyError(instance)
    return found


def _find(region: str, instance: str) -> Instance | None:
    return next((one for one in _instances(region) if one.id == instance), None)


def _instances(region: str) -> Iterator[Instance]:
    for reservation in _backend(region).reservations.values():
        yield from reservation.instances


def _backend(region: str) -> EC2Backend:
    return get_backend("ec2")[DEFAULT_ACCOUNT_ID][region]
