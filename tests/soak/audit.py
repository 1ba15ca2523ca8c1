# SPDX-License-Identifier: Apache-2.0
"""An audit log of 100,000 entries, changed by somebody with access to the database: each change is found.

    python -m tests.soak.audit --seed N [--entries 100000] [--changes 60]

In turn, each at a random place and undone afterwards: a bit of any column of an entry, a bit of a hash, an entry
removed with its link, an entry without it, and the end cut off at any place before the newest seal. `make test` has
each kind on a short log.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from uuid import UUID

from shoestring_core.decide.audit import Entry
from shoestring_core.store import audit, audit_seals, identity
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.objects import Objects, open_objects
from shoestring_core.store.transactions import Read, Write
from sqlalchemy import Connection, text

SEEDS = 1
SECRET = "secret"
BATCH = 10_000
LINKED = "SELECT * FROM audit_links JOIN audit_entries ON audit_entries.id = entry WHERE number = :number"

Change = Callable[[Connection, random.Random, Mapping[str, Any]], None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--changes", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{Path(folder) / 'store.db'}")
        store.migrate()
        objects = open_objects(str(Path(folder) / "objects"), SECRET, "http://127.0.0.1", None)
        team = fill(store, objects, options.entries)
        began = time.monotonic()
        found = audit.verify(store, objects, SECRET, team)
        seconds = time.monotonic() - began
        intact = (found.verdict.sealed, found.verdict.fault_count) == (options.entries, 0)
        drop_triggers(store)
        missed = look_for_changes(store, objects, team, options)
        unchanged = audit.verify(store, objects, SECRET, team).verdict.fault_count == 0
        store.close()
    print(json.dumps({"entries": options.entries, "verified_s": round(seconds, 1), **missed}))
    return 0 if intact and unchanged and not missed["missed"] else 1


def fill(store: Store, objects: Objects, entries: int) -> UUID:
    admin = store.write(lambda db: identity.ensure_admin(db, "home", "lab", "admin"))

    def record(db: Write) -> None:
        for number in range(min(BATCH, entries)):
            audit.record(db, admin, "grant", f"budget {number}", amount="1.00", reason="one more sweep")

    for _ in range(0, entries, BATCH):
        store.write(record)
    while (seal := store.write(lambda db: audit.chain_batch(db, admin.team))) is not None:
        audit_seals.store_seal(objects, SECRET, seal)
    return admin.team


def drop_triggers(store: Store) -> None:
    with store.writer.begin() as connection:
        for table in ("audit_entries", "audit_links", "audit_seals"):
            for change in ("update", "delete"):
                connection.execute(text(f"DROP TRIGGER {table}_refuse_{change}"))


def look_for_changes(store: Store, objects: Objects, team: UUID, options: argparse.Namespace) -> dict[str, Any]:
    randomly, tried, missed = random.Random(options.seed), Counter[str](), []
    for turn in range(options.changes):
        change = CHANGES[turn % len(CHANGES)]
        number = randomly.randint(1, options.entries)
        with store.writer.connect() as connection:
            row = connection.execute(text(LINKED), {"number": number}).mappings().one()
            change(connection, randomly, row)
            verdict = audit.verify_in(Read(connection), objects, SECRET, team).verdict
            connection.rollback()
        tried[change.__name__] += 1
        if not verdict.fault_count or verdict.faults[0].number > number:
            missed.append((change.__name__, number))
    return {"tried": dict(tried), "missed": missed}


def edit_entry(connection: Connection, randomly: random.Random, row: Mapping[str, Any]) -> None:
    column = randomly.choice([field.name for field in fields(Entry) if row[field.name] != ""])
    value = row[column] ^ 1 << randomly.randrange(40) if column == "at" else flip(row[column], randomly)
    change = f"UPDATE audit_entries SET {column} = :value WHERE id = :id"
    connection.execute(text(change), {"value": value, "id": row["id"]})


def edit_hash(connection: Connection, randomly: random.Random, row: Mapping[str, Any]) -> None:
    change = "UPDATE audit_links SET hash = :value WHERE number = :number"
    connection.execute(text(change), {"value": flip(row["hash"], randomly), "number": row["number"]})


def remove_row(connection: Connection, _: random.Random, row: Mapping[str, Any]) -> None:
    connection.execute(text("DELETE FROM audit_links WHERE number = :number"), {"number": row["number"]})
    remove_entry(connection, _, row)


def remove_entry(connection: Connection, _: random.Random, row: Mapping[str, Any]) -> None:
    connection.execute(text("DELETE FROM audit_entries WHERE id = :id"), {"id": row["id"]})


def cut_end(connection: Connection, _: random.Random, row: Mapping[str, Any]) -> None:
    cut = {"number": row["number"]}
    late = "SELECT entry FROM audit_links WHERE number >= :number"
    connection.execute(text(f"DELETE FROM audit_entries WHERE id IN ({late})"), cut)
    connection.execute(text("DELETE FROM audit_links WHERE number >= :number"), cut)
    connection.execute(text("DELETE FROM audit_seals WHERE entries >= :number"), cut)


def flip(value: str, randomly: random.Random) -> str:
    """The text with one bit of one character changed, within ASCII."""
    at = randomly.randrange(len(value))
    return value[:at] + chr(ord(value[at]) ^ 1 << randomly.randrange(6)) + value[at + 1 :]


CHANGES: list[Change] = [edit_entry, edit_hash, remove_row, remove_entry, cut_end]


def summarise(_: str, last_lines: list[str]) -> tuple[bool, list[str]]:
    done = [json.loads(line) for line in last_lines]
    missed = sum(len(one["missed"]) for one in done)
    tried = sum(sum(one["tried"].values()) for one in done)
    slowest = max(one["verified_s"] for one in done)
    bound = "MISSED" if missed else "holds"
    return not missed, [
        f"`audit verify` of {done[0]['entries']:,} entries: {slowest} s",
        f"{tried} changes of entries, hashes and rows, and cut ends: {missed} missed (bound 0: {bound})",
    ]


if __name__ == "__main__":
    sys.exit(main())
