# SPDX-License-Identifier: Apache-2.0
"""What AWS bills besides a machine."""

from __future__ import annotations

from decimal import Decimal

import pytest
from shoestring_core.decide.billing import hourly
from shoestring_worker.providers.ec2.extras import gp3_disk, public_ipv4


def test_a_public_address_costs_half_a_cent_an_hour():
    assert Decimal(hourly((public_ipv4(),))) == Decimal("0.005")


@pytest.mark.parametrize(
    ("iops", "mib_per_s", "monthly"), [(3000, 125, "8"), (2000, 100, "8"), (4000, 125, "13"), (4000, 225, "17")]
)
def test_a_disk_costs_by_its_size_and_by_what_it_does_beyond_the_included(iops, mib_per_s, monthly):
    assert Decimal(gp3_disk(100, iops, mib_per_s).monthly) == Decimal(monthly)
