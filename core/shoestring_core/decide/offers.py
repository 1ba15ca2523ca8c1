# SPDX-License-Identifier: Apache-2.0
"""Offers: what a provider rents out now, and which of them suits a job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal


@dataclass(frozen=True)
class Offer:
    """One kind of machine in one place and market. Prices are decimal dollars per hour.

    slots       machines of this provider that may run at once, over all its offers; None: no such bound
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


def suitable(
    offers: Iterable[Offer], provider: str, spot: Literal["only", "prefer", "never"], type_: str | None = None
) -> Offer | None:
    """The cheapest offer of the provider, of this type if one is named, in a market that the job allows; spot wins a
    tie."""
    markets = {"only": ("spot",), "never": ("on_demand",), "prefer": ("spot", "on_demand")}[spot]
    fitting = [
        offer
        for offer in offers
        if offer.provider == provider and offer.market in markets and type_ in (None, offer.type)
    ]
    return min(fitting, key=lambda offer: (Decimal(offer.price), offer.market != "spot", offer.type), default=None)
