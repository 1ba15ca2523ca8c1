# SPDX-License-Identifier: Apache-2.0
"""What must hold after a storm on the ledger: nothing lost or twice, every line balanced and as written."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any
from uuid import UUID

from shoestring_core.decide import billing
from shoestring_core.store import ledger
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import billing as machine_money
from shoestring_core.store.tables import (
    AccountRow,
    BudgetRequestRow,
    EventRow,
    HoldRow,
    JobRow,
    LimitChangeRow,
    MachineRow,
    TransferRow,
)
from shoestring_core.store.transactions import Read
from sqlalchemy import exc, func, select, text

from tests.core.store.ledger_storm import Storm, require_invariant

Journal = Sequence[dict[str, Any]]
EXACTLY_ONCE = {"grant": "granted", "transfer": "transferred"}


def drain(storm: Storm) -> None:
    """End and bill every machine that is left, by the same functions."""
    for state, kinds in (
        ("planned", ["refuse"]),
        ("launching", ["run", "end", "settle"]),
        ("running", ["end", "settle"]),
    ):
        storm.look()
        for machine in [one for one in storm.seen.machines if one.state == state]:
            for kind in kinds:
                more = {"late": False, "cause": "requested"} if kind == "end" else {}
                storm.perform({"kind": kind, "key": f"drain {kind} {machine.id}", "machine": str(machine.id), **more})
    storm.look()
    for machine in storm.seen.machines:
        storm.perform({"kind": "settle", "key": f"drain settle {machine.id}", "machine": str(machine.id)})


def find_faults(store: Store, journals: Iterable[Journal]) -> list[str]:
    """What is wrong with a store after `drain`; nothing, if all is well."""
    with store.read() as db:
        require_invariant(db)
        faults = [f"total: {one}" for one in ledger.find_discrepancies(db)]
        faults += [f"still held: {row.kind} {row.owner}" for row in db.sql.scalars(select(AccountRow)) if row.held]
        faults += _wrong_bills(db)
        faults += _wrong_limits(db)
        faults += _lost_or_repeated(db, [line for journal in journals for line in journal])
    return faults + _changeable(store)


def snapshot(db: Read) -> dict[UUID, tuple[Any, ...]]:
    """The newest lines of the ledger, to be found again as they are."""
    newest = select(TransferRow).order_by(TransferRow.id.desc()).limit(500)
    return {row.id: _content(row) for row in db.sql.scalars(newest)}


def changed_since(db: Read, before: Mapping[UUID, tuple[Any, ...]]) -> list[str]:
    """Lines of a snapshot that aren't there any more, or differ."""
    ids = list(before)
    now: dict[UUID, tuple[Any, ...]] = {}
    for start in range(0, len(ids), 500):
        rows = db.sql.scalars(select(TransferRow).where(TransferRow.id.in_(ids[start : start + 500])))
        now |= {row.id: _content(row) for row in rows}
    return [
        f"line {line} was {content}, is {now.get(line)}" for line, content in before.items() if now.get(line) != content
    ]


def _content(row: TransferRow) -> tuple[Any, ...]:
    return (row.kind, row.debit_account, row.credit_account, row.amount, row.machine, row.line, row.increment, row.at)


def _wrong_bills(db: Read) -> list[str]:
    """Each machine costs what its evidence says, posted once, from holds that are closed."""
    jobs = set(db.sql.scalars(select(AccountRow.id).where(AccountRow.kind == "job")))
    posted: dict[UUID, Counter[str]] = defaultdict(Counter)
    columns = (TransferRow.machine, TransferRow.line, TransferRow.debit_account, TransferRow.amount)
    for machine, line, debit, amount in db.sql.execute(select(*columns)):
        posted[machine][line] += amount if debit in jobs else -amount
    billed = Counter[str]()
    for (data,) in db.sql.execute(select(EventRow.data).where(EventRow.kind == "cost")):
        if data["action"] == "billed":
            billed[data["machine"]] += 1
    holds: dict[UUID, list[HoldRow]] = defaultdict(list)
    for hold in db.sql.scalars(select(HoldRow)):
        holds[hold.machine].append(hold)
    faults = []
    for machine in db.sql.scalars(select(MachineRow)):
        ran = machine.state == "terminated"
        lines = billing.bill(machine_money.evidence(machine), machine.ended_at or 0) if ran else []
        due = {line.line: line.amount for line in lines if line.amount}
        paid = {line: amount for line, amount in posted[machine.id].items() if amount}
        if paid != due:
            faults.append(f"machine {machine.id} cost {due}, posted {paid}")
        if billed[str(machine.id)] != int(ran):
            faults.append(f"machine {machine.id} was billed {billed[str(machine.id)]} times")
        if [hold.state for hold in holds[machine.id]] != ["closed"]:
            faults.append(f"machine {machine.id} has holds {[hold.state for hold in holds[machine.id]]}")
    return faults


def _wrong_limits(db: Read) -> list[str]:
    """Each change of a limit begins where the one before ended, and a transfer takes what it gives."""
    faults = []
    rows = db.sql.scalars(select(LimitChangeRow).order_by(LimitChangeRow.account, LimitChangeRow.version)).all()
    for before, after in pairwise(rows):
        if before.account == after.account and before.limit_after != after.limit_before:
            faults.append(
                f"limit of {after.account}: {before.limit_after} before, {after.limit_before} at {after.version}"
            )
    moved = Counter[str]()
    for row in rows:
        if row.kind == "transferred":
            moved[row.reason["facts"]["note"]] += row.limit_after - row.limit_before
    return faults + [f"transfer {key} made {amount}" for key, amount in moved.items() if amount]


def _lost_or_repeated(db: Read, lines: Journal) -> list[str]:
    """Of what was done under a key there is exactly one, of what was refused none; each approval granted once."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, reason in db.sql.execute(select(LimitChangeRow.kind, LimitChangeRow.reason)):
        found[kind][str(reason["facts"].get("note"))] += 1
    asked = Counter(db.sql.scalars(select(BudgetRequestRow.why)).all())
    submitted = Counter(db.sql.scalars(select(JobRow.name)).all())
    kinds = {line["key"]: line["kind"] for line in lines if "kind" in line}
    outcomes: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if "outcome" in line:
            outcomes[line["key"]].add(line["outcome"])
    faults = []
    for key, kind in kinds.items():
        wanted, done = int("done" in outcomes[key] or "nothing" in outcomes[key]), 0
        match kind:
            case "grant":
                done = found["granted"][key]
            case "transfer":
                done, wanted = found["transferred"][key], 2 * wanted
            case "ask":
                done = asked[key]
            case "submit":
                done = submitted[f"job {key}"]
            case _:
                continue
        if done != wanted:
            faults.append(f"{kind} {key}: {done} rows, {wanted} expected, outcomes {sorted(outcomes[key])}")
    for request in db.sql.scalars(select(BudgetRequestRow)):
        granted = found["granted"][f"request {request.id}"]
        if granted != (request.state == "approved"):
            faults.append(f"request {request.id} is {request.state}, granted {granted} times")
    return faults


def _changeable(store: Store) -> list[str]:
    """The lines of the ledger refuse every change."""
    faults = []
    for table in (TransferRow, LimitChangeRow):
        with store.read() as db:
            if not db.sql.scalar(select(func.count()).select_from(table)):
                continue  # SQLite's triggers are for each row
        name = table.__tablename__
        for statement in (f"UPDATE {name} SET actor = 'x'", f"DELETE FROM {name}"):
            try:
                store.write(lambda db, statement=statement: db.sql.execute(text(statement)))
            except exc.DBAPIError:
                continue
            faults.append(f"not refused: {statement}")
    return faults


def figures(store: Store, journals: Iterable[Journal]) -> dict[str, Any]:
    """What happened, counted."""
    outcomes, kinds, delivered = Counter[str](), Counter[str](), 0
    for journal in journals:
        delivered += sum("kind" in line for line in journal)
        kinds.update({line["key"]: line["kind"] for line in journal if "kind" in line}.values())
        outcomes.update(line["outcome"] for line in journal if "outcome" in line)
    with store.read() as db:
        tables = (TransferRow, HoldRow, LimitChangeRow)
        counts = {table.__tablename__: db.sql.scalar(select(func.count()).select_from(table)) for table in tables}
        by_kind = dict(db.sql.execute(select(LimitChangeRow.kind, func.count()).group_by(LimitChangeRow.kind)).all())
        overrun = select(func.sum(TransferRow.amount)).where(TransferRow.kind == "overrun")
        named = int(db.sql.scalar(overrun) or 0)
    return {
        "operations": sum(kinds.values()), "delivered": delivered, "outcomes": dict(outcomes), "kinds": dict(kinds),
        "rows": counts, "limit_changes": by_kind, "overrun": named,
    }  # fmt: skip
