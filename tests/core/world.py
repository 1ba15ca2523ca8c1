# SPDX-License-Identifier: Apache-2.0
"""A team in a real store, with jobs and machines as small as the tables allow, or with a fleet and its own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from shoestring_core import spec, wire
from shoestring_core.decide.billing import Line
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.states import JobState, MachineState
from shoestring_core.store import checkpoints, identity, jobs, ledger
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import agents, gangs, launches, observations, planning, queue
from shoestring_core.store.tables import (
    AccountRow,
    AttemptRow,
    CheckpointRow,
    EventRow,
    GenerationRow,
    HoldRow,
    JobRow,
    MachineRow,
    MemberRow,
    TransferRow,
)
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import attempts
from shoestring_core.wording.bills import NeverRan
from sqlalchemy import UpdateBase, event, select, update

T = TypeVar("T")
PLANNED, LAUNCHING, RUNNING = MachineState.PLANNED, MachineState.LAUNCHING, MachineState.RUNNING
TERMINATING, TERMINATED, NEVER_LAUNCHED = MachineState.TERMINATING, MachineState.TERMINATED, MachineState.NEVER_LAUNCHED
OFFER = Offer("local", "local", "", "local.cpu", "spot", "0.158", "0.526", None, "test", True)


@dataclass
class World:
    """One organization, team and member. Every name is new, so that a store can hold many worlds."""

    store: Store
    name: str = field(default_factory=lambda: uuid7().hex)

    def __post_init__(self) -> None:
        self.me = self.store.write(
            lambda db: identity.ensure_admin(db, f"org {self.name}", f"team {self.name}", f"user {self.name}")
        )
        self.team = self.me.team

    def job(self, cost: str | None = None, *, min_hold: int = 0, **fields: object) -> JobRow:
        tree = {"recipe": "digits/quickstart", **fields} | ({"limits": {"cost": cost}} if cost else {})
        parsed = spec.parse(tree)
        return self.store.write(lambda db: jobs.submit(db, self.me, parsed, min_hold=min_hold)).job

    def machine(self, job: JobRow) -> UUID:
        machine = uuid7()

        def work(db):
            db.insert_new(AttemptRow, job=job.id, number=1, state="open", plan={}, plan_version=0, opened_at=db.now)
            db.insert_new(
                MachineRow, id=machine, job=job.id, attempt=1, ordinal=machine.int % 2**60, slot=machine.int % 2**60,
                provider="local", region="local", zone="", type="local.cpu", market="spot", price="0.158",
                on_demand_price="0.526", simulated=True, billing={}, launch_request={}, state="planned",
                created_at=db.now,
            )  # fmt: skip

        self.store.write(work)
        return machine

    def hold(self, job: JobRow, amount: int, machine: UUID | None = None, until: int = 1) -> UUID:
        machine = machine or self.machine(job)
        account = self.account("job", job).id
        self.store.write(
            lambda db: ledger.place_hold(
                db, machine=machine, account=account, rate_cap="0.526", amount=amount, funded_until=until
            )
        )
        return machine

    def settle(self, machine: UUID, *amounts: int, final: bool = True) -> int:
        lines = [Line(f"line {number}", amount, NeverRan()) for number, amount in enumerate(amounts)]
        return self.store.write(lambda db: ledger.settle(db, machine, lines, final=final))

    def limit(self, kind: str, micro: int | None, job: JobRow | None = None) -> AccountRow:
        account = self.account(kind, job).id
        return self.store.write(lambda db: ledger.set_limit(db, account, micro, actor="ann", reason="test"))

    def grant(self, account: AccountRow, micro: int) -> AccountRow:
        return self.store.write(lambda db: ledger.grant(db, account.id, micro, actor="ann", reason="test"))

    def transfer(self, source: AccountRow, target: AccountRow, micro: int) -> tuple[AccountRow, AccountRow]:
        return self.store.write(lambda db: ledger.transfer(db, source.id, target.id, micro, actor="ann", reason="test"))

    def period(self, kind: str, rollover: str = "none", cap: int | None = None, *, term: bool = False) -> AccountRow:
        """Give a budget a period that has just ended."""
        account = self.account(kind).id

        def work(db):
            plan = ledger.Plan("term" if term else "month", "UTC", db.now, rollover, cap)
            return ledger.set_period(db, account, plan, actor="ann", reason="test")

        return self.store.write(work)

    def roll_over(self, kind: str) -> AccountRow | None:
        """Roll a budget over that is due, once; None: it isn't."""
        account = self.account(kind).id

        def work(db):
            for due, border in ledger.due_borders(db):
                if due == account and (period := ledger.begin_roll_over(db, account, border)):
                    return ledger.roll_over(db, period)
            return None

        return self.store.write(work)

    def account(self, kind: str, job: JobRow | None = None) -> AccountRow:
        with self.store.read() as db:
            if job is not None:
                chain = ledger.ancestors(db, ledger.job_account(db, job.id).id)
            else:
                member = db.sql.scalars(
                    select(AccountRow).where(AccountRow.owner == f"{self.team}/{self.me.user}")
                ).one()
                chain = ledger.ancestors(db, member.id)
            counterparty = select(AccountRow).where(AccountRow.kind == kind, AccountRow.owner == chain[-1].owner)
            return next((row for row in chain if row.kind == kind), None) or db.sql.scalars(counterparty).one()

    def totals(self, job: JobRow) -> list[tuple[int, int, int]]:
        """(posted, held, overdraft) of job, member, team, organization."""
        with self.store.read() as db:
            chain = ledger.ancestors(db, ledger.job_account(db, job.id).id)
            return [(row.posted, row.held, row.overdraft) for row in chain]

    def events(self, kind: str) -> list[EventRow]:
        with self.store.read() as db:
            query = select(EventRow).where(EventRow.team == self.team, EventRow.kind == kind)
            return list(db.sql.scalars(query.order_by(EventRow.seq)))

    def find_discrepancies(self) -> list[ledger.Discrepancy]:
        with self.store.read() as db:
            return ledger.find_discrepancies(db)


@dataclass
class Clock:
    """Time in µs that advances only on request, for the database and the provider alike."""

    now: int = 1_800_000_000 * S

    def __call__(self) -> int:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += round(seconds * S)


@dataclass
class Fleet(World):
    """A world whose machines are launched, observed and reported on by hand, at times that the test chooses."""

    clock: Clock = field(default_factory=Clock)
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(funding_lease=60 * S))
    tick_requests: list[bool] = field(default_factory=list)
    """Whether each commit with events requested a tick."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.store.on_commit.append(lambda committed: self.tick_requests.append(committed.tick_requested))

    def write(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        return self.store.write(lambda db: function(db, *args, **kwargs))

    def read(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        with self.store.read() as db:
            return function(db, *args, **kwargs)

    def alter(self, table: type, *where: Any, **values: object) -> None:
        """Change rows as no function of the store does."""
        self.store.write(lambda db: db.execute(update(table).where(*where).values(**values)))

    def requests_tick(self, action: Callable[[], object]) -> bool:
        """Whether an action, which must commit events, requests a tick."""
        self.tick_requests.clear()
        action()
        assert self.tick_requests
        return any(self.tick_requests)

    # What scheduler, launcher, provider and agents do

    def start(self, nodes: int | str = 1, cost: str | None = None, **fields: object) -> UUID:
        """A job whose machines are planned."""
        job = self.job(cost, resources={"nodes": nodes}, **fields).id
        self.open_attempt(job)
        return job

    def open_attempt(self, job: UUID) -> list[UUID]:
        def work(db):
            snapshot = queue.load_queue(db, self.timeouts, {}).snapshot
            starts = schedule_jobs(snapshot, [OFFER], db.now, {OFFER.provider: self.timeouts}).starts
            start = next(start for start in starts if start.job == job)
            return planning.record_start(db, start, snapshot.plan_version, agent_url="http://api", deployment="test")

        return self.store.write(work)

    def call(self, machine: UUID) -> launches.LaunchCall:
        call = self.write(launches.begin_launch, machine, self.timeouts)
        assert call is not None
        return call

    def observe(self, machine: UUID, state: str = "running", **facts: object) -> None:
        """The provider's list has the machine in this state."""
        row = self.machine_row(machine)
        launched_at = facts.pop("launched_at", row.launched_at or self.clock.now)
        observed = ProviderMachine(
            row.provider, row.region, f"pm-{machine.hex}", str(machine), {}, state, launched_at, **facts
        )
        self.write(observations.record_observation, machine, observed, self.timeouts)

    def end(self, machine: UUID, cause: str = "exited") -> None:
        self.observe(machine, "ended", ended_at=self.clock.now, end_cause=cause)

    def launch(self, job: UUID) -> list[UUID]:
        """All planned machines of a job run."""
        planned = [row.id for row in self.machine_rows(job) if row.state == PLANNED]
        for machine in planned:
            self.call(machine)
            self.observe(machine)
        return planned

    def register(self, machine: UUID, session: str = "session", token_ok: bool = True) -> MachineRow | None:
        secret = wire.hash_session(f"{session} {machine}")
        return self.write(agents.register, machine, token_ok, secret, "127.0.0.1", wire.Hardware(cpus=2), self.timeouts)

    def say(self, machine: UUID, state: str, generation: int, **more: object) -> bool:
        status = wire.MemberStatus(generation=generation, state=state, **more)
        return self.write(agents.record_member_status, machine, status)

    def exits(self, machine: UUID, generation: int, outcome: str, **more: object) -> None:
        self.say(machine, "exited", generation, exits=[wire.RankExit(rank=0, outcome=outcome, at=1.0, **more)])

    def form(self, job: UUID) -> list[UUID]:
        """The machines that run register and get ready; the generation forms."""
        machines = [row.id for row in self.machine_rows(job) if row.state == RUNNING]
        for machine in machines:
            self.register(machine)
        for machine in machines:
            self.say(machine, "ready", self.job_row(job).generation, port=29500)
        return machines

    def running(self, nodes: int | str = 1, **fields: object) -> tuple[UUID, list[UUID]]:
        """A job whose first generation has formed, and its machines by slot."""
        job = self.start(nodes, **fields)
        self.launch(job)
        return job, self.form(job)

    def restart(self, job: UUID) -> int:
        """The next generation on the same machines; it forms."""
        number = self.write(gangs.open_generation, job, self.job_row(job).attempt, attempts.RankKilled(0))
        self.form(job)
        return number

    def train(self, job: UUID, step: int) -> None:
        """Points of the current generation are stored up to `step`."""
        number = self.job_row(job).generation
        self.alter(GenerationRow, GenerationRow.job == job, GenerationRow.number == number, last_step=step)

    def commit(self, machine: UUID, generation: int, step: int, reason: str = "periodic", **fields: Any) -> bool:
        """Commit a checkpoint, by default with the nonce that is offered."""
        place = self.read(checkpoints.next_upload_target, machine)
        request = {
            "generation": generation, "step": step, "reason": reason, "nonce": place.nonce if place else "000001",
            "manifest_sha256": f"{step:064d}", "bytes": 10 + step, "through_seq": 0,
        }  # fmt: skip
        return self.write(checkpoints.commit, machine, wire.CheckpointCommit(**request | fields))

    def finish_attempt(self, job: UUID) -> None:
        """The job's machines have ended and are billed; its attempt is closed."""
        for row in self.machine_rows(job):
            if row.state in (LAUNCHING, RUNNING, TERMINATING):
                self.end(row.id)
        assert self.write(gangs.finish_attempt, job, self.job_row(job).attempt)

    def retry(self, job: UUID, reason: str = "machine_lost") -> None:
        """The job's attempt ends, with its machines; it is queued again."""
        self.end_attempt(job, reason)
        self.finish_attempt(job)

    def end_attempt(self, job: UUID, reason: str) -> None:
        """The job is queued again; its attempt closes."""
        row = self.job_row(job)
        lost = attempts.MachineLost(0, None)
        self.store.write(lambda db: jobs.transition(db, row, JobState.QUEUED, actor="test", reason=lost))
        self.write(gangs.close_attempt, job, row.attempt, reason)

    def launch_again(self, job: UUID) -> list[UUID]:
        """The job's next attempt; its machines run."""
        self.clock.pass_(100)
        self.open_attempt(job)
        return self.launch(job)

    # What the rows say

    def job_row(self, job: UUID) -> JobRow:
        return self._one(JobRow, JobRow.id == job)

    def attempt_row(self, job: UUID, number: int = 1) -> AttemptRow:
        return self._one(AttemptRow, AttemptRow.job == job, AttemptRow.number == number)

    def generation_row(self, job: UUID, number: int = 1) -> GenerationRow:
        return self._one(GenerationRow, GenerationRow.job == job, GenerationRow.number == number)

    def machine_row(self, machine: UUID) -> MachineRow:
        return self._one(MachineRow, MachineRow.id == machine)

    def hold_row(self, machine: UUID) -> HoldRow:
        return self._one(HoldRow, HoldRow.machine == machine)

    def machine_rows(self, job: UUID) -> list[MachineRow]:
        """By attempt and ordinal, which is that of slots in the beginning."""
        return self._all(
            select(MachineRow).where(MachineRow.job == job).order_by(MachineRow.attempt, MachineRow.ordinal)
        )

    def ids(self, job: UUID) -> list[UUID]:
        return [row.id for row in self.machine_rows(job)]

    def member_rows(self, job: UUID, generation: int = 1) -> list[MemberRow]:
        chosen = select(MemberRow).where(MemberRow.job == job, MemberRow.generation == generation)
        return self._all(chosen.order_by(MemberRow.node_rank))

    def checkpoint_rows(self, job: UUID) -> list[CheckpointRow]:
        chosen = select(CheckpointRow).where(CheckpointRow.job == job)
        return self._all(chosen.order_by(CheckpointRow.generation, CheckpointRow.step))

    def transfer_rows(self, machine: UUID) -> list[TransferRow]:
        return self._all(select(TransferRow).where(TransferRow.machine == machine).order_by(TransferRow.id))

    def machine_states(self, job: UUID) -> list[str]:
        return [row.state for row in self.machine_rows(job)]

    def told(self, kind: str, machine: UUID) -> list[tuple[str, str]]:
        """State and reason, as it is stored, of the events about a machine."""
        return [(row.data["state"], row.reason) for row in self.events(kind) if about(row) == str(machine)]

    def _one(self, table: type[T], *where: Any) -> T:
        with self.store.read() as db:
            return db.sql.scalars(select(table).where(*where)).one()

    def _all(self, query: Any) -> list[Any]:
        with self.store.read() as db:
            return list(db.sql.scalars(query))


def about(row: EventRow) -> str | None:
    """What an event is about: a machine, a checkpoint, or the source of a batch."""
    return next((row.data[name] for name in ("machine", "checkpoint", "source") if name in row.data), None)


@contextmanager
def meanwhile(store: Store, table: str, change: UpdateBase, skip: int = 0) -> Iterator[None]:
    """Make a change just before the next UPDATE of `table`, as a transaction between a decision and its write would.

    skip  how many updates of the table come before that one
    """
    updates = 0

    def strike(connection, cursor, statement, parameters, context, many) -> None:
        nonlocal updates
        if statement.startswith(f"UPDATE {table} "):
            updates += 1
            if updates == skip + 1:
                connection.execute(change)

    event.listen(store.writer, "before_cursor_execute", strike)
    try:
        yield
    finally:
        event.remove(store.writer, "before_cursor_execute", strike)
    assert updates > skip, f"{table} was never updated"
