# SPDX-License-Identifier: Apache-2.0
"""The ledger under random operations of eight processes on SQLite, or four on PostgreSQL, which are killed at random.

    python -m tests.soak.ledger --case CASE --seed N [--operations 50000]

`tests/core/store/ledger_storm.py` says what they do, `ledger_checks.py` what must hold: at every commit, in snapshots
while they run, and in the end. On SQLite two databases run side by side, because each has one writer. What the same
timeline would have overspent under three rules of others is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from shoestring_core import money
from shoestring_core.decide.timeouts import S
from shoestring_core.store import ledger
from shoestring_core.store.db import open_store
from shoestring_core.store.transactions import Read

from tests.core.store import ledger_checks, ledger_storm, overspend_baselines
from tests.core.store.ledger_storm import Scale, Storm, StormClock
from tests.servers import Postgres

SEEDS = 4
OPERATIONS = {"sqlite": 50_000, "postgresql": 12_500}
CASES = list(OPERATIONS)
PROCESSES = 4
SCALE = Scale(60 * S, 1_000 * money.MICRO)
KILL_EVERY_S = 6.0
LOOK_EVERY_S = 5.0
RUN_LIMIT_S = 1_200.0

_context = multiprocessing.get_context("fork")


class Town:
    """One database, its processes, and what they did."""

    def __init__(self, url: str, folder: Path, seed: int, operations: int) -> None:
        folder.mkdir()
        self.url, self.folder, self.seed, self.operations = url, folder, seed, operations
        clocks = folder / "clocks"
        clocks.write_bytes(bytes(8 * (PROCESSES + 1)))
        with clocks.open("r+b") as file:
            self.slots = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        self.processes: list[BaseProcess | None] = [None] * PROCESSES
        self.kills = self.snapshots = 0
        self.faults: list[str] = []
        self.lines: dict[Any, tuple[Any, ...]] = {}
        store = open_store(url)
        store.migrate()
        clock_of(self.slots, PROCESSES)
        ledger_storm.begin(store, SCALE)
        store.close()

    def begin(self, process: int) -> None:
        started = _context.Process(target=storm, args=(self, process))
        started.start()
        self.processes[process] = started

    def kill(self, process: int) -> None:
        """kill -9; another continues where it was."""
        running = self.processes[process]
        if running is not None and running.exitcode is None:
            running.kill()
            running.join()
            self.kills += 1
            self.begin(process)

    @property
    def is_done(self) -> bool:
        return all(one is not None and one.exitcode == 0 for one in self.processes)

    @property
    def failed(self) -> bool:
        return any(one is not None and one.exitcode not in (None, 0) for one in self.processes)

    def look(self) -> None:
        """The invariant and the newest lines, in one snapshot; every fifth time all totals."""
        store = open_store(self.url)
        with store.read() as db:
            ledger_storm.require_invariant(db)
            self.lines |= ledger_checks.snapshot(db)
            if self.snapshots % 5 == 0:
                self.faults += [f"while it ran: {one}" for one in ledger.find_discrepancies(db)]
        store.close()
        self.snapshots += 1

    def finish(self) -> dict[str, Any]:
        """Bill what is left, check everything; returns the figures."""
        store, clock = open_store(self.url), clock_of(self.slots, PROCESSES)
        with (self.folder / "drain.jsonl").open("a") as journal:
            ledger_checks.drain(Storm(store, clock, SCALE, self.seed, PROCESSES, journal))
        journals = [ledger_storm.read_journal(self.folder / f"{number}.jsonl") for number in range(PROCESSES)]
        self.faults += ledger_checks.find_faults(store, journals)
        with store.read() as db:
            self.faults += ledger_checks.changed_since(db, self.lines)
        figures = ledger_checks.figures(store, journals) | {
            "kills": self.kills, "snapshots": self.snapshots, "lines_looked_at": len(self.lines),
            **overspend_baselines.figures(store, journals, self.seed, SCALE, sum(self.slots)),
        }  # fmt: skip
        store.close()
        return figures


def clock_of(slots: Any, process: int) -> StormClock:
    """Makes it the clock of this process's database too."""
    clock = StormClock(slots, process, SCALE.step)
    clock.begin(slots[process])
    Read.now = property(lambda _: clock.now)  # type: ignore[assignment]
    return clock


def storm(town: Town, process: int) -> None:
    """One process, from where its journal ends."""
    path = town.folder / f"{process}.jsonl"
    journal = ledger_storm.read_journal(path)
    store = open_store(town.url)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")  # the last line may have been cut off
            one = Storm(store, clock_of(town.slots, process), SCALE, town.seed, process, file)
            one.run(town.operations // PROCESSES, ledger_storm.unfinished(journal))
    except BaseException:
        (town.folder / f"{process}.fault").write_text(traceback.format_exc(), encoding="utf-8")
        raise


def rage(towns: Sequence[Town], draw: random.Random) -> None:
    """Run all to their end, with kills and looks at random times."""
    for town in towns:
        for process in range(PROCESSES):
            town.begin(process)
    ends_at = time.monotonic() + RUN_LIMIT_S
    looked_at = time.monotonic()
    while not all(town.is_done for town in towns):
        time.sleep(draw.uniform(0.1, 2 * KILL_EVERY_S / len(towns)))
        if any(town.failed for town in towns) or time.monotonic() > ends_at:
            return
        draw.choice(towns).kill(draw.randrange(PROCESSES))
        if time.monotonic() > looked_at + LOOK_EVERY_S:
            looked_at = time.monotonic()
            for town in towns:
                town.look()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--operations", type=int)
    options = parser.parse_args()
    operations = options.operations or OPERATIONS[options.case]
    folder = Path(tempfile.mkdtemp(prefix="shoestring-ledger-"))
    folder.chmod(0o755)
    print(f"case {options.case}, seed {options.seed}, {operations} operations, in {folder}", flush=True)
    began = time.monotonic()
    if options.case == "sqlite":
        urls, server = [f"sqlite:///{folder / f'{number}.db'}" for number in range(2)], None
    else:
        server = Postgres()
        urls = [server.url(server.create())]
    towns = [
        Town(url, folder / f"town-{number}", 2 * options.seed + number, operations // len(urls))
        for number, url in enumerate(urls)
    ]
    try:
        rage(towns, random.Random(options.seed))
        faults = [path.read_text() for town in towns for path in sorted(town.folder.glob("*.fault"))]
        unfinished = [] if all(town.is_done for town in towns) else ["not all processes came to their end"]
        figures = [town.finish() for town in towns] if not unfinished else []
    finally:
        for town in towns:
            for process in town.processes:
                if process is not None and process.exitcode is None:
                    process.kill()
        if server:
            server.stop()
    faults += unfinished + [fault for town in towns for fault in town.faults]
    print("\n".join(faults[:20]))
    print(f"{len(faults)} violations")
    if not faults:
        shutil.rmtree(folder)  # a broken run's is left to look at
    print(json.dumps({"seed": options.seed, "run_s": time.monotonic() - began, "towns": figures}), flush=True)
    return 1 if faults else 0


def summarise(_case: str, last_lines: Sequence[str]) -> tuple[bool, list[str]]:
    """Totals over the seeds, and what each rule overspent in each storm, for RESULTS.md."""
    runs = [json.loads(line) for line in last_lines]
    towns = [town for run in runs for town in run["towns"]]
    total = {name: sum(town[name] for town in towns) for name in ("operations", "delivered", "kills", "snapshots")}
    outcomes, rows, limits = Counter[str](), Counter[str](), Counter[str]()
    for town in towns:
        outcomes.update(town["outcomes"])
        rows.update(town["rows"])
        limits.update(town["limit_changes"])
    whole_s, seeds = sum(run["run_s"] for run in runs), ", ".join(str(run["seed"]) for run in runs)
    overruns = sum(town["overrun"] for town in towns)
    lines = [
        (
            f"{total['operations']:,} operations, delivered {total['delivered']:,} times by {PROCESSES} processes on "
            f"each of {len(towns)} databases, {total['kills']} of them killed with -9: 0 violations at every commit, "
            f"in {total['snapshots']} snapshots, and in the end; {whole_s:.0f} s in all; seeds {seeds}"
        ),
        (
            f"outcomes: {_counts(outcomes)}; rows: {_counts(rows)}; changes of limits: {_counts(limits)}; overruns, "
            f"each named by an alarm: {_dollars(overruns)}"
        ),
        *(f"{title}: {_range([town[name] for town in towns])}" for name, title in TITLES.items()),
    ]
    return True, lines


TITLES = {
    "limit": "the limit over the whole storm",
    "ours": "spent beyond it at the worst moment, here (negative: so much was left)",
    "alert": "by an alert that comes 8 h late",
    "kill": "by stopping everything at the limit, without holds",
    "on_ack": "by releasing holds when the provider acknowledges",
    "ended": "by holding until the provider reports the end, as a model beside them",
}


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counter.most_common())


def _range(amounts: Sequence[int]) -> str:
    return " · ".join(_dollars(amount) for amount in amounts)


def _dollars(amount: int) -> str:
    return f"${amount / money.MICRO:,.2f}".replace("$-", "-$")


if __name__ == "__main__":
    sys.exit(main())
