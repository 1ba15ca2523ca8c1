# SPDX-License-Identifier: Apache-2.0
"""Spans of steps that a job passes over since its numbers broke there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("skips", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True))
