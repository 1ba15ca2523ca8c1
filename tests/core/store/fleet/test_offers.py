# SPDX-License-Identifier: Apache-2.0
"""The providers' offers as they are now, and every price that there was."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet import offers
from shoestring_core.store.tables import OfferRow, PriceRow, ProviderRow
from shoestring_core.store.transactions import Write
from sqlalchemy import select

from tests.core.world import OFFER, Fleet


def test_offers_are_replaced_and_each_change_of_a_price_is_kept(fleet: Fleet) -> None:
    dearer = Offer("local", "local", "", "local.cpu", "on_demand", "0.526", "0.526", None, "test", True)
    fleet.write(offers.save_offers, "local", [dearer, OFFER], fleet.timeouts)
    assert fleet.read(offers.load_offers) == [dearer, OFFER]
    first_at = fleet.clock.now
    fleet.clock.pass_(10)
    cheaper = Offer("local", "local", "", "local.cpu", "spot", "0.100", "0.526", 4, "test", True)
    for _ in range(2):
        fleet.write(offers.save_offers, "local", [cheaper], fleet.timeouts)
    fleet.clock.pass_(10)
    fleet.write(offers.save_offers, "local", [OFFER], fleet.timeouts)
    assert fleet.read(offers.load_offers) == [OFFER]
    with fleet.store.read() as db:
        assert len(db.sql.scalars(select(OfferRow)).all()) == 1
        prices = db.sql.scalars(select(PriceRow).order_by(PriceRow.market, PriceRow.valid_from)).all()
    assert [(one.market, one.amount, one.valid_from, one.fetched_at) for one in prices] == [
        ("on_demand", "0.526", first_at, first_at),
        ("spot", "0.158", first_at, first_at),
        ("spot", "0.100", first_at + 10 * S, first_at + 10 * S),
        ("spot", "0.158", first_at + 20 * S, first_at + 20 * S),
    ]
    assert {(one.source, one.unit, one.simulated) for one in prices} == {("test", "hour", True)}


def test_the_version_of_a_providers_offers_rises_with_each_answer_of_its_own(fleet: Fleet) -> None:
    fleet.write(offers.save_offers, "local", [OFFER], fleet.timeouts)
    before = fleet.read(offers.load_versions)
    fleet.write(offers.save_offers, "other", [], fleet.timeouts)
    fleet.write(offers.save_offers, "local", [], fleet.timeouts)  # at the same time by the clock
    assert fleet.read(offers.load_versions) == {"local": before["local"] + 1, "other": 1}


def test_a_provider_that_is_registered_is_unanswered_until_it_says_what_it_offers(fleet: Fleet) -> None:
    for _ in range(2):
        fleet.write(offers.register_provider, "local", fleet.timeouts)
        known = fleet.read(offers.load_known)
        assert (known.offers, known.timeouts, known.unanswered) == ((), {"local": fleet.timeouts}, {"local"})
    fleet.write(offers.save_offers, "local", [], fleet.timeouts)
    fleet.write(offers.register_provider, "local", fleet.timeouts)
    assert fleet.read(offers.load_known).unanswered == frozenset()


def test_known_offers_are_read_again_when_a_provider_answers_and_only_then(fleet: Fleet) -> None:
    fleet.write(offers.save_offers, "local", [OFFER], fleet.timeouts)
    known = fleet.read(offers.load_known)
    assert (list(known.offers), known.timeouts) == ([OFFER], fleet.read(offers.load_timeouts))
    assert fleet.read(offers.load_known) is known
    fleet.write(offers.save_offers, "other", [], fleet.timeouts)
    assert list(fleet.read(offers.load_known).timeouts) == ["local", "other"]
    fleet.write(offers.save_offers, "local", [], fleet.timeouts)  # at the same time by the clock
    assert fleet.read(offers.load_known).offers == ()


def test_offers_of_a_provider_that_was_removed_count_no_more_and_after_a_night_without_workers_all_do(
    fleet: Fleet,
) -> None:
    for provider in ("local", "removed"):
        fleet.write(offers.save_offers, provider, [replace(OFFER, provider=provider)], fleet.timeouts)
    fleet.clock.pass_(8 * 3_600)
    both = fleet.read(offers.load_known)
    assert [offer.provider for offer in both.offers] == ["local", "removed"]
    assert both.unanswered == frozenset()
    fleet.write(offers.save_offers, "local", [OFFER], fleet.timeouts)
    known = fleet.read(offers.load_known)
    assert (list(known.offers), list(known.timeouts), known.unanswered) == ([OFFER], ["local"], {"removed"})
    fleet.write(offers.save_offers, "removed", [replace(OFFER, provider="removed")], fleet.timeouts)
    assert [offer.provider for offer in fleet.read(offers.load_known).offers] == ["local", "removed"]


def test_offers_that_a_write_saved_and_rolled_back_are_not_known(fleet: Fleet) -> None:
    fleet.write(offers.save_offers, "local", [OFFER], fleet.timeouts)

    def save_and_fail(db: Write) -> None:
        offers.save_offers(db, "local", [], fleet.timeouts)
        assert offers.load_known(db).offers == ()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fleet.store.write(save_and_fail)
    assert list(fleet.read(offers.load_known).offers) == [OFFER]


def test_a_damaged_offer_hides_no_other(fleet: Fleet) -> None:
    dearer = Offer("local", "local", "", "local.cpu", "on_demand", "0.526", "0.526", None, "test", True)
    fleet.write(offers.save_offers, "local", [dearer, OFFER], fleet.timeouts)
    fleet.alter(OfferRow, OfferRow.market == "on_demand", billing=[1])
    assert fleet.read(offers.load_offers) == [OFFER]


def test_damaged_timeouts_of_a_provider_hide_no_others(fleet: Fleet) -> None:
    for provider in ("local", "other"):
        fleet.write(offers.save_offers, provider, [], fleet.timeouts)
    fleet.alter(ProviderRow, ProviderRow.name == "other", timeouts={"boot": "soon"})
    assert list(fleet.read(offers.load_timeouts)) == ["local"]


def test_offers_of_a_provider_whose_timeouts_are_damaged_are_not_known(fleet: Fleet) -> None:
    for provider in ("local", "other"):
        fleet.write(offers.save_offers, provider, [replace(OFFER, provider=provider)], fleet.timeouts)
    fleet.alter(ProviderRow, ProviderRow.name == "other", timeouts={"boot": "soon"})
    assert list(fleet.read(offers.load_known).offers) == [OFFER]
