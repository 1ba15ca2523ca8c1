# SPDX-License-Identifier: Apache-2.0
"""Offers of machines."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from shoestring_core.rest.base import Money, Reason, Resource


class Offer(Resource):
    """A type of machine in one zone and market, as its provider or a built-in price list has it."""

    provider: str
    region: str
    zone: str
    """Empty: anywhere in the region."""
    type: str
    market: Literal["spot", "on_demand"]
    price_per_hour: Money
    on_demand_per_hour: Money
    price_source: str
    fetched_at: datetime | None
    """When the provider said so last. None: a built-in price list, of the dates in `price_source`."""
    simulated: bool
    available: bool
    """A worker serves this provider: it has had an answer in the last hour. Jobs can run there."""
    gpu: str | None
    gpus: int
    gpu_memory_mib: int
    vcpus: int | None
    memory_mib: int | None
    interruption: str | None
    """How often spot machines of this type were interrupted in a month, such as 5-10%."""
    cluster: bool = False
    """Such machines can be placed close together (resources.placement); false also where the provider doesn't say."""
    efa: bool = False
    """And then have EFA."""


class NotOffered(Resource):
    """Types of machines, or all types in some regions, that the built-in price list of a provider leaves out."""

    provider: str
    types: list[str]
    regions: list[str]
    reason: Reason


class OfferList(Resource):
    offers: list[Offer]
    """The cheapest first."""
    no_offer: Reason | None
    """Why there are none such."""
    not_offered: list[NotOffered]
    quotas: list[Reason]
    """Of the providers' accounts: what may run at once of these offers."""
