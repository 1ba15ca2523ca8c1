# SPDX-License-Identifier: Apache-2.0
"""AWS's bill of one instance, worked out second by second from what EC2 says about it. It imports nothing of ours.

Times are µs, prices dollars per hour as text. Amounts are micro-dollars, rounded once a line, half to even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

SECOND, HOUR_S, MONTH_S = 1_000_000, 3_600, 30 * 86_400

LIFECYCLE = "docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html"
REASONS = "docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html"
INTERRUPTED = "docs.aws.amazon.com/AWSEC2/latest/UserGuide/billing-for-interrupted-spot-instances.html"
PER_SECOND = "aws.amazon.com/ec2/pricing/on-demand"

CHARGED, NEVER_RAN, FREE_FIRST_HOUR = "charged", "never ran", "free if the first hour is not over"

WHO_ENDED_IT = {
    "Server.SpotInstanceTermination": (FREE_FIRST_HOUR, INTERRUPTED),
    "Server.SpotInstanceShutdown": (FREE_FIRST_HOUR, INTERRUPTED),
    "Client.UserInitiatedShutdown": (CHARGED, INTERRUPTED),
    "Client.InstanceInitiatedShutdown": (CHARGED, INTERRUPTED),
    "Server.InternalError": (CHARGED, PER_SECOND),
    "Server.InsufficientInstanceCapacity": (NEVER_RAN, REASONS),
    "Client.VolumeLimitExceeded": (NEVER_RAN, REASONS),
    "Client.InternalError": (NEVER_RAN, REASONS),
    "Client.InvalidSnapshot.NotFound": (NEVER_RAN, REASONS),
    None: (CHARGED, PER_SECOND),
}
"""By the code of the state reason (None: it runs): what is charged for the instance, and AWS's page about it."""


@dataclass(frozen=True)
class Instance:
    """
    pending_until  it was pending until then (LIFECYCLE: not charged); None: not known, so it is charged from launch
    ends           its shutting-down began (LIFECYCLE: not charged from then on); of one that runs, now
    code           of its state reason; None: it runs
    history        of the spot price: from when on which holds, in any order
    """

    market: str
    launched: int
    ends: int
    code: str | None
    price: str
    pending_until: int | None = None
    history: Sequence[tuple[int, str]] = ()
    gib: int = 0
    iops: int = 3_000
    mib_per_s: int = 125


def bill(one: Instance) -> dict[str, int]:
    """The amount of each line: machine, disk, address."""
    charge, _page = WHO_ENDED_IT[one.code]
    if charge == NEVER_RAN:
        return {"machine": 0, "disk": 0, "address": 0}
    exists = charged_seconds(one.launched, one.ends)
    a_month = (
        one.gib * Fraction("0.08") + max(one.iops - 3_000, 0) * Fraction("0.005")
        + max(one.mib_per_s - 125, 0) * Fraction("0.04")
    )  # fmt: skip
    young = one.ends - one.launched < HOUR_S * SECOND
    free = charge == FREE_FIRST_HOUR and young and one.market == "spot"
    return {
        "machine": 0 if free else micro_dollars(machine(one)),
        "disk": micro_dollars(a_month * exists / MONTH_S),
        "address": micro_dollars(Fraction("0.005") * exists / HOUR_S),
    }


def machine(one: Instance) -> Fraction:
    """Dollars for the seconds in which it runs, each at the price that holds when the second begins."""
    begins = one.launched if one.pending_until is None else min(max(one.pending_until, one.launched), one.ends)
    seconds = charged_seconds(begins, one.ends)
    if one.market != "spot":
        return Fraction(one.price) * seconds / HOUR_S
    changes = sorted(change for change in one.history if change[0] < max(one.ends, one.launched + 1))
    changes.reverse()  # the next one last
    price, at_price, charged = one.price, 0, Fraction(0)
    for second in range(begins, begins + seconds * SECOND, SECOND):
        while changes and changes[-1][0] <= second:
            charged, at_price = charged + Fraction(price) * at_price, 0
            price = changes.pop()[1]
        at_price += 1
    return (charged + Fraction(price) * at_price) / HOUR_S


def charged_seconds(begins: int, ends: int) -> int:
    """Whole seconds, at least 60: PER_SECOND."""
    whole, more = divmod(max(ends - begins, 0), SECOND)
    return max(whole + (more > 0), 60)


def micro_dollars(dollars: Fraction) -> int:
    return round(dollars * 1_000_000)  # of a Fraction: half to even
