# SPDX-License-Identifier: Apache-2.0
"""The audit log of each team: who did what, on what, when and from where, written with the change itself.

    audit.record(db, caller, "set_limit", "team vision", limit="25.00")

An entry joins its team's chain later, in a batch, so that no change waits for another one's. Each batch is sealed in
the object store. See decide.audit for what the chain and its seals prove.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, LargeBinary, Select, bindparam, cast, func, select, update
from sqlalchemy.orm import InstrumentedAttribute

from shoestring_core.decide.audit import FIRST_HASH, Entry, Link, Seal, Verdict, hash_entry, verify_chain
from shoestring_core.store.audit_seals import newest_seal
from shoestring_core.store.db import Store
from shoestring_core.store.identity import Principal
from shoestring_core.store.objects import Objects
from shoestring_core.store.tables import AuditEntryRow, AuditLinkRow, AuditSealRow, TeamRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7

BATCH = 5_000
"""Entries that join a chain in one transaction."""
PAGE = 2_000
"""Entries that are read at a time."""


@dataclass(frozen=True)
class Operator:
    """Who runs commands of `shoestring_api.admin`, on the service's own computer."""

    team: UUID
    actor: str = "operator"
    address: str = ""
    credential: str = "operator's command"


def record(db: Write, who: Principal | Operator, action: str, subject: str, **detail: Any) -> None:
    """Write an entry. action: the operation; subject: what it is done to; detail: facts, as JSON can hold them."""
    db.insert(
        AuditEntryRow(
            id=uuid7().hex, team=who.team.hex, at=db.now, actor=who.actor, action=action, subject=subject,
            detail=json.dumps(detail, sort_keys=True), address=who.address, credential=who.credential,
        )
    )  # fmt: skip


def load_entries(db: Read, team: UUID, before: str | None, limit: int) -> Sequence[AuditEntryRow]:
    """A team's entries, the newest first. before: the id of an entry; None: from the newest on."""
    query = select(AuditEntryRow).where(AuditEntryRow.team == team.hex)
    if before is not None:
        query = query.where(AuditEntryRow.id < before)
    return db.sql.scalars(query.order_by(AuditEntryRow.id.desc()).limit(limit)).all()


# The chain


def unchained_teams(db: Read) -> list[UUID]:
    """Teams with entries that are in no chain yet."""
    return [UUID(team) for (team,) in db.sql.execute(_unchained().with_only_columns(AuditEntryRow.team).distinct())]


def chain_batch(db: Write, team: UUID) -> Seal | None:
    """Add entries of a team that are in no chain yet to its chain, and return the batch's seal, which is to be stored.

    None: there was none.
    """
    db.execute(update(TeamRow).where(TeamRow.id == team).values(name=TeamRow.name))  # one batch at a time
    new = db.sql.scalars(
        _unchained().where(AuditEntryRow.team == team.hex).order_by(AuditEntryRow.id).limit(BATCH)
    ).all()
    if not new:
        return None
    last = _last_link(db, team)
    number, previous = (last.number, last.hash) if last else (0, FIRST_HASH)
    rows = []
    for row in new:
        number, previous = number + 1, hash_entry(previous, _entry(row))
        rows.append({"team": team.hex, "number": number, "entry": row.id, "hash": previous})
    db.insert_missing(AuditLinkRow, rows)
    sealed = db.sql.scalar(select(func.max(AuditSealRow.number)).where(AuditSealRow.team == team.hex)) or 0
    seal = Seal(team.hex, sealed + 1, number, previous, db.now)
    db.insert(AuditSealRow(team=team.hex, number=seal.number, entries=number, hash=previous, at=seal.at))
    return seal


def last_seal(db: Read, team: UUID) -> Seal | None:
    """The newest that the database has; it may not be in the object store yet."""
    newest = select(AuditSealRow).where(AuditSealRow.team == team.hex).order_by(AuditSealRow.number.desc()).limit(1)
    row = db.sql.scalar(newest)
    return None if row is None else Seal(row.team, row.number, row.entries, row.hash, row.at)


# Verification


@dataclass(frozen=True)
class Verification:
    """Of a team's log.

    unsealed  the entries that no stored seal covers, the oldest first, at most PAGE of them; `unsealed_count` of all
    """

    verdict: Verdict
    unsealed: Sequence[AuditEntryRow]
    unsealed_count: int


def verify(store: Store, objects: Objects, secret: str, team: UUID) -> Verification:
    """Compare a team's whole log with its chain and its newest seal. Raises Unavailable.

    The entries that no seal covers are named, because a change of those can't be found.
    """
    with store.read() as db:
        return verify_in(db, objects, secret, team)


def verify_in(db: Read, objects: Objects, secret: str, team: UUID) -> Verification:
    """As `verify`, of what a transaction sees."""
    seal, faults = newest_seal(objects, secret, team, last_seal(db, team))
    verdict = verify_chain(_links(db, team), seal)
    covered = select(AuditLinkRow.entry).where(
        AuditLinkRow.team == team.hex, AuditLinkRow.number <= (seal.entries if seal else 0)
    )
    tail = (AuditEntryRow.team == team.hex, AuditEntryRow.id.not_in(covered))
    count = db.sql.scalar(select(func.count()).select_from(AuditEntryRow).where(*tail)) or 0
    unsealed = db.sql.scalars(select(AuditEntryRow).where(*tail).order_by(AuditEntryRow.id).limit(PAGE)).all()
    found = [*faults, *verdict.faults]
    verdict = Verdict(verdict.chained, verdict.sealed, found, verdict.fault_count + len(faults))
    return Verification(verdict, unsealed, count)


def _links(db: Read, team: UUID) -> Iterator[Link]:
    """By columns: a hundred thousand rows as objects would take three times as long."""
    query = _select_links(db.connection.dialect.name)
    after = 0
    while True:
        rows = db.rows(query, team=team.hex, after=after)
        for number, *texts in rows:
            link_hash, *entry = map(_decoded, texts)
            yield Link(number, None if entry[0] is None else Entry(*entry), link_hash)
        if len(rows) < PAGE:
            return
        after = rows[-1].number


@cache
def _select_links(dialect: str) -> Select[*tuple[Any, ...]]:
    """SQLite holds any bytes as text, also such as no driver decodes: they are read as bytes."""

    def column(of: InstrumentedAttribute[Any]) -> ColumnElement[Any]:
        return cast(of, LargeBinary) if dialect == "sqlite" and of.key != "at" else of.expression

    entry = [column(getattr(AuditEntryRow, field.name)) for field in fields(Entry)]
    query = select(AuditLinkRow.number, column(AuditLinkRow.hash), *entry)
    query = query.join_from(AuditLinkRow, AuditEntryRow, AuditEntryRow.id == AuditLinkRow.entry, isouter=True)
    query = query.where(AuditLinkRow.team == bindparam("team"), AuditLinkRow.number > bindparam("after"))
    return query.order_by(AuditLinkRow.number).limit(PAGE)


def _decoded(value: Any) -> Any:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def _last_link(db: Read, team: UUID) -> AuditLinkRow | None:
    links = select(AuditLinkRow).where(AuditLinkRow.team == team.hex)
    return db.sql.scalar(links.order_by(AuditLinkRow.number.desc()).limit(1))


def _unchained() -> Any:
    chained = select(AuditLinkRow.entry).where(AuditLinkRow.entry == AuditEntryRow.id).exists()
    return select(AuditEntryRow).where(~chained)


def _entry(row: AuditEntryRow) -> Entry:
    return Entry(row.id, row.team, row.at, row.actor, row.action, row.subject, row.detail, row.address, row.credential)


def subject(kind: str, name: str, id_: UUID | None = None) -> str:
    return f"{kind} {name}" if id_ is None else f"{kind} {name} ({id_})"
