# SPDX-License-Identifier: Apache-2.0
"""A team with jobs and machines in a real store, as small as the tables allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from shoestring_core import spec
from shoestring_core.decide.billing import Line
from shoestring_core.store import identity, jobs, ledger
from shoestring_core.store.db import Store
from shoestring_core.store.ids import new_id
from shoestring_core.store.tables import AccountRow, AttemptRow, EventRow, JobRow, MachineRow
from shoestring_core.wording.budget import NeverRan
from sqlalchemy import select


@dataclass
class World:
    """One organisation, team and member. Every name is new, so that a store can hold many worlds."""

    store: Store
    name: str = field(default_factory=lambda: new_id().hex)

    def __post_init__(self) -> None:
        self.me = self.store.write(
            lambda db: identity.ensure_admin(db, f"org {self.name}", f"team {self.name}", f"user {self.name}")
        )
        self.team = self.me.team

    def job(self, cost: str | None = None, *, min_hold: int = 0, **fields: object) -> JobRow:
        tree = {"recipe": "digits/quickstart", **fields} | ({"limits": {"cost": cost}} if cost else {})
        parsed = spec.parse(tree)
        return self.store.write(lambda db: jobs.submit(db, self.team, self.me.user, parsed, min_hold=min_hold))

    def machine(self, job: JobRow) -> UUID:
        machine = new_id()

        def work(db):
            db.insert_new(AttemptRow, job=job.id, number=1, state="open", plan={}, scheduler_epoch=0, opened_at=db.now)
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
        """(posted, held, overdraft) of job, member, team, organisation."""
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
