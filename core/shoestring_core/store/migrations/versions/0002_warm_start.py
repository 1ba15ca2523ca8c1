# SPDX-License-Identifier: Apache-2.0
"""Warm start: the checkpoint with whose weights a job starts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("init", sa.Uuid(), nullable=True))
