# SPDX-License-Identifier: Apache-2.0
"""Offers in the configured zones, at the prices of the built-in list."""

from __future__ import annotations

from decimal import Decimal

from shoestring_core import catalog
from shoestring_core.decide.billing import BillingRules
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.timeouts import S

from shoestring_worker.providers.ec2.settings import Ec2Settings

BILLING = BillingRules(minimum=60 * S)
"""Per second, at least a minute: aws.amazon.com/ec2/pricing/on-demand"""


def make_offers(provider: str, settings: Ec2Settings) -> list[Offer]:
    zones = {region: list(of_region.subnets) for region, of_region in settings.regions.items()}
    offers = catalog.price_list_of(provider).offers(zones, settings.max_machines, BILLING)
    return [offer for offer in offers if Decimal(offer.on_demand_price) <= Decimal(settings.max_price)]
