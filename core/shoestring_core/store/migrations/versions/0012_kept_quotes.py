# SPDX-License-Identifier: Apache-2.0
"""kept quotes"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("quote", Json, nullable=True))
    trained = sa.text("first_step_at IS NOT NULL")
    op.create_index(
        "ix_jobs_trained", "jobs", ["team_id", "created_at", "id"], unique=False, sqlite_where=trained,
        postgresql_where=trained,
    )  # fmt: skip
