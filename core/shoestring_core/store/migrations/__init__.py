# SPDX-License-Identifier: Apache-2.0
"""Versions of the schema. Forward only: an older Shoestring refuses a newer database."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect


def upgrade(connection: Connection) -> None:
    """Bring the schema to the newest version, in the caller's transaction."""
    settings = config()
    settings.attributes["connection"] = connection
    command.upgrade(settings, "head")


def revision(connection: Connection) -> str | None:
    """The version that the database is at; None if it is empty."""
    return MigrationContext.configure(connection).get_current_revision()


@cache
def head() -> str:
    """The newest version that this code knows."""
    newest = ScriptDirectory.from_config(config()).get_current_head()
    assert newest is not None
    return newest


@cache
def known() -> frozenset[str]:
    """Every version that this code can read or upgrade."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(config()).walk_revisions())


def config() -> Config:
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return settings


def differences(migrated: Connection, created: Connection) -> list[str]:
    """How two databases differ in tables, columns, keys, indexes and checks: one migrated, one made from the models."""
    left, right = described(migrated), described(created)
    return [f"only the migrations make: {line}" for line in sorted(left - right)] + [
        f"only the models make: {line}" for line in sorted(right - left)
    ]


def described(connection: Connection, schema: str | None = None) -> set[str]:
    """Every part of the schema as one line of text. Alembic's own comparison is blind to CHECK constraints."""
    inspector = inspect(connection)
    lines: set[str] = set()
    for table in set(inspector.get_table_names(schema)) - {"alembic_version"}:
        for column in inspector.get_columns(table, schema):
            null = "" if column["nullable"] else " NOT NULL"
            lines.add(f"{table}.{column['name']} {column['type']!r}{null} default {column['default']}")
        parts = [
            inspector.get_pk_constraint(table, schema),
            *inspector.get_foreign_keys(table, schema),
            *inspector.get_indexes(table, schema),
            *inspector.get_unique_constraints(table, schema),
            *inspector.get_check_constraints(table, schema),
        ]
        lines |= {f"{table} {_text(part)}" for part in parts}
    return lines


def _text(part: object) -> str:
    """Mappings by key, and SQL expressions as the SQL they are."""
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{key}: {_text(part[key])}" for key in sorted(part)) + "}"
    return str(part)
