# SPDX-License-Identifier: Apache-2.0
"""An account to try: the zones of one region, with spot prices that are estimated from the built-in list."""

from __future__ import annotations

from decimal import Decimal

from shoestring_core import catalog
from shoestring_core.decide.billing import BillingRules

from shoestring_worker.fake_ec2 import moto_backend
from shoestring_worker.fake_ec2.spot_prices import Prices

IMAGE = "ami-00000000000000001"
BESIDES = {"t3.nano": "0.0016"}
"""Types that aren't in the list, because no job trains on them: aws.amazon.com/ec2/spot/pricing, 2026-01"""
DEARER = Decimal("0.01")
"""Each zone costs so much more than the one before, so that it is known which is the cheapest."""


def regions() -> dict[str, dict[str, object]]:
    """The value of SHOESTRING_EC2_REGIONS."""
    region = _price_list().on_demand_region
    return {region: {"image": IMAGE, "subnets": moto_backend.default_subnets(region)}}


def spot_prices() -> Prices:
    zones = sorted(moto_backend.default_subnets(_price_list().on_demand_region))
    prices: dict[str, dict[str, str]] = {zone: dict(BESIDES) for zone in zones}
    for offer in _price_list().offers({_price_list().on_demand_region: zones}, None, BillingRules()):
        if offer.market == "spot":
            factor = 1 + DEARER * zones.index(offer.zone)
            prices[offer.zone][offer.type] = str((Decimal(offer.price) * factor).quantize(Decimal("0.0001")))
    return prices


def _price_list() -> catalog.PriceList:
    return catalog.price_list_of("ec2")
