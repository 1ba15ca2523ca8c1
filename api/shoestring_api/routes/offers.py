# SPDX-License-Identifier: Apache-2.0
"""Offers: what machines there are, and what they cost."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from shoestring_core import rest
from shoestring_core.decide.placement import is_served
from shoestring_core.decide.quotas import account_quotas
from shoestring_core.store.fleet.offers import load_offers, load_timeouts

from shoestring_api.dependencies import Caller, ReadDep
from shoestring_api.serializers.offers import select_offers, serialize_not_offered, serialize_offer

router = APIRouter(prefix="/v1/offers", tags=["offers"])

Name = Annotated[str | None, Query(max_length=100)]


@router.get("")
def list_offers(db: ReadDep, _: Caller, gpu: Name = None, region: Name = None) -> rest.OfferList:
    """List what providers offer, the cheapest first, and what the price lists of others say. `gpu`: as in a spec."""
    served = load_timeouts(db)
    stored = load_offers(db)
    placement = select_offers(stored, served, gpu, region)
    offers = placement.ranked
    return rest.OfferList(
        offers=[serialize_offer(offer, available=is_served(offer, db.now)) for offer in offers],
        no_offer=None if offers else rest.Reason.of(placement.no_offer),
        not_offered=serialize_not_offered({offer.region for offer in stored}),
        quotas=[rest.Reason.of(quota) for quota in account_quotas(offers)],
    )
