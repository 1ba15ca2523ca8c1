# SPDX-License-Identifier: Apache-2.0
"""`check` that models and migrations agree, or write a `new MESSAGE` migration from their difference (then read it)."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from alembic import command
from sqlalchemy import Connection

from shoestring_core.store import migrations
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.tables import Base


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m shoestring_core.store.migrations", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    commands.add_parser("new").add_argument("message")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        migrated = _open(folder, "migrated")
        migrated.migrate()
        if arguments.command == "check":
            return _check(migrated, _open(folder, "created"))
        with migrated.writer.begin() as connection:
            return _new(connection, arguments.message)


def _check(migrated: Store, created: Store) -> int:
    with created.writer.begin() as connection:
        Base.metadata.create_all(connection)
    with migrated.reader.connect() as left, created.reader.connect() as right:
        found = migrations.differences(left, right)
    print("\n".join(found) or "models and migrations agree")
    return 1 if found else 0


def _new(connection: Connection, message: str) -> int:
    settings = migrations.config()
    settings.attributes["connection"] = connection
    command.revision(settings, message=message, autogenerate=True, rev_id=f"{len(migrations.known()) + 1:04d}")
    return 0


def _open(folder: str, name: str) -> Store:
    return open_store(f"sqlite:///{Path(folder) / name}.db")


if __name__ == "__main__":
    sys.exit(main())
