# SPDX-License-Identifier: Apache-2.0
"""The built-in price lists: dated facts, and what is left out with its reason."""

from __future__ import annotations

from decimal import Decimal

import pytest
from shoestring_core import catalog, wording
from shoestring_core.decide.billing import BillingRules
from shoestring_core.wording import offers

RULES = BillingRules()


@pytest.mark.parametrize("known", catalog.price_lists(), ids=lambda known: known.provider)
def test_a_price_list_states_its_sources_with_their_dates(known: catalog.PriceList):
    for source in (known.on_demand_source, known.spot_source):
        assert any(part.strip("(),")[:4].isdigit() for part in source.split())
    assert len({machine.type for machine in known.types}) == len(known.types) > 30


@pytest.mark.parametrize("known", catalog.price_lists(), ids=lambda known: known.provider)
def test_what_is_left_out_is_not_offered_and_says_why(known: catalog.PriceList):
    offered = {offer.type for offer in known.offers({known.on_demand_region: [""]}, None, RULES)}
    unoffered = {kind for left_out in known.all_left_out() for kind in left_out.types}
    assert not offered & unoffered
    assert not {kind.partition(".")[0] for kind in offered} & {kind for kind in unoffered if "." not in kind}
    assert {machine.type for machine in known.types} - unoffered == offered
    assert all(wording.sentence(left_out.reason) for left_out in known.all_left_out())


def test_gpus_older_than_the_pinned_pytorch_supports_other_makers_and_arm_are_left_out():
    (known,) = catalog.price_lists()
    reasons = {kind: left_out.reason for left_out in known.left_out for kind in left_out.types}
    assert reasons["p3"] == offers.GpuTooOld("7.0")
    assert reasons["g5g"] == offers.OtherArchitecture("arm64")
    assert reasons["g4ad"] == offers.OtherGpuMaker("AMD")


def test_a_spot_price_is_the_on_demand_price_less_the_saving():
    (known,) = catalog.price_lists()
    offered = known.offers({"us-east-1": ["a"]}, 2, RULES)
    prices = {offer.market: offer for offer in offered if offer.type == "g5.xlarge"}
    assert Decimal(prices["spot"].price) == round(Decimal("1.006") * 41 / 100, 4)
    assert prices["spot"].on_demand_price == prices["on_demand"].price == "1.006"
    assert (prices["spot"].zone, prices["spot"].slots, prices["spot"].interruption) == ("a", 2, ">20%")
    assert prices["on_demand"].interruption is None
