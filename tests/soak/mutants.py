# SPDX-License-Identifier: Apache-2.0
"""Plant small faults in what holds money and machines, one at a time: the tests of `make test` must notice them.

    python -m tests.soak.mutants --seed N [--count 150] [--only ledger]

A seed draws the faults (tests/mutation.py) from the modules below. Each runs against the tests that execute the
function with the fault, fastest first, on SQLite; a test that fails or hangs has noticed it. What survives is listed,
and explained in mutants.md beside this file: that nothing can notice it, or why nothing tests it. Results are kept in
.soak/mutants until the modules or their tests change, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.mutation import Mutant, find_mutants

SEEDS = 1
MIN_KILLED = 0.85
ROOT = Path(__file__).parents[2]
STATE = ROOT / ".soak" / "mutants"
EXPLANATIONS = Path(__file__).with_suffix(".md")

CORE = ROOT / "core" / "shoestring_core"
MODULES = (
    "store/fleet/*.py", "store/ledger/*.py", "store/checkpoints.py", "store/reports.py",
    "decide/billing.py", "decide/billing/*.py",
)  # fmt: skip
TESTS = (
    "tests/core/store/fleet", "tests/core/store/test_checkpoints.py", "tests/core/store/test_reports.py",
    "tests/core/store/test_ledger.py", "tests/core/store/test_ledger_export.py", "tests/core/store/test_limits.py",
    "tests/core/store/test_periods.py", "tests/core/store/test_soft_lines.py",
    "tests/core/store/test_shares.py", "tests/core/decide/test_machines.py",
    "tests/worker/providers/ec2/test_bills.py", "tests/worker/test_leaks.py",
    "tests/worker/test_control_loop.py", "tests/worker/test_faults.py", "tests/worker/test_elastic.py",
    "tests/worker/test_stale_arguments.py", "tests/worker/test_refusals.py", "tests/worker/test_queue.py",
)  # fmt: skip
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.mutation")
OPTIONS = ("--db", "sqlite", "--seed", "1")


@dataclass(frozen=True)
class Outcome:
    """killed_by  the test that noticed the mutant, or "timeout"; None: it survived"""

    killed_by: str | None
    seconds: float


@dataclass(frozen=True)
class Reach:
    """Which functions a test ran, and how long it took."""

    test: str
    seconds: float
    reached: list[str]


def main() -> int:
    options = parse_arguments()
    print(f"seed {options.seed}", flush=True)
    mutants = draw(options.seed, options.count, options.only)
    folder = STATE / digest()
    folder.mkdir(parents=True, exist_ok=True)
    known = load(folder / "outcomes.jsonl")
    if missing := [mutant for mutant in mutants if mutant.key not in known]:
        with ThreadPoolExecutor(options.jobs) as pool:
            reaches = [reach for found in pool.map(partial(record_reaches, folder), TESTS) for reach in found]
            for mutant, outcome in zip(missing, pool.map(partial(attempt, reaches=reaches), missing), strict=True):
                known[mutant.key] = outcome
                save(folder / "outcomes.jsonl", mutant, outcome)
    return report(options.seed, mutants, known)


def summarise(_case: str, last_lines: Sequence[str]) -> tuple[bool, list[str]]:
    """Return lines for RESULTS.md: the last one of each seed has its figures."""
    return True, list(last_lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--only", default="", help="modules whose path contains this")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


# --- what to mutate ---------------------------------------------------------------------------------------


def module_files() -> dict[str, Path]:
    """The modules that get faults, by name."""
    files = [file for pattern in MODULES for file in sorted(CORE.glob(pattern)) if file.name != "__init__.py"]
    return {".".join(file.relative_to(CORE.parent).with_suffix("").parts): file for file in files}


def draw(seed: int, count: int, only: str = "") -> list[Mutant]:
    """The mutants of a seed."""
    every = [
        mutant
        for module, file in module_files().items()
        if only in str(file)
        for mutant in find_mutants(module, file.read_text(encoding="utf-8"))
    ]
    return random.Random(seed).sample(every, min(count, len(every)))


# --- the tests --------------------------------------------------------------------------------------------


def record_reaches(folder: Path, tests: str) -> list[Reach]:
    """Run tests once, which must pass, and record in the folder what each of them executes."""
    file = folder / f"{tests.replace('/', '-')}.jsonl"
    if not file.exists():
        with tempfile.NamedTemporaryFile("r", dir=folder) as fresh:
            recording = {"SHOESTRING_REACHED": fresh.name, "SHOESTRING_MODULES": ",".join(module_files())}
            code, output = run([*PYTEST, *OPTIONS, tests], recording, timeout_s=1200)
            if code != 0:
                sys.exit(f"{output}\nThe tests must pass before mutants are tried on them.")
            file.write_text(fresh.read(), encoding="utf-8")
    return [Reach(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def attempt(mutant: Mutant, reaches: Sequence[Reach]) -> Outcome:
    """Run the tests that execute the mutant's function until one fails."""
    begun = time.monotonic()
    chosen = sorted(relevant(mutant, reaches), key=lambda reach: reach.seconds)
    killed_by = None
    if chosen:
        planted = {"SHOESTRING_MUTANT": f"{mutant.module}:{mutant.number}"}
        timeout_s = 60 + 5 * sum(reach.seconds for reach in chosen)
        command = [*PYTEST, *OPTIONS, "-x", *(reach.test for reach in chosen)]
        code, output = run(command, planted, timeout_s)
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        killed_by = None if code == 0 else failed[1] if failed else "timeout" if code is None else f"exit code {code}"
    return Outcome(killed_by, round(time.monotonic() - begun, 1))


def relevant(mutant: Mutant, reaches: Sequence[Reach]) -> list[Reach]:
    """The tests that run the mutant's function; all that run one of its module if it runs when that is imported."""
    of_function = [reach for reach in reaches if f"{mutant.module} {mutant.function}" in reach.reached]
    outside = not mutant.function.rpartition(".")[2].lstrip("_")[:1].islower()
    if outside or not of_function:
        return [reach for reach in reaches if any(name.startswith(f"{mutant.module} ") for name in reach.reached)]
    return of_function


def run(command: list[str], variables: dict[str, str], timeout_s: float) -> tuple[int | None, str]:
    """Run pytest: its exit code, None if it took too long, and its output."""
    with tempfile.TemporaryDirectory(prefix="shoestring-mutant-") as folder:
        try:
            done = subprocess.run(
                [*command, "--basetemp", f"{folder}/pytest"], cwd=ROOT, env=os.environ | variables,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None, ""
        return done.returncode, done.stdout


# --- results ----------------------------------------------------------------------------------------------


def digest() -> str:
    """Changes with the modules and the tests."""
    tests = [file for folder in ("core", "worker") for file in sorted((ROOT / "tests" / folder).rglob("*.py"))]
    content = hashlib.sha256()
    for file in [*module_files().values(), *tests, ROOT / "tests" / "mutation.py"]:
        content.update(file.read_bytes())
    return content.hexdigest()[:16]


def load(state: Path) -> dict[str, Outcome]:
    lines = state.read_text(encoding="utf-8").splitlines() if state.exists() else []
    records = [json.loads(line) for line in lines]
    return {record["key"]: Outcome(record["killed_by"], record["seconds"]) for record in records}


def save(state: Path, mutant: Mutant, outcome: Outcome) -> None:
    record = {"key": mutant.key, "killed_by": outcome.killed_by, "seconds": outcome.seconds}
    with state.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(f"{outcome.seconds:6.1f} s  {outcome.killed_by or 'SURVIVED'}  {mutant.key}", flush=True)


def explanations() -> dict[str, str]:
    """Why mutants survive, by key: lines "- `key`: explanation"."""
    found = re.findall(r"^- `(.+?)`: (.+)$", EXPLANATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def report(seed: int, mutants: list[Mutant], outcomes: dict[str, Outcome]) -> int:
    """Print the survivors and the figures; 0 if enough are killed and all others are explained."""
    explained = explanations()
    files = {module: file.relative_to(ROOT) for module, file in module_files().items()}
    survivors = [mutant for mutant in mutants if outcomes[mutant.key].killed_by is None]
    for mutant in survivors:
        place = f"{files[mutant.module]}:{mutant.line}"
        print(f"\n{place}\n- {mutant.before}\n+ {mutant.after}\n{explained.get(mutant.key, 'NOT EXPLAINED')}")
        print(f"key: {mutant.key}")
    totals, alive = Counter(one.module for one in mutants), Counter(one.module for one in survivors)
    print("\n" + "\n".join(f"{files[module]}: {count - alive[module]} of {count}" for module, count in totals.items()))
    unexplained = sum(mutant.key not in explained for mutant in survivors)
    if outdated := explained.keys() - {mutant.key for mutant in draw(seed, sys.maxsize)}:
        print(f"\nno longer in the code, for {EXPLANATIONS.name}:", *sorted(outdated), sep="\n- ")
    killed = len(mutants) - len(survivors)
    minutes = sum(outcomes[mutant.key].seconds for mutant in mutants) / 60
    share = f"{killed / len(mutants):.0%}, bound >= {MIN_KILLED:.0%}"
    print(
        f"seed {seed}: {killed} of {len(mutants)} mutants killed ({share}); "
        f"{len(survivors)} survived, {unexplained} of them unexplained; {minutes:.0f} min of tests"
    )
    return 0 if killed >= MIN_KILLED * len(mutants) and not unexplained else 1


if __name__ == "__main__":
    sys.exit(main())
