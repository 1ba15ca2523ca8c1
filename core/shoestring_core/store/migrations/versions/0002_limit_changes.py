# SPDX-License-Identifier: Apache-2.0
"""limit changes"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "limit_changes",
        sa.Column("account", sa.Uuid(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("limit_before", sa.BigInteger(), nullable=True),
        sa.Column("limit_after", sa.BigInteger(), nullable=True),
        sa.Column("counterpart", sa.Uuid(), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", Json, nullable=False),
        sa.CheckConstraint("kind IN ('adjusted','granted','transferred')", name=op.f("ck_limit_changes_kind")),
        sa.CheckConstraint(
            "(kind = 'transferred') = (counterpart IS NOT NULL)",
            name=op.f("ck_limit_changes_transfers_have_two_sides"),
        ),
        sa.CheckConstraint(
            "kind <> 'granted' OR limit_after > limit_before", name=op.f("ck_limit_changes_grants_raise")
        ),
        sa.ForeignKeyConstraint(["account"], ["accounts.id"], name=op.f("fk_limit_changes_account")),
        sa.ForeignKeyConstraint(["counterpart"], ["accounts.id"], name=op.f("fk_limit_changes_counterpart")),
        sa.PrimaryKeyConstraint("account", "version", name=op.f("pk_limit_changes")),
    )
    make_limit_changes_immutable()


def make_limit_changes_immutable() -> None:
    """A limit is corrected by a further change only, also by hand."""
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER limit_changes_refuse_{change.lower()} BEFORE {change} ON limit_changes "
                "BEGIN SELECT RAISE(ABORT, 'changes of limits are immutable: make a further one'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION limit_changes_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'changes of limits are immutable: make a further one'; END $$"
    )
    op.execute(
        "CREATE TRIGGER limit_changes_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON limit_changes "
        "FOR EACH STATEMENT EXECUTE FUNCTION limit_changes_refuse()"
    )
