# SPDX-License-Identifier: Apache-2.0
"""Instances' lives, and our bill of each: from EC2's words, through what we read of them, to the lines."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

from shoestring_core.decide.billing import Evidence
from shoestring_core.decide.billing import bill as make_bill
from shoestring_core.decide.timeouts import S
from shoestring_worker.providers.ec2.instances import read_instance
from shoestring_worker.providers.ec2.offers import billing_rules, price_changes, read_spot_prices
from shoestring_worker.providers.ec2.settings import Ec2Region, Ec2Settings

from tests.worker.providers.ec2 import bill_oracle
from tests.worker.providers.ec2.bill_oracle import Instance

LAUNCHED = 1_800_000_000 * S
TYPE, ZONE = "g5.xlarge", "us-east-1a"


def our_bill(one: Instance) -> dict[str, int]:
    """What we bill for an instance, made of what EC2 describes."""
    region = Ec2Region(image="ami-00000000000000001", subnets={ZONE: "subnet-00000000"})
    settings = Ec2Settings(
        regions={ZONE[:-1]: region}, disk_gib=one.gib, disk_iops=one.iops, disk_mib_per_s=one.mib_per_s
    )
    seen = read_instance("ec2", ZONE[:-1], describe(one))
    end = None if one.code is None else seen.ended_at or one.ends
    history = [
        {"AvailabilityZone": ZONE, "InstanceType": TYPE, "SpotPrice": price, "Timestamp": to_datetime(at)}
        for at, price in one.history
    ]
    evidence = Evidence(
        "ec2", TYPE, one.market, one.price, seen.launched_at, end, seen.end_cause,
        pending_until=one.pending_until,
        price_changes=price_changes(read_spot_prices(history), ZONE, TYPE, seen.launched_at, one.ends),
        rules=billing_rules(settings),
    )  # fmt: skip
    lines = {"machine": 0, "disk": 0, "address": 0}
    return lines | {line.line: line.amount for line in make_bill(evidence, one.ends)}


def describe(one: Instance) -> dict[str, Any]:
    """As DescribeInstances has it. The time of an end that isn't a whole second is one that EC2 doesn't tell."""
    told = "" if one.ends % S else f"User initiated ({to_datetime(one.ends):%Y-%m-%d %H:%M:%S} GMT)"
    ended = {"StateReason": {"Code": one.code}, "StateTransitionReason": told} if one.code else {}
    state = {"State": {"Name": "terminated" if one.code else "running"}}
    return {"InstanceId": "i-1", "LaunchTime": to_datetime(one.launched)} | state | ended


def draw(seed: str) -> Instance:
    """A life: short ones, ones about an hour long and some of days; with pending, price changes and every end."""
    dice = random.Random(seed)
    lasts = dice.choice(
        (
            dice.randrange(0, 120 * S),
            dice.randrange(0, 1_800 * S),
            3_600 * S + dice.randrange(-2 * S, 2 * S),
            dice.randrange(0, 8_000 * S),
            dice.randrange(0, 200_000 * S) if dice.random() < 0.05 else 60 * S,
        )
    )
    if dice.random() < 0.8:  # mostly EC2 tells the second
        lasts -= lasts % S
    ends = LAUNCHED + lasts
    history = {
        LAUNCHED + dice.randrange(-3_600, 2 + lasts // S + 60) * S: str(dice.randrange(1, 20_000) / 10_000)
        for _ in range(dice.choice((0, 0, 1, 2, 5, 20)))
    }
    pending = None if dice.random() < 0.3 else LAUNCHED + dice.randrange(0, 90 * S)
    return Instance(
        market=dice.choice(("spot", "spot", "on_demand")),
        launched=LAUNCHED,
        ends=ends,
        code=dice.choice([*bill_oracle.WHO_ENDED_IT]),
        price=str(dice.randrange(1, 500_000) / 10_000),
        pending_until=pending,
        history=tuple(history.items()),
        gib=dice.randrange(8, 2_000),
        iops=dice.choice((3_000, 3_001, 6_000, 16_000)),
        mib_per_s=dice.choice((125, 126, 250, 1_000)),
    )


def to_datetime(at: int) -> datetime:
    return datetime.fromtimestamp(at / S, UTC)
