# SPDX-License-Identifier: Apache-2.0
"""Offers of the providers that workers serve, and those of built-in price lists for the others."""

from __future__ import annotations

from collections.abc import Collection

from shoestring_core import catalog, money, rest
from shoestring_core.decide.billing import BillingRules
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import Placement, rank_offers
from shoestring_core.decide.requirements import Requirements
from shoestring_core.errors import InvalidRequest
from shoestring_core.spec.gpus import parse_gpus

from shoestring_api.serializers.times import to_datetime


def select_offers(stored: Collection[Offer], served: Collection[str], gpu: str | None, region: str | None) -> Placement:
    """The cheapest first. `gpu`: as in a spec; `served`: the providers that workers serve. Raises InvalidRequest."""
    try:
        gpus = parse_gpus(gpu or "none")
    except ValueError as error:
        raise InvalidRequest(f"{error}. Such are L4, A100:8, A100:80GB, 24GB.., any.") from None
    listed = [
        offer
        for prices in catalog.price_lists()
        if prices.provider not in served
        for offer in prices.offers({prices.on_demand_region: [""]}, None, BillingRules())
    ]
    return rank_offers([*stored, *listed], Requirements(regions=(region,) if region else (), gpus=gpus))


def serialize_not_offered(regions: Collection[str]) -> list[rest.NotOffered]:
    """`regions`: in which machines are offered."""
    return [
        rest.NotOffered(
            provider=prices.provider,
            types=list(left_out.types),
            regions=[region for region in left_out.regions if region not in regions],
            reason=rest.Reason.of(left_out.reason),
        )
        for prices in catalog.price_lists()
        for left_out in prices.all_left_out()
    ]


def serialize_offer(offer: Offer, available: bool) -> rest.Offer:
    hardware = offer.hardware
    return rest.Offer(
        provider=offer.provider,
        region=offer.region,
        zone=offer.zone,
        type=offer.type,
        market=offer.market,
        price_per_hour=rest.Money.of(money.from_decimal(offer.price)),
        on_demand_per_hour=rest.Money.of(money.from_decimal(offer.on_demand_price)),
        price_source=offer.source,
        fetched_at=to_datetime(offer.fetched_at),
        simulated=offer.simulated,
        available=available,
        gpu=hardware.gpu if hardware else None,
        gpus=hardware.gpus if hardware else 0,
        gpu_memory_mib=hardware.gpu_memory_mib if hardware else 0,
        vcpus=hardware.vcpus if hardware else None,
        memory_mib=hardware.memory_mib if hardware else None,
        interruption=offer.interruption,
        cluster=bool(hardware and hardware.cluster),
        efa=bool(hardware and hardware.efa),
    )
