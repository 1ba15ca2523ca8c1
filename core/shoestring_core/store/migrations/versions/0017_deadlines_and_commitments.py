# SPDX-License-Identifier: Apache-2.0
"""deadlines and commitments"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017"
down_revision = "0016"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "commitments",
        sa.Column("account", sa.Uuid(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_commitments_amount")),
        sa.ForeignKeyConstraint(["account"], ["accounts.id"], name=op.f("fk_commitments_account")),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_commitments")),
    )
    op.create_table(
        "deadlines",
        sa.Column("job", sa.Uuid(), nullable=False),
        sa.Column("plan", Json, nullable=False),
        sa.Column("market", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("because", sa.Text(), nullable=False),
        sa.Column("inputs", Json, nullable=True),
        sa.Column("changes", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("market IN ('wait','spot','on_demand')", name=op.f("ck_deadlines_market")),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_deadlines_job")),
        sa.PrimaryKeyConstraint("job", name=op.f("pk_deadlines")),
    )
    op.create_index(op.f("ix_deadlines_next_at"), "deadlines", ["next_at"], unique=False)
    op.add_column("attempts", sa.Column("market_change", Json, nullable=True))
