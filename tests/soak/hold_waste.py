# SPDX-License-Identifier: Apache-2.0
"""How much of a budget is set aside and not spent, over a week in which a class spends $500 on EC2's terms.

    python -m tests.soak.hold_waste --case assignment-week --seed N

`assignment-week`: 40 students share $500 until Sunday night; they submit jobs of minutes to hours on one, two or four
machines, ever more of them, until nothing is left. The clock is virtual; scheduling, holds, extensions and bills are
the service's own functions on a real store, with the durations that `shoestring aws` sets: a lease of 15 minutes and 3
to end. What is held counts in full, also what is spent of it a minute later: the figure is an upper bound of the waste.

Ends with an error if that is more than 2 % of the budget, averaged over the time from the first job to the last bill.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import UUID

from shoestring_core import money, spec
from shoestring_core.decide.billing import BillingRules, Extra
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.errors import BudgetExceeded
from shoestring_core.store import identity, jobs, ledger
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.fleet import billing, launches, observations
from shoestring_core.store.tables import MachineRow
from shoestring_core.store.transactions import Read
from sqlalchemy import select

from tests.core.store.ledger_storm import BEGINNING, start_next

SEEDS = 1
CASES = ["assignment-week"]
BUDGET = 500 * money.MICRO
BOUND = 0.02
STUDENTS, SLOTS = 40, 24
HOUR, WEEK = money.HOUR, 7 * 24 * money.HOUR
TIMEOUTS = Timeouts(funding_lease=900 * S, machine_lease=90 * S, drain=180 * S, boot=600 * S, launch_window=600 * S)
OFFER = Offer(
    "cloud", "us-east-1", "us-east-1a", "g5.xlarge", "spot", "0.4100", "1.006", SLOTS, "list price", True,
    billing=BillingRules(
        minimum=60 * S, increment=S, pending_is_free=True, extras=(Extra("disk", "100 GiB of gp3", "8.00"),)
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Submission:
    """A student's job: when, on how many machines, and for how long it trains (µs)."""

    at: int
    student: int
    nodes: int
    length: int


def assignment_week(seed: int) -> list[Submission]:
    """More than the budget can pay, most of it in the last two days."""
    draw, wanted, submissions = random.Random(seed), 0, []
    while wanted < 1.3 * BUDGET:
        at = BEGINNING + round(WEEK * draw.random() ** (1 / 3))
        nodes = draw.choice([1, 1, 1, 1, 1, 1, 2, 2, 4])
        length = round(min(8.0, draw.lognormvariate(0.2, 0.9)) * HOUR)
        wanted += nodes * money.cost(OFFER.price, length)
        submissions.append(Submission(at, draw.randrange(STUDENTS), nodes, length))
    return sorted(submissions, key=lambda one: one.at)


@dataclass
class Simulation:
    store: Store
    now: int = BEGINNING
    events: list[tuple[int, int, str, object]] = field(default_factory=list)
    order: itertools.count[int] = field(default_factory=itertools.count)
    lengths: dict[UUID, int] = field(default_factory=dict)
    held_time: int = 0
    """Micro-dollars × µs."""
    peak: int = 0
    began_at: int = 0
    started: int = 0

    def run(self, submissions: Sequence[Submission]) -> dict[str, float]:
        names = [f"student-{number}" for number in range(STUDENTS)]
        people = [self.store.write(partial(_ensure, name)) for name in names]
        with self.store.read() as db:
            team = ledger.team_account(db, people[0].team).id
        self.store.write(partial(ledger.set_limit, account=team, limit=BUDGET, actor="ta", reason="the assignment"))
        for one in submissions:
            self._at(one.at, "submit", (people[one.student], one))
        self.began_at, held = submissions[0].at, 0
        while self.events:
            at, _, kind, subject = heapq.heappop(self.events)
            self.held_time += held * max(0, at - self.now)
            self.now = max(self.now, at)
            getattr(self, f"_{kind}")(subject)
            with self.store.read() as db:
                account = ledger.ancestors(db, team)[0]
            held = account.held
            self.peak = max(self.peak, held)
        with self.store.read() as db:
            wrong = ledger.find_discrepancies(db)
        assert not wrong, wrong
        assert (account.held, account.overdraft) == (0, 0)
        return {
            "jobs": len(submissions), "started": self.started, "spent": account.posted / money.MICRO,
            "average": self.held_time / (self.now - self.began_at) / BUDGET, "peak": self.peak / BUDGET,
            "hours": (self.now - self.began_at) / HOUR,
        }  # fmt: skip

    def _at(self, at: int, kind: str, subject: object) -> None:
        heapq.heappush(self.events, (at, next(self.order), kind, subject))

    def _submit(self, subject: tuple[identity.Principal, Submission]) -> None:
        person, one = subject
        parsed = spec.parse({"recipe": "digits/quickstart", "resources": {"nodes": one.nodes}})
        job = self.store.write(partial(jobs.submit, principal=person, spec=parsed, min_hold=0)).job
        self.lengths[job.id] = one.length
        self._start(None)

    def _start(self, _: object) -> None:
        """A tick of the scheduler."""
        while machines := self.store.write(partial(start_next, timeouts=TIMEOUTS, offers=[OFFER])):
            self.started += 1
            for machine in machines:
                self.store.write(partial(launches.begin_launch, machine=machine, timeouts=TIMEOUTS))
                self._observe(machine, "running", self.now)
            row = self._row(machines[0])
            for machine in machines:
                self._at(self.now + self.lengths[row.job] + 120 * S, "end", machine)
                self._at(row.funded_until - TIMEOUTS.funding_lease // 2 + S, "extend", machine)

    def _extend(self, machine: UUID) -> None:
        if self._row(machine).state != "running":
            return
        self.store.write(partial(billing.post_cost, machine_id=machine))
        try:
            self.store.write(partial(billing.extend_funding, machine_id=machine, timeouts=TIMEOUTS))
        except BudgetExceeded:  # its job saves a checkpoint, and the machine ends
            self._at(self.now + 60 * S, "end", machine)
        else:
            self._at(self._row(machine).funded_until - TIMEOUTS.funding_lease // 2 + S, "extend", machine)

    def _end(self, machine: UUID) -> None:
        row = self._row(machine)
        if row.state == "running":
            self._observe(machine, "ended", row.launched_at, self.now)
            self._at(self.now + 5 * S, "settle", machine)

    def _settle(self, machine: UUID) -> None:
        self.store.write(partial(billing.settle_machine, machine_id=machine))
        self._start(None)

    def _observe(self, machine: UUID, state: str, launched_at: int, ended_at: int | None = None) -> None:
        cause = None if ended_at is None else "requested"
        seen = ProviderMachine(
            "cloud", OFFER.region, f"i-{machine.hex}", str(machine), {}, state, launched_at, ended_at, cause
        )
        self.store.write(partial(observations.record_observation, machine=machine, observed=seen, timeouts=TIMEOUTS))

    def _row(self, machine: UUID) -> MachineRow:
        with self.store.read() as db:
            return db.sql.scalars(select(MachineRow).where(MachineRow.id == machine)).one()


def _ensure(name: str, db) -> identity.Principal:
    return identity.ensure_member(db, "school", "class", name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=CASES, default=CASES[0])
    parser.add_argument("--jobs", type=int, help="only so many")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{Path(folder) / 'store.db'}")
        store.migrate()
        simulation = Simulation(store)
        Read.now = property(lambda _: simulation.now)  # type: ignore[assignment]
        figures = simulation.run(assignment_week(options.seed)[: options.jobs])
        store.close()
    print(json.dumps({"seed": options.seed, "run_s": time.monotonic() - began, **figures}), flush=True)
    return 0 if figures["average"] <= BOUND else 1


def summarise(case: str, last_lines: Sequence[str]) -> tuple[bool, list[str]]:
    """A line for each seed, for RESULTS.md."""
    runs = [json.loads(line) for line in last_lines]
    return True, [
        f"{case}, seed {run['seed']}: ${run['spent']:.2f} of ${BUDGET // money.MICRO} spent by {run['started']} of "
        f"{run['jobs']} jobs in {run['hours']:.0f} hours; held and not spent: {run['average']:.2%} of the budget, "
        f"averaged over the time (bound <= {BOUND:.0%}: holds), {run['peak']:.2%} at most; {run['run_s']:.0f} s"
        for run in runs
    ]


if __name__ == "__main__":
    sys.exit(main())
