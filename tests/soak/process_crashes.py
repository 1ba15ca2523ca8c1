# SPDX-License-Identifier: Apache-2.0
"""A fault at a failpoint of a real worker, under `shoestring up`, judged by journals, the process table and the ledger.

    python -m tests.soak.process_crashes --seed N

Each seed has a case of its own, of the failpoints that a job with a preemption reaches and the faults of
tests/worker/saboteur.py: kill -9 before or after, a duplicate, a delay, a lost reply. What all of them do on a virtual
clock is `tests.soak.crashes`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from shoestring_core.store import ledger
from shoestring_core.store.db import open_store

from tests import servers
from tests.e2e import witness
from tests.e2e.service import PACKAGE_FOLDERS, ROOT, Service
from tests.soak.kills import Plan, Run, judge, say
from tests.worker.saboteur import KINDS, Fault

SEEDS = 12
ARMED = ROOT / "tests" / "stand_ins" / "armed_worker"
FAILPOINTS = (
    "offers", "list", "launch", "save_offers", "record_start", "begin_launch", "record_observation", "apply_action",
    "post_cost", "extend_funding", "finish_attempt", "settle_machine", "settle_job",
)  # fmt: skip
OFTEN = ("offers", "list", "save_offers", "record_observation")
"""Reached in most ticks: the fault strikes at one of the first."""
FUNDING_LEASE_S = 20


def draw(seed: int) -> Fault:
    """One of all failpoints and faults; neighbouring seeds have different ones of both."""
    names = random.Random("a dozen").sample(FAILPOINTS, len(FAILPOINTS))
    turn, place = divmod(seed - 1, len(names))
    fault, kind = names[place], KINDS[(turn + place) % len(KINDS)]
    nth = random.Random(f"{seed} {fault} {kind}").randint(1, 9) if fault in OFTEN else 1
    return Fault(fault, kind, nth)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    fault = draw(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="shoestring-crashes-"))
    print(f"seed {options.seed}: {fault}, in {folder}", flush=True)
    prove(fault, options.seed, folder)
    shutil.rmtree(folder)  # a broken run's is left to look at
    print(f"seed {options.seed}: {fault.kind} at {fault.name}, time {fault.nth}: as it should be")
    return 0


def summarise(_case: str, last_lines: Sequence[str]) -> tuple[bool, list[str]]:
    """Return lines for RESULTS.md: each seed's fault."""
    return True, list(last_lines)


def prove(fault: Fault, seed: int, folder: Path) -> None:
    """Run one job that loses a machine and meets the fault, and judge. Raises AssertionError."""
    (folder / "fault.json").write_text(json.dumps(asdict(fault)))
    url = f"sqlite:///{folder / 'store.db'}"
    packages = [ARMED, *(ROOT / package for package in PACKAGE_FOLDERS)]
    environment = {
        "SHOESTRING_DATABASE_URL": url,
        "SHOESTRING_FAULT_FOLDER": str(folder),
        "SHOESTRING_TIMEOUTS__FUNDING_LEASE": f"{FUNDING_LEASE_S}s",
        "PYTHONPATH": ":".join(map(str, packages)),
    }
    service = Service(
        folder / "service", servers.free_port(), options=("--budget", "5.00", "--slots", "2"), environment=environment
    )
    service.start()
    try:
        (folder / "armed").touch()
        Run(service, url, Plan((), preempt_step=100, pick=seed)).live_through()
        say(f"reached: {', '.join(sorted((folder / 'reached').read_text().split()))}")
        assert (folder / "struck").exists(), "the job never came to the failpoint"
        require_nothing_leaked(url)
        judge(service, url)
    finally:
        service.stop()


def require_nothing_leaked(database_url: str) -> None:
    """By the service's own word; `judge` asks the process table."""
    alive = "SELECT id FROM machines WHERE state NOT IN ('terminated', 'never_launched')"
    assert witness.ids(database_url, alive) == set()
    assert witness.ids(database_url, "SELECT id FROM holds WHERE state = 'open'") == set()
    store = open_store(database_url)
    with store.read() as db:
        assert ledger.find_discrepancies(db) == []
    store.close()


if __name__ == "__main__":
    sys.exit(main())
