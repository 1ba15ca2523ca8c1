# SPDX-License-Identifier: Apache-2.0
"""`make soak`: run the soak tests, one seed at a time, resumable.

A soak test is a file `tests/soak/NAME.py`, run as `python -m tests.soak.NAME --seed S [--case C] [--data DIR]`; exit
code 0 means that it passed. That is recorded with the commit in `.soak/done.jsonl`, and the run isn't repeated for that
commit, so an interrupted soak resumes where it stopped. A soak test can declare `CASES`, the names it takes by
`--case`: each runs with every seed, up to its `SEEDS`. With `NEEDS_DATA = True` it runs only if --data is given. To
report figures it defines `summarise(case, last_lines) -> (passed, lines)`, which gets the last line of each seed's
output.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from bench import results

ROOT = Path(__file__).parents[1]
STATE = ROOT / ".soak"
PASSED_RUNS = STATE / "done.jsonl"


class Run(NamedTuple):
    test: str
    case: str
    seed: int


class Outcome(NamedTuple):
    """last_line: the last line that the soak test printed."""

    passed: bool
    last_line: str


def main() -> int:
    options = parse_arguments()
    STATE.mkdir(exist_ok=True)
    passed = passed_runs()
    outcomes = {run: passed.get(run) or execute(run, options.data) for run in plan_runs(options)}
    by_case = sorted(outcomes, key=lambda run: (run.test, run.case))
    summaries = [
        summarise(test, case, [outcomes[run] for run in runs])
        for (test, case), runs in groupby(by_case, key=lambda run: (run.test, run.case))
    ]
    lines = [line for _, test_lines in summaries for line in test_lines]
    print("\n".join(lines) or "No soak tests found.")
    if lines:
        results.append("soak", lines)
    return 0 if all(passed for passed, _ in summaries) else 1


def summarise(test: str, case: str, outcomes: list[Outcome]) -> tuple[bool, list[str]]:
    """Return whether a test passed with every seed and as a whole, and its lines for RESULTS.md."""
    last_lines = [outcome.last_line for outcome in outcomes if outcome.passed]
    lines = [f"{f'{test} {case}'.strip()}: {len(last_lines)} of {len(outcomes)} seeds passed"]
    module, all_passed = load(test), len(last_lines) == len(outcomes)
    if hasattr(module, "summarise") and last_lines:
        as_a_whole, figures = module.summarise(case, last_lines)
        return all_passed and as_a_whole, lines + figures
    return all_passed, lines


def load(test: str) -> ModuleType:
    return importlib.import_module(f"tests.soak.{test}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds, from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--data", default="", help="folder for the tests that need real data")
    parser.add_argument("only", nargs="*", help="names of soak tests; default: all")
    return parser.parse_args()


def plan_runs(options: argparse.Namespace) -> list[Run]:
    """Return every requested run, seed by seed, so that an interrupted soak has run every test at least once."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(ROOT / "tests" / "soak")]))
    if unknown := set(options.only) - set(names):
        sys.exit(f"No soak test named {', '.join(sorted(unknown))}. There are: {', '.join(names)}.")
    cases: list[tuple[str, str, int]] = []
    for name in options.only or names:
        module = load(name)
        if getattr(module, "NEEDS_DATA", False) and not options.data:
            print(f"{name}: needs DATA=folder, skipped")
            continue
        seeds = min(options.seeds, getattr(module, "SEEDS", options.seeds))
        cases += [(name, case, seeds) for case in getattr(module, "CASES", [""])]
    return [
        Run(name, case, options.first_seed + number)
        for number in range(options.seeds)
        for name, case, seeds in cases
        if number < seeds
    ]


def execute(run: Run, data: str) -> Outcome:
    """Run one soak test in its own process; its output is kept if it fails."""
    command = [sys.executable, "-m", f"tests.soak.{run.test}", "--seed", str(run.seed)]
    command += ["--case", run.case] if run.case else []
    command += ["--data", data] if data else []
    log = STATE / f"{run.test}-{run.case or 'all'}-{run.seed}.log"
    start = time.monotonic()
    with log.open("wb") as output:
        code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT).returncode
    duration_s = time.monotonic() - start
    verdict = "passed" if code == 0 else f"FAILED, see {log.relative_to(ROOT)}"
    print(f"{run.test} {run.case} seed {run.seed}: {verdict} ({duration_s:.0f} s)", flush=True)
    last_line = (log.read_text(errors="replace").splitlines() or [""])[-1]
    if code == 0:
        log.unlink()
        record = {
            **run._asdict(),
            "commit": results.commit(),
            "duration_s": round(duration_s, 1),
            "last_line": last_line,
        }
        with PASSED_RUNS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    return Outcome(code == 0, last_line)


def passed_runs() -> dict[Run, Outcome]:
    """Return the runs that passed on this commit. Failed ones are run again."""
    if not PASSED_RUNS.exists():
        return {}
    records = map(json.loads, PASSED_RUNS.read_text(encoding="utf-8").splitlines())
    commit = results.commit()
    return {
        Run(record["test"], record["case"], record["seed"]): Outcome(True, record["last_line"])
        for record in records
        if record["commit"] == commit
    }


if __name__ == "__main__":
    sys.exit(main())
