# SPDX-License-Identifier: Apache-2.0
"""Offers of the providers, and the history of their prices."""

from __future__ import annotations

from dataclasses import asdict, fields

from sqlalchemy import delete, select

from shoestring_core.decide.offers import Offer
from shoestring_core.store.db import Read, Write
from shoestring_core.store.tables import OfferRow, PriceRow


def save_offers(db: Write, current: list[Offer]) -> None:
    """Replace the stored offers; and record each price that differs from the last one, with its time and source."""
    db.sql.execute(delete(OfferRow))
    for offer in current:
        db.insert_new(OfferRow, **asdict(offer))
        product = {
            "provider": offer.provider,
            "region": offer.region,
            "zone": offer.zone,
            "type": offer.type,
            "market": offer.market,
        }
        latest = db.sql.scalar(
            select(PriceRow.amount).filter_by(**product).order_by(PriceRow.valid_from.desc()).limit(1)
        )
        if latest != offer.price:
            price = {"amount": offer.price, "unit": "hour", "source": offer.source, "simulated": offer.simulated}
            db.insert_new(PriceRow, **product, **price, valid_from=db.now, fetched_at=db.now)


def load_offers(db: Read) -> list[Offer]:
    """The providers' offers when the worker last asked."""
    rows = db.sql.scalars(select(OfferRow).order_by(OfferRow.provider, OfferRow.type, OfferRow.market))
    return [Offer(**{column.name: getattr(row, column.name) for column in fields(Offer)}) for row in rows]
