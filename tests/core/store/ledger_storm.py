# SPDX-License-Identifier: Apache-2.0
"""A storm on the ledger: random operations of several processes on one store, by the functions that the service uses.

Each operation is a transaction of its own, drawn from (seed, process, number) and what the process saw a little
earlier: so targets are out of date, and several processes settle the same machine. Some operations are delivered twice,
some again much later, some fail before their commit. Each is written to a journal before it begins and when it has
ended; a process that was killed delivers again what it had begun. Time is virtual: each operation of any process is one
`step`.

Within each transaction, before its commit, the invariant is read for all accounts, besides being a CHECK.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

from shoestring_core import money, spec
from shoestring_core.decide import billing
from shoestring_core.decide.billing import BillingRules, Extra
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.periods import end_of_month
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.errors import (
    BudgetExceeded,
    BudgetUnmovable,
    InvalidState,
    PreconditionFailed,
    StaleTransition,
    TooMany,
    Unavailable,
)
from shoestring_core.store import budget_periods, budget_requests, idempotency, identity, jobs, ledger
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import billing as machine_money
from shoestring_core.store.fleet import launches, observations, planning, queue, rows, running_jobs
from shoestring_core.store.tables import AccountRow, BudgetRequestRow, HoldRow, JobRow, MachineRow
from shoestring_core.store.transactions import Read, Write
from sqlalchemy import select, text, update

PEOPLE = (("vision", "ada"), ("vision", "ben"), ("speech", "cem"), ("speech", "dan"))
BEGINNING = 1_800_000_000 * S
SLOTS = 4
"""Of a job: so many of its machines are alive at most."""
MAX_JOBS = 120
RATES = (None, None, "0.20", "0.50", "2.00")
"""Dollars an hour that a job may cost."""
EC2_RULES = BillingRules(
    minimum=60 * S, increment=S, pending_is_free=True, free_if_interrupted_within=3_600 * S, spot_price_moves=True,
    extras=(Extra("disk", "100 GiB of gp3", "8.00"),),
)  # fmt: skip
OFFERS = (
    Offer("cloud", "here", "a", "small", "spot", "0.158", "0.526", None, "test", True),
    Offer("cloud", "here", "a", "small", "on_demand", "0.526", "0.526", None, "test", True),
    Offer("cloud", "here", "b", "large", "spot", "0.35", "1.006", None, "test", True, billing=EC2_RULES),
)
REFUSALS = (BudgetExceeded, BudgetUnmovable, StaleTransition, PreconditionFailed, InvalidState, TooMany)
WEIGHTS = {
    "refill": 12, "call": 12, "run": 12, "extend": 20, "post": 12, "end": 9, "settle": 9, "refuse": 1, "correct": 1.5,
    "grant": 2.5, "transfer": 2.5, "limit": 2, "ask": 1.5, "decide": 2, "period": 0.4, "border": 1.5, "forecast": 0.3,
    "submit": 0.2, "start": 0.4, "cap": 0.3,
}  # fmt: skip


class Crashed(Exception):
    """On purpose, before the commit."""


@dataclass(frozen=True)
class Scale:
    """How long an operation takes (µs), and what the organization may spend in a month."""

    step: int
    monthly: int

    @property
    def timeouts(self) -> Timeouts:
        """As many operations long as a machine needs to be looked at in time, mostly."""
        return Timeouts(funding_lease=360 * self.step, drain=15 * self.step, launch_call=8 * self.step)


@dataclass
class StormClock:
    """Virtual time that all processes share: the number of operations that they have begun, each in a slot of its own.

    slots  8 bytes for each process: shared memory, or an array of the only process
    """

    slots: Any
    process: int
    step: int
    now: int = BEGINNING

    def begin(self, number: int) -> None:
        self.slots[self.process] = number
        self.now = BEGINNING + self.step * sum(self.slots)


@dataclass(frozen=True)
class SeenMachine:
    id: UUID
    state: str
    launched_at: int | None
    funded_until: int


@dataclass
class Seen:
    """What a process saw when it looked last."""

    machines: Sequence[SeenMachine] = ()
    jobs: Sequence[UUID] = ()
    accounts: Mapping[str, Sequence[UUID]] = field(default_factory=dict)
    requests: Sequence[UUID] = ()


@dataclass
class Storm:
    """One process of it."""

    store: Store
    clock: StormClock
    scale: Scale
    seed: int
    process: int
    journal: TextIO
    seen: Seen = field(default_factory=Seen)
    settled: deque[UUID] = field(default_factory=lambda: deque(maxlen=50))
    again: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.people = self.store.write(people)
        self.timeouts = self.scale.timeouts

    def run(self, until: int, unfinished: dict[str, Any] | None = None) -> None:
        """Perform operations up to number `until`; first again the one that a killed process had begun."""
        self.look()
        if unfinished:
            self.perform(unfinished)
        for number in range(self.clock.slots[self.process] + 1, until + 1):
            draw = random.Random(f"{self.seed}/{self.process}/{number}")
            self.clock.begin(number)
            if number % 8 == 0:
                self.look()
            operation = self.draw(number, draw)
            self.perform(operation, crash=draw.random() < 0.03)
            if draw.random() < 0.06:  # a reply was lost: it is sent again at once
                self.perform(operation)
            if draw.random() < 0.04:
                self.again.append((number + draw.randrange(2, 200), operation))
            for late in [one for one in self.again if one[0] <= number]:
                self.again.remove(late)
                self.perform(late[1])

    def look(self) -> None:
        with self.store.read() as db:
            held = select(HoldRow.machine, MachineRow.state, MachineRow.launched_at, MachineRow.funded_until).join(
                MachineRow, MachineRow.id == HoldRow.machine
            )
            machines = [SeenMachine(*row) for row in db.sql.execute(held.where(HoldRow.state == "open"))]
            open_jobs = db.sql.scalars(select(JobRow.id).where(JobRow.state == "launching")).all()
            accounts: dict[str, list[UUID]] = {}
            for kind, account in db.sql.execute(select(AccountRow.kind, AccountRow.id).order_by(AccountRow.id)):
                accounts.setdefault(kind, []).append(account)
            requests = select(BudgetRequestRow.id).where(BudgetRequestRow.state == "open")
            newest = requests.order_by(BudgetRequestRow.created_at.desc()).limit(10)
            self.seen = Seen(machines, open_jobs, accounts, db.sql.scalars(newest).all())

    # Drawing

    def draw(self, number: int, draw: random.Random) -> dict[str, Any]:
        """An operation as JSON: kind, key and arguments."""
        (kind,) = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        arguments = self._arguments(kind, draw)
        if arguments is None:
            kind, arguments = "refill", self._refill(draw)
        return {"kind": kind, "key": f"{self.process}/{number}", **arguments}

    def _arguments(self, kind: str, draw: random.Random) -> dict[str, Any] | None:
        """None: there is nothing to do it to."""
        match kind:
            case "refill":
                return self._refill(draw)
            case "call" | "refuse":
                return self._machine(draw, lambda one: one.state == "planned")
            case "run":
                return self._machine(draw, lambda one: one.state == "launching")
            case "extend":
                due = self.clock.now + self.timeouts.funding_lease // 2
                return self._machine(draw, lambda one: one.state == "running" and one.funded_until < due)
            case "post":
                return self._machine(draw, lambda one: one.state == "running")
            case "end":
                late = draw.random() < 0.03
                cause = draw.choice(["requested", "preempted", "exited", "crashed"])
                found = self._machine(draw, lambda one: one.state == "running")
                return found and found | {"late": late, "cause": cause}
            case "settle":
                found = self._machine(draw, lambda one: one.state == "terminated")
                return found or (self.settled and {"machine": str(draw.choice(self.settled))}) or None
            case "correct":
                more = draw.randrange(-20, 20) * self.scale.step
                return {"machine": str(draw.choice(self.settled)), "more": more} if self.settled else None
            case "grant":
                return {"account": self._account(draw), "amount": self._amount(draw)}
            case "transfer":
                level = draw.choice(["team", "member", "job"])
                source, target = (str(draw.choice(self.seen.accounts[level])) for _ in range(2))
                return {"source": source, "target": target, "amount": self._amount(draw)}
            case "limit":
                return self._limit(draw)
            case "ask":
                return {"person": draw.randrange(len(PEOPLE)), "amount": self._amount(draw)}
            case "decide":
                approve = draw.random() < 0.6
                return (
                    {"request": str(draw.choice(self.seen.requests)), "approve": approve}
                    if self.seen.requests
                    else None
                )
            case "period":
                plan = draw.choice(["month", "month", "term", "one_off"])
                account, days = self._account(draw, ("team", "member")), draw.randrange(1, 40)
                rollover, cap = draw.choice([("none", None), ("unspent", None), ("unspent", self._amount(draw))])
                return {"account": account, "plan": plan, "days": days, "rollover": rollover, "cap": cap}
            case "border":
                with self.store.read() as db:
                    due = ledger.due_borders(db)
                return {"account": str(due[0][0]), "border": due[0][1]} if due else None
            case "forecast":
                return {"account": self._account(draw, ("org", "team", "member"))}
            case "submit":
                if len(self.seen.accounts["job"]) >= MAX_JOBS:
                    return None
                cost = money.to_decimal(self.scale.monthly // draw.randrange(4, 20)) if draw.random() < 0.6 else None
                person, nodes, rate = draw.randrange(len(PEOPLE)), draw.choice([1, 1, 2, SLOTS]), draw.choice(RATES)
                return {"person": person, "nodes": nodes, "cost": cost, "rate": rate}
            case "cap":
                jobs = draw.choice([None, None, draw.randrange(40)])
                return {"account": self._account(draw, ("team", "member")), "jobs": jobs}
            case _:
                return {}

    def _refill(self, draw: random.Random) -> dict[str, Any]:
        job = str(draw.choice(self.seen.jobs)) if self.seen.jobs else None
        return {"job": job, "slot": draw.randrange(SLOTS), "offer": draw.randrange(len(OFFERS))}

    def _machine(self, draw: random.Random, fits: Callable[[SeenMachine], bool]) -> dict[str, Any] | None:
        fitting = [one for one in self.seen.machines if fits(one)]
        return {"machine": str(draw.choice(fitting).id)} if fitting else None

    def _account(self, draw: random.Random, kinds: Sequence[str] = ("org", "team", "member", "job")) -> str:
        return str(draw.choice(self.seen.accounts[draw.choice(kinds)]))

    def _amount(self, draw: random.Random) -> int:
        return draw.randrange(0, self.scale.monthly // 50)

    def _limit(self, draw: random.Random) -> dict[str, Any]:
        kind = draw.choice(["org", "team", "team", "member", "member", "job"])
        least, most = {"org": (0.6, 1.3), "team": (0.1, 0.8), "member": (0.05, 0.5), "job": (0.01, 0.3)}[kind]
        limit = round(self.scale.monthly * draw.uniform(least, most))
        none = kind != "org" and draw.random() < 0.2
        return {"account": self._account(draw, (kind,)), "limit": None if none else limit}

    # Performing

    def perform(self, operation: dict[str, Any], *, crash: bool = False) -> None:
        """Perform an operation, again as long as others are in its way; what it came to is in the journal."""
        self._note({**operation, "at": self.clock.now})
        outcome = self._try(operation, crash)
        while outcome == "unavailable":
            outcome = self._try(operation, crash)
        self._note({"key": operation["key"], "outcome": outcome})

    def _try(self, operation: dict[str, Any], crash: bool) -> str:
        arguments = {name: value for name, value in operation.items() if name != "kind"}

        def work(db: Write) -> str:
            done = PERFORM[operation["kind"]](self, db, **arguments)
            require_invariant(db)
            if crash:
                raise Crashed
            return "nothing" if done in (None, False) else "done"

        try:
            return self.store.write(work)
        except Crashed:
            return "crashed"
        except REFUSALS as refused:
            return type(refused).__name__
        except Unavailable:
            return "unavailable"

    def _note(self, line: Mapping[str, Any]) -> None:
        self.journal.write(json.dumps(line) + "\n")
        self.journal.flush()  # to the kernel: it outlives the process

    def refill(self, db: Write, key: str, job: str | None, slot: int, offer: int) -> object:
        if job is None:
            return None
        return planning.refill_slot(
            db, UUID(job), 1, slot, OFFERS[offer], agent_url="", deployment="storm", timeouts=self.timeouts
        )

    def call(self, db: Write, key: str, machine: str) -> object:
        return launches.begin_launch(db, UUID(machine), self.timeouts)

    def refuse(self, db: Write, key: str, machine: str) -> object:
        call = launches.begin_launch(db, UUID(machine), self.timeouts)
        if call is not None:
            launches.record_refusal(db, call, RefusalKind.CAPACITY, "none left")
        return call

    def observe(self, db: Write, key: str, machine: str) -> object:
        self._observe(db, UUID(machine), "running", db.now)
        return True

    def extend(self, db: Write, key: str, machine: str) -> object:
        return machine_money.extend_funding(db, UUID(machine), self.timeouts)

    def post(self, db: Write, key: str, machine: str) -> object:
        machine_money.post_cost(db, UUID(machine))
        return True

    def end(self, db: Write, key: str, machine: str, late: bool, cause: str) -> object:
        """Its provider ends it; by its funding's end and the time to drain, but for the late ones."""
        row = db.sql.get_one(MachineRow, UUID(machine))
        if row.launched_at is None:
            return None
        in_time = (row.funded_until or db.now) + self.timeouts.drain
        self._observe(db, row.id, "ended", row.launched_at, db.now if late else min(db.now, in_time), cause)
        return True

    def settle(self, db: Write, key: str, machine: str) -> object:
        self.settled.append(UUID(machine))
        return machine_money.settle_machine(db, UUID(machine))

    def correct(self, db: Write, key: str, machine: str, more: int) -> object:
        """After its bill the provider reports another end: what differs is posted as a correction."""
        row = db.sql.get_one(MachineRow, UUID(machine))
        if row.billed_at is None or row.launched_at is None or row.ended_at is None:
            return None
        ended_at = max(row.launched_at, row.ended_at + more)
        unchanged = (MachineRow.id == row.id, MachineRow.ended_at == row.ended_at)
        if not db.execute(update(MachineRow).where(*unchanged).values(ended_at=ended_at)):
            return None
        lines = billing.bill(machine_money.evidence(rows.load_machine(db, row.id)), db.now)
        ledger.settle(db, row.id, lines, final=True)
        return True

    def grant(self, db: Write, key: str, account: str, amount: int) -> object:
        return self._once(db, key, lambda: ledger.grant(db, UUID(account), amount, actor="storm", reason=key))

    def transfer(self, db: Write, key: str, source: str, target: str, amount: int) -> object:
        return self._once(
            db, key, lambda: ledger.transfer(db, UUID(source), UUID(target), amount, actor="storm", reason=key)
        )

    def limit(self, db: Write, key: str, account: str, limit: int | None) -> object:
        return ledger.set_limit(db, UUID(account), limit, actor="storm", reason=key)

    def ask(self, db: Write, key: str, person: int, amount: int) -> object:
        return self._once(db, key, lambda: budget_requests.ask(db, self.people[person], amount, key))

    def decide(self, db: Write, key: str, request: str, approve: bool) -> object:
        row = db.sql.get_one(BudgetRequestRow, UUID(request))
        admin = next(one for one in self.people if one.team == row.team and one.user != row.user_id)
        return budget_requests.decide(db, admin, row.id, approve=approve, note=f"request {row.id}")

    def period(
        self, db: Write, key: str, account: str, plan: str, days: int, rollover: str, cap: int | None
    ) -> object:  # fmt: skip
        if plan == "one_off":
            return ledger.set_period(db, UUID(account), None, actor="storm", reason=key)
        ends_at = end_of_month(db.now, "Europe/Berlin") if plan == "month" else db.now + days * 86_400 * S
        wanted = ledger.Plan(plan, "Europe/Berlin", ends_at, rollover, cap)
        return ledger.set_period(db, UUID(account), wanted, actor="storm", reason=key)

    def border(self, db: Write, key: str, account: str, border: int) -> object:
        return budget_periods.roll_over(db, UUID(account), border)

    def forecast(self, db: Write, key: str, account: str) -> object:
        return ledger.tell_forecast(db, UUID(account))

    def submit(self, db: Write, key: str, person: int, nodes: int, cost: str | None, rate: str | None) -> object:
        tree: dict[str, Any] = {"recipe": "digits/quickstart", "resources": {"nodes": nodes}, "name": f"job {key}"}
        limits = {name: limit for name, limit in (("cost", cost), ("rate", rate)) if limit is not None}
        parsed = spec.parse(tree | {"limits": limits})
        return self._once(db, key, lambda: jobs.submit(db, self.people[person], parsed, min_hold=0))

    def start(self, db: Write, key: str) -> object:
        machines = start_next(db, self.timeouts)
        if machines:
            require_caps(db, machines)
        return machines

    def cap(self, db: Write, key: str, account: str, jobs: int | None) -> object:
        return ledger.set_concurrency(db, UUID(account), jobs, None, actor="storm", reason=key)

    def _once(self, db: Write, key: str, work: Callable[[], object]) -> bool:
        """As the API does it with an Idempotency-Key: a repeated request changes nothing."""
        if idempotency.begin_request(db, "storm", key, key) is not None:
            return False
        work()
        idempotency.store_response(db, "storm", key, 200, "")
        return True

    def _observe(
        self, db: Write, machine: UUID, state: Any, launched_at: int, ended_at: int | None = None, cause: str = ""
    ) -> None:  # fmt: skip
        seen = ProviderMachine(
            "cloud", "here", f"i-{machine.hex}", str(machine), {}, state, launched_at, ended_at, cause or None
        )
        observations.record_observation(db, machine, seen, self.timeouts)


PERFORM: Mapping[str, Callable[..., object]] = {
    kind: getattr(Storm, "observe" if kind == "run" else kind) for kind in WEIGHTS
}


def people(db: Write) -> list[identity.Principal]:
    return [identity.ensure_admin(db, "lab", team, user) for team, user in PEOPLE]


def begin(store: Store, scale: Scale) -> None:
    """The organization's budget, a month that carries over, and those of teams and members, and the first jobs."""

    persons = store.write(people)
    accounts = {row.id: row for person in persons for row in store.write(partial(_payers, person))}
    for row in accounts.values():
        limit = scale.monthly // {"org": 1, "team": 2, "member": 3}[row.kind]
        store.write(partial(ledger.set_limit, account=row.id, limit=limit, actor="storm", reason="the first"))
        if row.kind == "org":
            ends_at = end_of_month(BEGINNING, "UTC")
            plan = ledger.Plan("month", "UTC", ends_at, "unspent", scale.monthly // 20)
            store.write(partial(ledger.set_period, account_id=row.id, plan=plan, actor="storm", reason="the first"))
    for number in range(12):
        person, nodes = number % len(PEOPLE), 1 + number % SLOTS
        parsed = spec.parse({"recipe": "digits/quickstart", "resources": {"nodes": nodes}, "name": f"job {number}"})
        store.write(partial(jobs.submit, principal=persons[person], spec=parsed, min_hold=0))
        store.write(partial(start_next, timeouts=scale.timeouts))


def start_next(db: Write, timeouts: Timeouts, offers: Sequence[Offer] = OFFERS) -> list[UUID] | None:
    """What a tick does: start the next job of the queue that its budget pays for; returns its machines."""
    snapshot = queue.load_queue(db, timeouts, {}).snapshot
    starts = schedule_jobs(snapshot, offers, db.now, {"cloud": timeouts}).starts
    if not starts:
        return None
    return planning.record_start(db, starts[0], snapshot.plan_version, agent_url="", deployment="storm")


def _payers(person: identity.Principal, db: Read) -> Sequence[AccountRow]:
    return ledger.paying_accounts(db, person.team, person.user)


def require_invariant(db: Read) -> None:
    """Of every account, as this transaction would leave it. Raises AssertionError."""
    broken = db.connection.execute(_BROKEN).all()
    assert not broken, f"overspent: {broken}"


def require_caps(db: Read, started: Sequence[UUID]) -> None:
    """Of the accounts of a job that starts: neither more jobs nor a higher hourly cost than may be. Raises
    AssertionError."""
    machines = [rows.load_machine(db, machine) for machine in started]
    job, in_use = rows.load_job(db, machines[0].job), running_jobs.load_in_use(db)
    for account in ledger.paying_accounts(db, job.team_id, job.user_id):
        running = in_use.get(account.owner, running_jobs.InUse()).jobs
        assert account.max_jobs is None or running <= account.max_jobs, f"{account.owner} runs {running} jobs"
    rate = spec.rate_limit_of_stored(job.spec)
    assert rate is None or sum(map(machine_money.hourly_cost, machines)) <= rate, f"{job.name} costs too much an hour"


_BROKEN = text(
    "SELECT kind, owner, posted, held, limit_micro, overdraft FROM accounts WHERE held < 0 OR overdraft < 0"
    " OR (limit_micro IS NOT NULL AND posted + held > limit_micro + overdraft)"
)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Its lines; the last one may be cut off by the death of its process."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def unfinished(journal: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The operation that a process had begun when it was killed."""
    if not journal or "kind" not in journal[-1]:
        return None
    return {name: value for name, value in journal[-1].items() if name != "at"}
