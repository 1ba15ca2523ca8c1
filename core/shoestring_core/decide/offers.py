# SPDX-License-Identifier: Apache-2.0
"""Offers: what a provider rents out now, and the cheapest one that suits a job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal


@dataclass(frozen=True)
class Offer:
    """One type of machine in one zone and market. Prices are decimal dollars per hour.

    slots       machines of this provider that may run at once, over all its offers; None: no limit
    source      where the price comes from
    simulated   nobody is charged these prices
    """

    provider: str
    region: str
    zone: str
    type: str
    market: Literal["spot", "on_demand"]
    price: str
    on_demand_price: str
    slots: int | None
    source: str
    simulated: bool


def cheapest_offer(
    offers: Iterable[Offer], provider: str, spot: Literal["only", "prefer", "never"], type_: str | None = None
) -> Offer | None:
    """The cheapest offer of the provider, in a market that the job allows; of equally cheap ones spot.

    type_  the only type of machine that will do; None: any
    """
    markets = {"only": ("spot",), "never": ("on_demand",), "prefer": ("spot", "on_demand")}[spot]
    suitable = [
        offer
        for offer in offers
        if offer.provider == provider and offer.market in markets and type_ in (None, offer.type)
    ]
    return min(suitable, key=lambda offer: (Decimal(offer.price), offer.market != "spot", offer.type), default=None)
