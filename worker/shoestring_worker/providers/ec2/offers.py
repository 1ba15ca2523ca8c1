# SPDX-License-Identifier: Apache-2.0
"""Offers in the configured zones: on demand at the prices of the built-in list, spot at what EC2 says now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from shoestring_core import catalog
from shoestring_core.decide.billing import BillingRules
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.timeouts import S

from shoestring_worker.providers.ec2.settings import Ec2Settings

BILLING = BillingRules(minimum=60 * S)
"""Per second, at least a minute: aws.amazon.com/ec2/pricing/on-demand"""

SPOT_SOURCE = "EC2 DescribeSpotPriceHistory"
SpotPrices = Mapping[tuple[str, str], str]
"""Dollars per hour by zone and type."""


def make_offers(provider: str, settings: Ec2Settings) -> list[Offer]:
    zones = {region: list(of_region.subnets) for region, of_region in settings.regions.items()}
    offers = catalog.price_list_of(provider).offers(zones, settings.max_machines, BILLING)
    affordable = [offer for offer in offers if Decimal(offer.on_demand_price) <= Decimal(settings.max_price)]
    return [replace(offer, simulated=settings.simulated) for offer in affordable]


def read_spot_prices(history: Iterable[Mapping[str, Any]]) -> SpotPrices:
    """The latest price in a SpotPriceHistory of each zone and type."""
    by_time = sorted(history, key=lambda price: price["Timestamp"])
    return {(price["AvailabilityZone"], price["InstanceType"]): price["SpotPrice"] for price in by_time}


def with_spot_prices(offers: Iterable[Offer], prices: SpotPrices) -> list[Offer]:
    """The offers at these prices. A type that has no spot price in a zone is not offered there as spot, and neither is
    one whose spot price exceeds that on demand: EC2 would not launch it."""
    priced = []
    for offer in offers:
        if offer.market == "on_demand":
            priced.append(offer)
        elif (price := prices.get((offer.zone, offer.type))) and Decimal(price) <= Decimal(offer.on_demand_price):
            priced.append(replace(offer, price=format(Decimal(price).normalize(), "f"), source=SPOT_SOURCE))
    return priced
