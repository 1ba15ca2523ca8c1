# SPDX-License-Identifier: Apache-2.0
"""`make soak`: the long proofs, one seed at a time, resumable.

A proof is a file `tests/soak/NAME.py`, run as `python -m tests.soak.NAME --seed S [--case C] [--data DIR]`; exit 0
means that it held. It is then noted with its commit in `.soak/done.jsonl` and not run again there, so that an
interrupted soak goes on where it was. A proof may declare `CASES`, the names it takes by `--case`: each runs with every
seed. With `NEEDS_DATA = True` it runs only when --data is given.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench import results

ROOT = Path(__file__).parents[1]
STATE = ROOT / ".soak"
DONE = STATE / "done.jsonl"


class Run(NamedTuple):
    proof: str
    case: str
    seed: int


def main() -> int:
    options = arguments()
    STATE.mkdir(exist_ok=True)
    done = finished()
    outcomes: dict[str, list[bool]] = {}
    for run in planned(options):
        name = " ".join(filter(None, (run.proof, run.case)))
        held = done.get(run)
        if held is None:
            held = prove(run, options.data)
        outcomes.setdefault(name, []).append(held)
    lines = [f"{name}: {sum(held)} of {len(held)} seeds held" for name, held in outcomes.items()]
    print("\n".join(lines) or "No proofs found.")
    if lines:
        results.append("soak", lines)
    return 0 if all(all(held) for held in outcomes.values()) else 1


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
    cases: list[tuple[str, str]] = []
    for name in options.only or names:
        module = importlib.import_module(f"tests.soak.{name}")
        if getattr(module, "NEEDS_DATA", False) and not options.data:
            print(f"{name}: needs DATA=folder, left out")
            continue
        cases += [(name, case) for case in getattr(module, "CASES", [""])]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    return [Run(name, case, seed) for seed in seeds for name, case in cases]


def prove(run: Run, data: str) -> bool:
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
    if code == 0:
        log.unlink()
        with DONE.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**run._asdict(), "commit": results.commit(), "took_s": round(took_s, 1)}) + "\n")
    return code == 0


def finished() -> dict[Run, bool]:
    """What held on this commit already. A broken proof is run again."""
    if not DONE.exists():
        return {}
    notes = map(json.loads, DONE.read_text(encoding="utf-8").splitlines())
    here = results.commit()
    return {Run(note["proof"], note["case"], note["seed"]): True for note in notes if note["commit"] == here}


if __name__ == "__main__":
    sys.exit(main())
