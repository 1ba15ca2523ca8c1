# SPDX-License-Identifier: Apache-2.0
"""`make soak`: the long proofs, one seed at a time, resumable.

A proof is a file `tests/soak/NAME.py`, run as `python -m tests.soak.NAME --seed S [--case C] [--data DIR]`; exit 0
means that it held. It is then noted with its commit in `.soak/done.jsonl` and not run again there, so that an
interrupted soak goes on where it was. A proof may declare `CASES`, the names it takes by `--case`: each runs with every
seed, but with no more than its `SEEDS`. With `NEEDS_DATA = True` it runs only when --data is given. One with figures to
show has `summarise(case, said) -> (holds, lines)`, which gets the last line that each seed printed.
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
DONE = STATE / "done.jsonl"


class Run(NamedTuple):
    proof: str
    case: str
    seed: int


class Outcome(NamedTuple):
    """said: the last line that the proof printed."""

    held: bool
    said: str


def main() -> int:
    options = arguments()
    STATE.mkdir(exist_ok=True)
    done = finished()
    outcomes = {run: done.get(run) or prove(run, options.data) for run in planned(options)}
    by_case = sorted(outcomes, key=lambda run: (run.proof, run.case))
    summaries = [
        summarise(proof, case, [outcomes[run] for run in runs])
        for (proof, case), runs in groupby(by_case, key=lambda run: (run.proof, run.case))
    ]
    lines = [line for _, said in summaries for line in said]
    print("\n".join(lines) or "No proofs found.")
    if lines:
        results.append("soak", lines)
    return 0 if all(holds for holds, _ in summaries) else 1


def summarise(proof: str, case: str, outcomes: list[Outcome]) -> tuple[bool, list[str]]:
    """Whether a proof held with every seed, and as a whole; and what there is to say."""
    held = [outcome.said for outcome in outcomes if outcome.held]
    lines = [f"{f'{proof} {case}'.strip()}: {len(held)} of {len(outcomes)} seeds held"]
    module, holds = load(proof), len(held) == len(outcomes)
    if hasattr(module, "summarise") and held:
        as_a_whole, figures = module.summarise(case, held)
        return holds and as_a_whole, lines + figures
    return holds, lines


def load(proof: str) -> ModuleType:
    return importlib.import_module(f"tests.soak.{proof}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds, from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--data", default="", help="folder for the proofs that need real data")
    parser.add_argument("only", nargs="*", help="names of proofs; all when none is given")
    return parser.parse_args()


def planned(options: argparse.Namespace) -> list[Run]:
    """Every run that was asked for: seed by seed, so that an interrupted soak has touched every proof."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(ROOT / "tests" / "soak")]))
    if unknown := set(options.only) - set(names):
        sys.exit(f"No proof named {', '.join(sorted(unknown))}. There are: {', '.join(names)}.")
    cases: list[tuple[str, str, int]] = []
    for name in options.only or names:
        module = load(name)
        if getattr(module, "NEEDS_DATA", False) and not options.data:
            print(f"{name}: needs DATA=folder, left out")
            continue
        most = min(options.seeds, getattr(module, "SEEDS", options.seeds))
        cases += [(name, case, most) for case in getattr(module, "CASES", [""])]
    return [
        Run(name, case, options.first_seed + number)
        for number in range(options.seeds)
        for name, case, most in cases
        if number < most
    ]


def prove(run: Run, data: str) -> Outcome:
    """Run one proof in a process of its own; its output is kept when it fails."""
    command = [sys.executable, "-m", f"tests.soak.{run.proof}", "--seed", str(run.seed)]
    command += ["--case", run.case] if run.case else []
    command += ["--data", data] if data else []
    log = STATE / f"{run.proof}-{run.case or 'all'}-{run.seed}.log"
    begin = time.monotonic()
    with log.open("wb") as output:
        code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT).returncode
    took_s = time.monotonic() - begin
    verdict = "held" if code == 0 else f"BROKEN, see {log.relative_to(ROOT)}"
    print(f"{run.proof} {run.case} seed {run.seed}: {verdict} ({took_s:.0f} s)", flush=True)
    said = (log.read_text(errors="replace").splitlines() or [""])[-1]
    if code == 0:
        log.unlink()
        note = {**run._asdict(), "commit": results.commit(), "took_s": round(took_s, 1), "said": said}
        with DONE.open("a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")
    return Outcome(code == 0, said)


def finished() -> dict[Run, Outcome]:
    """What held on this commit already. A broken proof is run again."""
    if not DONE.exists():
        return {}
    notes = map(json.loads, DONE.read_text(encoding="utf-8").splitlines())
    here = results.commit()
    return {
        Run(note["proof"], note["case"], note["seed"]): Outcome(True, note.get("said", ""))
        for note in notes
        if note["commit"] == here
    }


if __name__ == "__main__":
    sys.exit(main())
