# SPDX-License-Identifier: Apache-2.0
"""What EC2 reports of instance types, and the price list doesn't: network, placement groups, EFA.

source  docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceTypeInfo.html, API_NetworkCardInfo.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shoestring_core.decide.offers import Offer


@dataclass(frozen=True)
class TypeFacts:
    """network_mbps: of its first network card, without bursts; None: not told."""

    network_mbps: int | None
    cluster: bool
    efa: bool


def read_instance_types(ec2: Any, types: Sequence[str]) -> dict[str, TypeFacts]:
    """By type, of those that the client's region has. Raises ClientError and BotoCoreError."""
    chosen = [{"Name": "instance-type", "Values": list(types)}]  # an InstanceTypes that isn't there would be an error
    pages = ec2.get_paginator("describe_instance_types").paginate(Filters=chosen)
    return {found["InstanceType"]: _facts(found) for page in pages for found in page["InstanceTypes"]}


def with_types(offers: Iterable[Offer], known: Mapping[str, Mapping[str, TypeFacts]]) -> list[Offer]:
    """The offers with what is known of their types. `known`: by region and type."""
    return [_with_facts(offer, known.get(offer.region, {}).get(offer.type)) for offer in offers]


def _facts(found: Mapping[str, Any]) -> TypeFacts:
    network = found.get("NetworkInfo", {})
    baseline = next((card.get("BaselineBandwidthInGbps") for card in network.get("NetworkCards", [])), None)
    strategies = found.get("PlacementGroupInfo", {}).get("SupportedStrategies", [])
    return TypeFacts(
        round(1000 * baseline) if baseline else None, "cluster" in strategies, bool(network.get("EfaSupported"))
    )


def _with_facts(offer: Offer, facts: TypeFacts | None) -> Offer:
    if facts is None or offer.hardware is None:
        return offer
    hardware = replace(offer.hardware, network_mbps=facts.network_mbps, cluster=facts.cluster, efa=facts.efa)
    return replace(offer, hardware=hardware)
