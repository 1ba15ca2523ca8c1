# SPDX-License-Identifier: Apache-2.0
"""budget periods"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
KINDS = "kind IN ('adjusted','granted','transferred','rolled_over')"


def upgrade() -> None:
    op.create_table(
        "budget_periods",
        sa.Column("account", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.Column("closed", sa.Boolean(), nullable=False),
        sa.Column("rollover", sa.Text(), nullable=False),
        sa.Column("rollover_cap", sa.BigInteger(), nullable=True),
        sa.Column("carried_over", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("NOT closed OR kind = 'term'", name=op.f("ck_budget_periods_months_go_on")),
        sa.CheckConstraint("kind IN ('month','term')", name=op.f("ck_budget_periods_kind")),
        sa.CheckConstraint("rollover IN ('none','unspent')", name=op.f("ck_budget_periods_rollover")),
        sa.ForeignKeyConstraint(["account"], ["accounts.id"], name=op.f("fk_budget_periods_account")),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_budget_periods")),
    )
    op.create_index(op.f("ix_budget_periods_ends_at"), "budget_periods", ["ends_at"], unique=False)
    op.create_table(
        "carried_holds",
        sa.Column("account", sa.Uuid(), nullable=False),
        sa.Column("hold", sa.Uuid(), nullable=False),
        sa.Column("rest", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("rest >= 0", name=op.f("ck_carried_holds_rest_not_negative")),
        sa.ForeignKeyConstraint(["account"], ["accounts.id"], name=op.f("fk_carried_holds_account")),
        sa.ForeignKeyConstraint(["hold"], ["holds.id"], name=op.f("fk_carried_holds_hold")),
        sa.PrimaryKeyConstraint("account", "hold", name=op.f("pk_carried_holds")),
    )
    op.add_column("accounts", sa.Column("period_base", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("accounts", sa.Column("carried", sa.BigInteger(), nullable=False, server_default="0"))
    if op.get_bind().dialect.name == "sqlite":
        copy_limit_changes()
        return
    op.add_column("limit_changes", sa.Column("base", sa.BigInteger(), nullable=False, server_default="0"))
    op.drop_constraint(op.f("ck_limit_changes_kind"), "limit_changes")
    op.create_check_constraint(op.f("ck_limit_changes_kind"), "limit_changes", KINDS)


def copy_limit_changes() -> None:
    """SQLite can't change a CHECK: the rows go to a new table, which gets the triggers of the old one."""
    op.rename_table("limit_changes", "limit_changes_before")
    op.create_table(
        "limit_changes",
        sa.Column("account", sa.Uuid(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("limit_before", sa.BigInteger(), nullable=True),
        sa.Column("limit_after", sa.BigInteger(), nullable=True),
        sa.Column("base", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("counterpart", sa.Uuid(), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", Json, nullable=False),
        sa.CheckConstraint(KINDS, name=op.f("ck_limit_changes_kind")),
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
    columns = "account, version, kind, limit_before, limit_after, counterpart, at, actor, reason"
    op.execute(f"INSERT INTO limit_changes ({columns}) SELECT {columns} FROM limit_changes_before")
    op.drop_table("limit_changes_before")
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER limit_changes_refuse_{change.lower()} BEFORE {change} ON limit_changes "
            "BEGIN SELECT RAISE(ABORT, 'changes of limits are immutable: make a further one'); END"
        )
