# SPDX-License-Identifier: Apache-2.0
"""The bill of a machine on EC2 is AWS's, to the micro-dollar: by hand, and by a computation that shares no code."""

from __future__ import annotations

import pytest
from shoestring_core.decide.timeouts import S

from tests.worker.providers.ec2 import bill_oracle
from tests.worker.providers.ec2.bill_oracle import WHO_ENDED_IT, Instance
from tests.worker.providers.ec2.drawn_bills import LAUNCHED, draw, our_bill

EC2, WE, ITSELF = "Server.SpotInstanceTermination", "Client.UserInitiatedShutdown", "Client.InstanceInitiatedShutdown"
CRASH, NO_ROOM, NO_VOLUME = "Server.InternalError", "Server.InsufficientInstanceCapacity", "Client.VolumeLimitExceeded"
SPOT, DEMAND = "spot", "on_demand"
DRAWN = 300

# $3.60 an hour are 1,000 micro-dollars a second; a disk of 324 GiB costs $25.92 in 30 days, 10 a second.
# (market, dollars an hour, seconds pending, price changes by second, seconds to its end, code, machine, disk, address)
BY_HAND = [
    (DEMAND, "3.60", 0, {}, 3_600, WE, 3_600_000, 36_000, 5_000),
    (DEMAND, "3.60", 0, {}, 60, WE, 60_000, 600, 83),
    (DEMAND, "3.60", 0, {}, 59, WE, 60_000, 600, 83),
    (DEMAND, "3.60", 0, {}, 1, ITSELF, 60_000, 600, 83),
    (DEMAND, "3.60", 0, {}, 61, WE, 61_000, 610, 85),
    (DEMAND, "3.60", 0, {}, 0, WE, 60_000, 600, 83),
    (DEMAND, "3.60", 0, {}, 600, CRASH, 600_000, 6_000, 833),
    (DEMAND, "3.60", 0, {0: "7.20"}, 1_000, WE, 1_000_000, 10_000, 1_389),
    (DEMAND, "0.526", 0, {}, 86_400, WE, 12_624_000, 864_000, 120_000),
    (DEMAND, "0.000001", 0, {}, 3_600, WE, 1, 36_000, 5_000),
    # EC2's free first hour, and whose end it isn't
    (SPOT, "3.60", 0, {}, 10, EC2, 0, 600, 83),
    (SPOT, "3.60", 0, {}, 3_599, EC2, 0, 35_990, 4_999),
    (SPOT, "3.60", 0, {}, 3_600, EC2, 3_600_000, 36_000, 5_000),
    (SPOT, "3.60", 0, {}, 7_200, EC2, 7_200_000, 72_000, 10_000),
    (SPOT, "3.60", 0, {}, 3_599, WE, 3_599_000, 35_990, 4_999),
    (SPOT, "3.60", 0, {}, 3_599, ITSELF, 3_599_000, 35_990, 4_999),
    (SPOT, "3.60", 0, {}, 600, CRASH, 600_000, 6_000, 833),
    (SPOT, "3.60", 0, {1_000: "7.20"}, 3_000, EC2, 0, 30_000, 4_167),
    (SPOT, "3.60", 40, {}, 3_620, EC2, 3_580_000, 36_200, 5_028),
    # pending is not billed
    (SPOT, "3.60", 40, {}, 140, WE, 100_000, 1_400, 194),
    (SPOT, "3.60", 40, {}, 70, WE, 60_000, 700, 97),
    (DEMAND, "3.60", 300, {}, 3_900, WE, 3_600_000, 39_000, 5_417),
    (SPOT, "3.60", 20, {}, 20, NO_ROOM, 0, 0, 0),
    (DEMAND, "3.60", 20, {}, 25, NO_VOLUME, 0, 0, 0),
    # each second at the price that holds when it begins
    (SPOT, "3.60", 0, {1_000: "7.20"}, 2_000, WE, 3_000_000, 20_000, 2_778),
    (SPOT, "3.60", 0, {-500: "1.80"}, 1_000, WE, 500_000, 10_000, 1_389),
    (SPOT, "3.60", 0, {600: "1.80", 900: "7.20"}, 1_200, WE, 1_350_000, 12_000, 1_667),
    (SPOT, "3.60", 0, {2_000: "7.20"}, 1_000, WE, 1_000_000, 10_000, 1_389),
    (SPOT, "3.60", 100, {50: "7.20"}, 200, WE, 200_000, 2_000, 278),
    (SPOT, "3.60", 0, {0: "7.20"}, 100, WE, 200_000, 1_000, 139),
    (SPOT, "3.60", 0, {30: "7.20"}, 10, WE, 60_000, 600, 83),
    (SPOT, "0.1578", 0, {}, 12_345, WE, 541_122, 123_450, 17_146),
    # an end that EC2 gives no time of, and machines that run
    (SPOT, "3.60", 0, {}, 100.5, CRASH, 101_000, 1_010, 140),
    (SPOT, "3.60", 0, {}, 1_800, None, 1_800_000, 18_000, 2_500),
    (SPOT, "3.60", 0, {900: "7.20"}, 1_800, None, 2_700_000, 18_000, 2_500),
    (SPOT, "3.60", 0, {}, 20, None, 60_000, 600, 83),
]  # fmt: skip


@pytest.mark.parametrize(
    ("market", "price", "pending", "changes", "lasts", "code", "machine", "disk", "address"), BY_HAND
)
def test_a_bill_is_what_it_is_by_hand(market, price, pending, changes, lasts, code, machine, disk, address):
    one = Instance(
        market, LAUNCHED, LAUNCHED + round(lasts * S), code, price,
        pending_until=LAUNCHED + pending * S if pending else None,
        history=tuple((LAUNCHED + at * S, changed) for at, changed in changes.items()),
        gib=324,
    )  # fmt: skip
    by_hand = {"machine": machine, "disk": disk, "address": address}
    assert our_bill(one) == by_hand
    assert bill_oracle.bill(one) == by_hand


def test_random_bills_are_what_an_independent_computation_makes_of_the_same_life():
    for number in range(DRAWN):
        one = draw(f"bills/{number}")
        assert our_bill(one) == bill_oracle.bill(one), one


def test_each_end_of_an_instance_has_a_rule_with_aws_s_page():
    assert all(page.startswith(("docs.aws.amazon.com/", "aws.amazon.com/")) for _, page in WHO_ENDED_IT.values())
