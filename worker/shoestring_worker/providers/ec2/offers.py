# SPDX-License-Identifier: Apache-2.0
"""Offers in the configured zones: on demand by AWS's price list, or else the built-in one, spot at EC2's prices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from shoestring_core import catalog
from shoestring_core.catalog import LivePrices
from shoestring_core.decide.billing import BillingRules, PriceChange
from shoestring_core.decide.disks import billed_as
from shoestring_core.decide.offers import Disk, Offer
from shoestring_core.decide.timeouts import S

from shoestring_worker.providers.ec2.extras import gp3, public_ipv4
from shoestring_worker.providers.ec2.settings import Ec2Settings

SPOT_SOURCE = "EC2 DescribeSpotPriceHistory"
SpotPrices = Mapping[tuple[str, str], Sequence[PriceChange]]
"""How they changed, by zone and type."""


def billing_rules(settings: Ec2Settings) -> BillingRules:
    """How EC2 bills a machine of these settings. Core's `billing` names the page of AWS that each rule follows."""
    return BillingRules(
        minimum=60 * S,
        increment=S,
        pending_is_free=True,
        free_if_interrupted_within=3600 * S,
        spot_price_moves=True,
        extras=(billed_as(default_disk(settings)), public_ipv4()),
    )


def default_disk(settings: Ec2Settings) -> Disk:
    """Of machines whose job doesn't choose one."""
    return gp3(settings.disk_gib, settings.disk_iops, settings.disk_mib_per_s)


def make_offers(provider: str, settings: Ec2Settings, live: LivePrices | None = None) -> list[Offer]:
    """In the configured zones. Where the list has no saving of spot, spot is offered as well: EC2 has its price."""
    zones = {region: list(of_region.subnets) for region, of_region in settings.regions.items()}
    offers = catalog.price_list_of(provider).offers(zones, settings.max_machines, billing_rules(settings), live)
    affordable = [offer for offer in offers if Decimal(offer.on_demand_price) <= Decimal(settings.max_price)]
    spot = {(offer.zone, offer.type) for offer in affordable if offer.market == "spot"}
    unlisted = [replace(offer, market="spot") for offer in affordable if (offer.zone, offer.type) not in spot]
    return [_with_settings(offer, settings) for offer in (*affordable, *unlisted)]


def spot_types(provider: str, settings: Ec2Settings, region: str, live: LivePrices | None) -> list[str]:
    """The types that may be offered in a region, also those whose on-demand price there isn't known yet."""
    known = catalog.price_list_of(provider)
    prices = {machine.type: known.on_demand(machine, region, live) for machine in known.types}
    most = Decimal(settings.max_price)
    return sorted(type_ for type_, price in prices.items() if price is None or Decimal(price[0]) <= most)


def _with_settings(offer: Offer, settings: Ec2Settings) -> Offer:
    hardware = offer.hardware and replace(offer.hardware, simulated_gpus=settings.simulated)
    return replace(
        offer, simulated=settings.simulated, hardware=hardware, disk=default_disk(settings),
        data_role=settings.data_role or None,
    )  # fmt: skip


def read_spot_prices(history: Iterable[Mapping[str, Any]]) -> SpotPrices:
    """The changes in a SpotPriceHistory, by time."""
    changes: dict[tuple[str, str], dict[int, str]] = {}
    for price in history:
        place = (price["AvailabilityZone"], price["InstanceType"])
        dollars = format(Decimal(price["SpotPrice"]).normalize(), "f")
        of_place = changes.setdefault(place, {})
        of_place.setdefault(round(price["Timestamp"].timestamp() * S), dollars)  # the newest come first
    return {place: tuple(sorted(of_place.items())) for place, of_place in changes.items()}


def merge(known: SpotPrices, latest: SpotPrices) -> SpotPrices:
    """All changes in both."""
    both = {place: {**dict(known.get(place, ())), **dict(changes)} for place, changes in latest.items()}
    return {**known, **{place: tuple(sorted(changes.items())) for place, changes in both.items()}}


def price_changes(prices: SpotPrices, zone: str, type_: str, begin: int, end: int | None) -> tuple[PriceChange, ...]:
    """Those that hold between two times (µs UTC; None: until now), from the last one before."""
    changes = prices.get((zone, type_), ())
    earlier = [change for change in changes if change[0] <= begin]
    return (*earlier[-1:], *(change for change in changes if begin < change[0] and (end is None or change[0] < end)))


def with_spot_prices(offers: Iterable[Offer], prices: SpotPrices, source: str) -> list[Offer]:
    """The offers at these prices, which `source` says.

    A type that has no spot price in a zone is not offered there as spot, and neither is one whose spot price exceeds
    that on demand: EC2 would not launch it.
    """
    priced = []
    for offer in offers:
        if offer.market == "on_demand":
            priced.append(offer)
        elif changes := prices.get((offer.zone, offer.type)):
            _, price = changes[-1]
            if Decimal(price) <= Decimal(offer.on_demand_price):
                priced.append(replace(offer, price=price, source=source))
    return priced
