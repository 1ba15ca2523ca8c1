# SPDX-License-Identifier: Apache-2.0
"""What tests with many random inputs share: outcomes are counted, and time and memory have bounds.

An input has a number and is a function of it and a seed, so a fault is found again by both. Soak tests run 10 seeds or
so, one after another: that makes them resumable.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

REPORTED = 10
LONGEST_S = 10.0
"""For one input: all are small, so what takes longer hangs or would."""
RUN_LIMIT_S = 600.0
MEMORY_GROWTH_MIB = 1_000


@dataclass
class Findings:
    """What became of some inputs. `slowest`: seconds and number of the one that took longest."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)


class Case(NamedTuple):
    """`run` takes a seed and a count."""

    run: Callable[[int, int], Findings]
    count: int


def try_each(attempt: Callable[[int], str], count: int) -> Findings:
    """Call `attempt`, which returns an outcome's name, with each number below `count`. What it raises is a fault."""
    found = Findings()
    for number in range(count):
        began = time.monotonic()
        try:
            found.outcomes[attempt(number)] += 1
        except BaseException:  # noqa: BLE001 - that nothing is raised is what is tested
            found.faults.append(f"number {number}: {traceback.format_exc()}")
        took_s = time.monotonic() - began
        found.slowest = max(found.slowest, (took_s, number))
        if took_s > LONGEST_S:
            found.faults.append(f"number {number}: took {took_s:.0f} s")
    return found


def refused(error: Exception, name: str) -> str:
    """The outcome of an input that is refused. Raises AssertionError if the error doesn't name it."""
    assert name in str(error), f"refused without its name: {error}"
    return "refused"


def main(about: str, cases: Mapping[str, Case]) -> int:
    """Run a case as `make soak` does; returns the exit code. The last line printed is for `summarise`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=cases, required=True)
    parser.add_argument("--count", type=int, help="how many inputs; default: as above")
    options = parser.parse_args()
    case = cases[options.case]
    print(f"case {options.case}, seed {options.seed}", flush=True)
    faulthandler.dump_traceback_later(RUN_LIMIT_S, exit=True)
    began, memory_mib = time.monotonic(), _peak_memory_mib()
    found = case.run(options.seed, options.count or case.count)
    faulthandler.cancel_dump_traceback_later()
    grown_mib = _peak_memory_mib() - memory_mib
    if grown_mib > MEMORY_GROWTH_MIB:
        found.faults.append(f"memory grew by {grown_mib:,.0f} MiB")
    print("\n".join(found.faults[:REPORTED]))
    print(f"{len(found.faults)} faults")
    figures = {
        "seed": options.seed, "outcomes": found.outcomes, "run_s": time.monotonic() - began,
        "slowest_s": found.slowest[0], "grown_mib": grown_mib,
    }  # fmt: skip
    print(json.dumps(figures), flush=True)
    return 1 if found.faults else 0


def summarise(_case: str, last_lines: Sequence[str]) -> tuple[bool, list[str]]:
    """Return totals over the seeds, for RESULTS.md."""
    runs = [json.loads(line) for line in last_lines]
    total = sum((Counter(run["outcomes"]) for run in runs), Counter[str]())
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(total.items()))
    slowest_s, grown_mib, whole_s = (function(run[name] for run in runs) for function, name in (
        (max, "slowest_s"), (max, "grown_mib"), (sum, "run_s")
    ))  # fmt: skip
    seeds = ", ".join(str(run["seed"]) for run in runs)
    line = (
        f"{total.total():,} inputs: {counts}; no fault; the slowest took {slowest_s:.2f} s, memory grew by at most "
        f"{grown_mib:,.0f} MiB; {whole_s:.0f} s in all; seeds {seeds}"
    )
    return True, [line]


def _peak_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
