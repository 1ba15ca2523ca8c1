# SPDX-License-Identifier: Apache-2.0
"""Take each guard of a machine's life out, one term at a time: the tests of `make test` must notice it.

    python -m tests.soak.guards --seed N [--only launches] [--count 100] [--minutes 14]

A guard is a term of a WHERE, a term of a condition, or an `if` that ends a function or the turn of a loop, in what
launches, recovers, terminates and settles (MODULES). Each mutant runs the tests that reach its statement, its module's
own first, on SQLite (tests/mutant_forks.py). The seed draws their order: what isn't tried within the minutes is left
out, and counted. What survives is listed, and explained in guards.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mutant_forks import MutantForks, Outcome
from tests.mutation import Mutant, find_mutants, missing_terms
from tests.soak import mutants

SEEDS = 1
MIN_KILLED = 0.95
TESTS_S = 15.0
"""How long the tests of a mutant may take that aren't its module's own, of CPU."""
MINUTES = 14.0
ROOT = Path(__file__).parents[2]
EXPLANATIONS = Path(__file__).with_suffix(".md")

MODULES = (
    "core/shoestring_core/store/fleet/active_attempts.py", "core/shoestring_core/store/fleet/agents.py",
    "core/shoestring_core/store/fleet/billing.py", "core/shoestring_core/store/fleet/gangs.py",
    "core/shoestring_core/store/fleet/launches.py", "core/shoestring_core/store/fleet/leaks.py",
    "core/shoestring_core/store/fleet/observations.py", "core/shoestring_core/store/fleet/open_work.py",
    "core/shoestring_core/store/fleet/planning.py", "core/shoestring_core/store/fleet/queue.py",
    "core/shoestring_core/store/fleet/rows.py", "core/shoestring_core/store/transitions.py",
    "core/shoestring_core/store/ledger/balances.py", "core/shoestring_core/store/ledger/holds.py",
    "core/shoestring_core/store/ledger/settlement.py", "core/shoestring_core/store/checkpoints.py",
    "core/shoestring_core/decide/reconcile.py", "core/shoestring_core/decide/sweeps.py",
    "worker/shoestring_worker/attempt_steps.py", "worker/shoestring_worker/control_loop.py",
    "worker/shoestring_worker/job_scheduler.py", "worker/shoestring_worker/launcher.py",
    "worker/shoestring_worker/provider_lane.py", "worker/shoestring_worker/reconciler.py",
    "worker/shoestring_worker/steps.py",
)  # fmt: skip
TESTS = (
    "tests/core/store/fleet", "tests/core/store/test_checkpoints.py", "tests/core/store/test_jobs.py",
    "tests/core/store/test_ledger.py", "tests/core/store/test_limits.py", "tests/core/store/test_periods.py",
    "tests/core/store/test_reports.py", "tests/core/store/test_soft_lines.py", "tests/core/store/test_transitions.py",
    "tests/core/decide/test_machines.py", "tests/core/decide/test_sweeps.py", "tests/api/test_agents.py",
    "tests/worker/test_attempt_steps.py", "tests/worker/test_job_scheduler.py", "tests/worker/test_launcher.py",
    "tests/worker/test_provider_lane.py", "tests/worker/test_reconciler.py", "tests/worker/test_steps.py",
    "tests/worker/test_control_loop_ticks.py",
    "tests/worker/test_audit_seals.py", "tests/worker/test_control_loop.py", "tests/worker/test_crashes.py",
    "tests/worker/test_credentials.py", "tests/worker/test_deadlines.py", "tests/worker/test_evictions.py",
    "tests/worker/test_elastic.py", "tests/worker/test_failover.py", "tests/worker/test_faults.py",
    "tests/worker/test_item_failures.py", "tests/worker/test_leaks.py", "tests/worker/test_left_machines.py",
    "tests/worker/test_providers.py",
    "tests/worker/test_query_plans.py", "tests/worker/test_queue.py", "tests/worker/test_recovery.py",
    "tests/worker/test_refusals.py", "tests/worker/test_stale_arguments.py",
    "tests/core/store/test_commitments.py", "tests/api/test_leaks.py", "tests/api/test_deadlines.py",
    "tests/api/test_preempt.py", "tests/api/test_queue.py",
)  # fmt: skip
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--db", "sqlite", "--seed", "1", "--hypothesis-seed", "1")


def main() -> int:
    options = parse_arguments()
    print(f"seed {options.seed}", flush=True)
    files = module_files(options.only)
    every = [
        mutant
        for module, file in files.items()
        for mutant in find_mutants(module, file.read_text(encoding="utf-8"), missing_terms)
    ]
    drawn = random.Random(options.seed).sample(every, min(options.count or len(every), len(every)))
    outcomes: dict[str, Outcome] = {}

    def note(mutant: Mutant, outcome: Outcome) -> None:
        outcomes[mutant.key] = outcome
        told = f"{outcome.seconds:6.2f} s  {outcome.tests:3} of {outcome.reaching:3} tests"
        print(f"{told}  {outcome.killed_by or 'SURVIVED'}  {mutant.key}", file=output, flush=True)

    begun, output = time.monotonic(), os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryDirectory(prefix="shoestring-guards-") as folder:
        until = begun + 60 * options.minutes
        forks = MutantForks(files, drawn, missing_terms, options.jobs, options.tests_s, until, note)
        code = pytest.main([*OPTIONS, "--basetemp", f"{folder}/pytest", *TESTS], plugins=[forks])
    if not outcomes:
        print("The tests must pass, and in time, before mutants are tried on them.")
        return int(code) or 1
    minutes = (time.monotonic() - begun) / 60
    tried = [mutant for mutant in drawn if mutant.key in outcomes]
    return report(options.seed, files, every, tried, outcomes, minutes)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=0, help="how many, drawn; 0: all")
    parser.add_argument("--only", default="", help="modules whose path contains this")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after these no other mutant is tried")
    parser.add_argument("--tests-s", type=float, default=TESTS_S, help="of tests that aren't the module's own")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def summarise(_case: str, last_lines: Sequence[str]) -> tuple[bool, list[str]]:
    """Return lines for RESULTS.md: the last one of each seed has its figures."""
    return True, list(last_lines)


def module_files(only: str = "") -> dict[str, Path]:
    """The modules whose guards are taken out, by name."""
    files = [ROOT / name for name in MODULES if only in name]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts[1:]): file for file in files}


def explanations() -> dict[str, str]:
    """Why mutants survive, by key: those of guards.md, and those of mutants.md that are guards too."""
    return mutants.explanations() | own_explanations()


def own_explanations() -> dict[str, str]:
    """Lines "- `key`: explanation"."""
    return dict(re.findall(r"^- `(.+?)`: (.+)$", EXPLANATIONS.read_text(encoding="utf-8"), re.MULTILINE))


def report(
    seed: int, files: dict[str, Path], every: list[Mutant], tried: list[Mutant], outcomes: dict[str, Outcome],
    minutes: float,
) -> int:  # fmt: skip
    """Print the survivors and the figures; 0 if enough are killed and all others are explained."""
    explained = explanations()
    survivors = [mutant for mutant in tried if outcomes[mutant.key].killed_by is None]
    for mutant in survivors:
        place = f"{files[mutant.module].relative_to(ROOT)}:{mutant.line}"
        print(f"\n{place}\n- {mutant.before}\n+ {mutant.after}\n{explained.get(mutant.key, 'NOT EXPLAINED')}")
        print(f"key: {mutant.key}")
    totals, alive = Counter(one.module for one in tried), Counter(one.module for one in survivors)
    print("\n" + "\n".join(f"{module}: {count - alive[module]} of {count}" for module, count in sorted(totals.items())))
    if len(files) == len(MODULES) and (outdated := own_explanations().keys() - {one.key for one in every}):
        print(f"\nno longer in the code, for {EXPLANATIONS.name}:", *sorted(outdated), sep="\n- ")
    unexplained = sum(mutant.key not in explained for mutant in survivors)
    killed, cpu_s = len(tried) - len(survivors), sum(outcome.seconds for outcome in outcomes.values())
    share = f"{killed / len(tried):.1%}, bound >= {MIN_KILLED:.0%}"
    print(
        f"seed {seed}: {killed} of {len(tried)} guards missed by a test when they were taken out ({share}); "
        f"{len(survivors)} survived, {unexplained} of them unexplained; of {len(every)} in all; "
        f"{minutes:.0f} min, {cpu_s:.0f} CPU s after the tests' first run"
    )
    return 0 if killed >= MIN_KILLED * len(tried) and not unexplained else 1


if __name__ == "__main__":
    sys.exit(main())
