# SPDX-License-Identifier: Apache-2.0
"""The bill of a machine on EC2 is AWS's to the micro-dollar, on 5,000 random lives a seed.

python -m tests.soak.bills --case lives --seed N
"""

from __future__ import annotations

import sys

from tests.fuzzing import Case, Findings, main, summarise, try_each
from tests.worker.providers.ec2 import bill_oracle
from tests.worker.providers.ec2.drawn_bills import draw, our_bill

__all__ = ["CASES", "SEEDS", "summarise"]

SEEDS = 20


def compare_lives(seed: int, count: int) -> Findings:
    """Bill random lives of instances, and compare with a computation that shares no code."""

    def compare(number: int) -> str:
        one = draw(f"{seed}/{number}")
        ours, theirs = our_bill(one), bill_oracle.bill(one)
        assert ours == theirs, f"{ours}, by AWS's rules {theirs}: {one}"
        return "free" if not ours["machine"] else one.market

    return try_each(compare, count)


CASES = {"lives": Case(compare_lives, 5_000)}

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", CASES))
