# SPDX-License-Identifier: Apache-2.0
"""What each provider offers, when it said so, and the history of its prices."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Pool, Row, delete, select, update

from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import UNSERVED_AFTER
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.store.tables import OfferRow, PriceRow, ProviderRow
from shoestring_core.store.transactions import Read, Write

log = logging.getLogger(__name__)


def register_provider(db: Write, provider: str, timeouts: Timeouts) -> None:
    """A worker serves it, and it hasn't said yet what it offers. Changes nothing if it is known."""
    described = {"timeouts": _TIMEOUTS.dump_python(timeouts, mode="json"), "answered_at": 0, "offers_version": 0}
    db.insert_new(ProviderRow, name=provider, **described)


def save_offers(db: Write, provider: str, current: Iterable[Offer], timeouts: Timeouts) -> None:
    """Replace the stored offers of one provider, which has just answered; those of others stay as they are.

    Records each price that differs from the last one, with its time and source.
    """
    described = {"timeouts": _TIMEOUTS.dump_python(timeouts, mode="json"), "answered_at": db.now}
    if not db.insert_new(ProviderRow, name=provider, offers_version=1, **described):
        described["offers_version"] = ProviderRow.offers_version + 1
        db.execute(update(ProviderRow).where(ProviderRow.name == provider).values(**described))
    db.sql.execute(delete(OfferRow).where(OfferRow.provider == provider))
    for offer in current:
        columns = asdict(offer)
        del columns["fetched_at"]
        db.insert_new(OfferRow, **columns)
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
    """What each provider offered when it last answered. A row that is damaged hides no other."""
    offers = []
    for row in db.rows(_OFFERS):
        try:
            offers.append(_OFFER.validate_python(row._asdict()))
        except ValidationError as damaged:
            log.error("the stored offer of %s by %s can't be read: %s", row.type, row.provider, damaged)
    return offers


@dataclass(frozen=True)
class KnownOffers:
    """Offers and timeouts of one moment. There is no offer without the timeouts of its provider.

    unanswered  providers that have never said yet what they offer, or that workers don't seem to serve any more: what
                they offered isn't among the offers
    """

    offers: tuple[Offer, ...]
    timeouts: dict[str, Timeouts]
    unanswered: frozenset[str] = frozenset()


def load_known(db: Read) -> KnownOffers:
    """Offers and timeouts, read again only when a provider has answered: each submission needs them."""
    connections, answers = db.connection.engine.pool, tuple(db.rows(_ANSWERS))
    last, known = _KNOWN.get(connections, (None, None))
    if known is None or last != answers:
        # by the newest answer, not by the clock: after a night without any worker the offers are the best there are
        oldest = max((answered_at for _, _, answered_at in answers), default=0) - UNSERVED_AFTER
        unserved = {name for name, version, answered_at in answers if version and answered_at < oldest}
        timeouts = {name: of_it for name, of_it in load_timeouts(db).items() if name not in unserved}
        unanswered = frozenset(name for name, version, _ in answers if version == 0) | unserved
        offers = tuple(offer for offer in load_offers(db) if offer.provider in timeouts)
        known = KnownOffers(offers, timeouts, unanswered)
        _KNOWN[connections] = (answers, known)
    return known


def load_versions(db: Read) -> dict[str, int]:
    """The version of each provider's offers: while it is the same, so are they, and the time of its answer."""
    return dict(db.rows(_VERSIONS))


def load_timeouts(db: Read) -> dict[str, Timeouts]:
    """The timeouts of each provider that a worker has served. A row that is damaged hides no other."""
    loaded = {}
    for name, timeouts in db.rows(_PROVIDERS):
        try:
            loaded[name] = _TIMEOUTS.validate_python(timeouts)
        except ValidationError as damaged:
            log.error("the stored timeouts of provider %s can't be read: %s", name, damaged)
    return loaded


_OFFERS = (
    select(
        *(getattr(OfferRow, column.name) for column in fields(Offer) if column.name != "fetched_at"),
        ProviderRow.answered_at.label("fetched_at"),
    )
    .join_from(OfferRow, ProviderRow, ProviderRow.name == OfferRow.provider)
    .order_by(OfferRow.provider, OfferRow.region, OfferRow.zone, OfferRow.type, OfferRow.market)
)
_PROVIDERS = select(ProviderRow.name, ProviderRow.timeouts).order_by(ProviderRow.name)
_ANSWERS = select(ProviderRow.name, ProviderRow.offers_version, ProviderRow.answered_at).order_by(ProviderRow.name)
_VERSIONS = select(ProviderRow.name, ProviderRow.offers_version)
_KNOWN: WeakKeyDictionary[Pool, tuple[tuple[Row[str, int, int], ...], KnownOffers]] = WeakKeyDictionary()
"""What was read last, and of which answers. By the connections to a database: it is replaced only under new ones."""
_OFFER = TypeAdapter(Offer)
_TIMEOUTS = TypeAdapter(Timeouts)
