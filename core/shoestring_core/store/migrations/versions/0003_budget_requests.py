# SPDX-License-Identifier: Apache-2.0
"""budget requests"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "budget_requests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("team", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.Uuid(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), nullable=False),
        sa.CheckConstraint("(state = 'open') = (decided_at IS NULL)", name=op.f("ck_budget_requests_decided_once")),
        sa.CheckConstraint("state IN ('open','approved','denied')", name=op.f("ck_budget_requests_state")),
        sa.CheckConstraint("amount > 0", name=op.f("ck_budget_requests_amount_positive")),
        sa.ForeignKeyConstraint(["account"], ["accounts.id"], name=op.f("fk_budget_requests_account")),
        sa.ForeignKeyConstraint(["team"], ["teams.id"], name=op.f("fk_budget_requests_team")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_budget_requests_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budget_requests")),
    )
    op.create_index(op.f("ix_budget_requests_team_created_at"), "budget_requests", ["team", "created_at"], unique=False)
