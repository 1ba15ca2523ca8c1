# SPDX-License-Identifier: Apache-2.0
"""The disk that a job gets, and what it is billed as."""

from __future__ import annotations

from decimal import Decimal

import pytest
from shoestring_core import spec
from shoestring_core.decide.billing import BillingRules, Extra, hourly
from shoestring_core.decide.disks import billed_as, fit, with_disk
from shoestring_core.decide.offers import Disk, Offer
from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.requirements import DiskNeed, Requirements

DISK = Disk("gp3", 100, 3_000, 250, (8, 3_000, 125), (16_384, 16_000, 1_000), 500, "0.25", "0.08", "0.005", "0.04")
ADDRESS = Extra("address", "a public address", "3.60")
OFFER = Offer(
    "cloud", "east", "east-1", "small", "spot", "0.10", "0.50", None, "test", False,
    billing=BillingRules(extras=(billed_as(DISK), ADDRESS)), disk=DISK,
)  # fmt: skip


@pytest.mark.parametrize(
    ("need", "got"),
    [
        (DiskNeed(), (100, 3_000, 250)),
        (DiskNeed(gib=187), (187, 3_000, 250)),
        (DiskNeed(gib=2), (8, 3_000, 250)),
        (DiskNeed(iops=100), (100, 3_000, 250)),
        (DiskNeed(mib_per_s=1_000), (100, 4_000, 1_000)),  # IOPS follow throughput
        (DiskNeed(iops=16_000), (100, 16_000, 250)),
        (DiskNeed(gib=10, iops=5_000), (10, 5_000, 250)),
        (DiskNeed(gib=10, iops=5_001), None),  # more than 500 for each GiB
        (DiskNeed(iops=3_000, mib_per_s=751), None),  # more than a quarter of the IOPS
        (DiskNeed(gib=16_385), None),
        (DiskNeed(iops=16_001), None),
        (DiskNeed(mib_per_s=1_001), None),
    ],
)
def test_a_job_gets_the_disk_that_it_says_within_its_bounds(need: DiskNeed, got: tuple[int, int, int] | None):
    fitted = fit(DISK, need)
    assert (None if fitted is None else (fitted.gib, fitted.iops, fitted.mib_per_s)) == got


def test_a_larger_default_grows_no_further_than_a_smaller_disk_allows():
    fast = Disk("gp3", 100, 10_000, 1_000, *(getattr(DISK, name) for name in list(Disk.__dataclass_fields__)[4:]))
    small = fit(fast, DiskNeed(gib=8))
    assert small is not None
    assert (small.gib, small.iops, small.mib_per_s) == (8, 4_000, 1_000)


def test_the_disk_is_in_the_price_that_is_held_and_in_the_bill():
    chosen = with_disk(OFFER, DiskNeed(200, 4_000, 500))
    assert chosen is not None
    monthly = 200 * Decimal("0.08") + 1_000 * Decimal("0.005") + 375 * Decimal("0.04")
    assert chosen.billing.extras == (
        Extra("disk", "200 GiB of gp3 with 4000 IOPS and 500 MiB/s", str(monthly)), ADDRESS,
    )  # fmt: skip
    assert chosen.rate_cap == hourly(chosen.billing.extras, "0.50") > OFFER.rate_cap
    assert with_disk(Offer("local", "local", "", "cpu", "spot", "1", "1", 1, "test", True), DiskNeed()) is None


def test_a_disk_of_the_spec_is_required_of_offers_which_are_ranked_with_it():
    resources = spec.parse(
        {"recipe": "digits/quickstart", "resources": {"disk": {"size": "200GB", "throughput": 500}}}
    ).resources
    needed = Requirements.of(resources)
    assert needed.disk == DiskNeed(187, None, 500)  # 200 GB are 186.3 GiB
    placement = rank_offers([OFFER, Offer("local", "", "", "cpu", "spot", "0", "0", 1, "test", True)], needed)
    assert [(offer.provider, offer.disk and offer.disk.gib) for offer in placement.ranked] == [("cloud", 187)]
    assert [one.reason for one in placement.passed_over] == ["disk"]
