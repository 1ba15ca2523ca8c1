# SPDX-License-Identifier: Apache-2.0
"""Which offers suit a job, in which order, and why the others don't."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shoestring_core import spec
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.placement import MAX_OFFER_AGE, rank_offers
from shoestring_core.decide.refusals import RecentRefusal, RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import S
from shoestring_core.spec.gpus import GpuChoice

NOW = 1_800_000_000 * S
SPOT = Offer("cloud", "east", "east-1", "small", "spot", "0.10", "0.50", 8, "test", False, fetched_at=NOW)
ON_DEMAND = replace(SPOT, market="on_demand", price="0.50")


@pytest.mark.parametrize(("spot", "markets"), [
    ("only", ["spot"]), ("prefer", ["spot", "on_demand"]), ("never", ["on_demand"]),
])  # fmt: skip
def test_the_market_follows_resources_spot(spot: str, markets: list[str]):
    placement = rank_offers([ON_DEMAND, SPOT], Requirements(spot=spot), NOW)
    assert [offer.market for offer in placement.ranked] == markets
    assert {one.reason for one in placement.passed_over} <= {"market"}


def test_the_cheapest_offer_of_any_provider_is_first_and_of_equally_cheap_ones_spot():
    cheaper, equal = replace(SPOT, provider="other", price="0.099"), replace(ON_DEMAND, price="0.10")
    assert rank_offers([equal, SPOT, ON_DEMAND, cheaper], Requirements(), NOW).ranked == (
        cheaper, SPOT, equal, ON_DEMAND,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("needed", "offer", "reason"),
    [
        (Requirements(provider="other"), SPOT, "provider"),
        (Requirements(regions=("west",)), SPOT, "region"),
        (Requirements(zones=("east-2",)), SPOT, "zone"),
        (Requirements(type="large"), SPOT, "type"),
        (Requirements(spot="never"), SPOT, "market"),
        (Requirements(cluster=True), SPOT, "placement"),
        (Requirements(cluster=True), replace(SPOT, hardware=Hardware(4, 16_384)), "placement"),
        (Requirements(nodes=9), SPOT, "slots"),
        (Requirements(), replace(SPOT, fetched_at=NOW - MAX_OFFER_AGE - 1), "unanswered"),
    ],
)
def test_each_offer_that_does_not_suit_is_passed_over_for_its_reason(needed: Requirements, offer: Offer, reason: str):
    placement = rank_offers([offer], needed, NOW)
    assert placement.best is None
    assert [(one.offer, one.reason) for one in placement.passed_over] == [(offer, reason)]


@pytest.mark.parametrize("needed", [
    Requirements(provider="cloud"), Requirements(regions=("west", "east")), Requirements(zones=("east-1",)),
    Requirements(type="small"), Requirements(nodes=8),
])  # fmt: skip
def test_an_offer_that_meets_a_requirement_is_ranked(needed: Requirements):
    assert rank_offers([SPOT], needed, NOW).best == SPOT


def test_the_age_of_an_offer_matters_only_for_launches():
    old = replace(SPOT, fetched_at=NOW - 3600 * S)
    assert rank_offers([old], Requirements()).best == old
    assert rank_offers([replace(SPOT, slots=None)], Requirements(nodes=64)).best is not None


def test_requirements_are_made_from_the_spec_and_the_chosen_type():
    resources = spec.parse(
        {"recipe": "digits/quickstart", "resources": {"nodes": 3, "spot": "only", "provider": "cloud"}}
    ).resources
    assert Requirements.of(resources, "small") == Requirements(3, "cloud", (), (), "only", "small")
    assert Requirements.of(spec.parse({"recipe": "digits/quickstart"}).resources) == Requirements()
    close = spec.parse({"recipe": "digits/quickstart", "resources": {"placement": "cluster"}}).resources
    assert Requirements.of(close) == Requirements(cluster=True)
    together = replace(SPOT, hardware=Hardware(4, 16_384, cluster=True))
    assert rank_offers([SPOT, together], Requirements.of(close), NOW).ranked == (together,)


def test_a_machine_that_joins_others_has_as_many_gpus_as_they_have():
    machine = Hardware(4, 16_384, "T4", 4, 16_384)
    assert Requirements().beside(machine) == Requirements(gpus=(GpuChoice(count=4),))
    chosen = Requirements(gpus=(GpuChoice("A10G"), GpuChoice(None, 24, count=8)))
    assert chosen.beside(machine).gpus == (GpuChoice("A10G", count=4), GpuChoice(None, 24, count=4))
    assert chosen.beside(Hardware(4, 16_384)) == chosen


def refusal(offer: Offer, kind: RefusalKind, ago: int = 0) -> RecentRefusal:
    return RecentRefusal(offer.provider, offer.region, offer.zone, offer.type, offer.market, kind, NOW - ago)


def test_an_offer_refused_for_capacity_comes_last_for_a_while():
    refused = refusal(SPOT, RefusalKind.CAPACITY)
    assert rank_offers([SPOT, ON_DEMAND], Requirements(), NOW, [refused]).ranked == (ON_DEMAND, SPOT)
    assert rank_offers([SPOT], Requirements(), NOW, [refused]).best == SPOT
    old = refusal(SPOT, RefusalKind.CAPACITY, RefusalKind.CAPACITY.memory)
    assert rank_offers([SPOT, ON_DEMAND], Requirements(), NOW, [old]).best == SPOT


def test_an_offer_refused_for_its_quota_is_passed_over_for_a_while():
    placement = rank_offers([SPOT, ON_DEMAND], Requirements(), NOW, [refusal(SPOT, RefusalKind.QUOTA)])
    assert placement.ranked == (ON_DEMAND,)
    assert [(one.offer, one.reason) for one in placement.passed_over] == [(SPOT, "quota")]
    old = refusal(SPOT, RefusalKind.QUOTA, RefusalKind.QUOTA.memory)
    assert rank_offers([SPOT], Requirements(), NOW, [old]).best == SPOT


def test_a_region_that_was_refused_comes_after_all_that_another_has_even_if_that_is_full():
    here, there = replace(SPOT, zone="east-2"), replace(ON_DEMAND, region="west", zone="west-1")
    refused, full = refusal(SPOT, RefusalKind.REGION), refusal(there, RefusalKind.CAPACITY)
    assert rank_offers([SPOT, here, there], Requirements(), NOW, [refused, full]).ranked == (there, SPOT, here)
    old = refusal(SPOT, RefusalKind.REGION, RefusalKind.REGION.memory)
    assert rank_offers([SPOT, here, there], Requirements(), NOW, [old, full]).best == SPOT


def test_a_refusal_says_nothing_about_other_offers():
    elsewhere = refusal(replace(SPOT, zone="east-2"), RefusalKind.QUOTA)
    assert rank_offers([SPOT, ON_DEMAND], Requirements(), NOW, [elsewhere]).best == SPOT


def test_a_zone_that_just_interrupted_a_machine_is_passed_over_while_another_has_spot_machines():
    dearer, lost = replace(SPOT, zone="east-2", price="0.12"), refusal(SPOT, RefusalKind.INTERRUPTED)
    placement = rank_offers([SPOT, dearer, ON_DEMAND], Requirements(), NOW, [lost])
    assert placement.ranked == (dearer, ON_DEMAND)
    assert [(one.offer, one.reason) for one in placement.passed_over] == [(SPOT, "interrupted")]
    full = refusal(dearer, RefusalKind.CAPACITY)
    assert rank_offers([SPOT, dearer, ON_DEMAND], Requirements(), NOW, [lost, full]).best == SPOT
    assert rank_offers([SPOT, ON_DEMAND], Requirements(), NOW, [lost]).best == SPOT
    old = refusal(SPOT, RefusalKind.INTERRUPTED, RefusalKind.INTERRUPTED.memory)
    assert rank_offers([SPOT, dearer], Requirements(), NOW, [old]).best == SPOT
