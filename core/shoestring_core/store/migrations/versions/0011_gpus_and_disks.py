# SPDX-License-Identifier: Apache-2.0
"""GPUs of machines and disks of offers"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("offers", sa.Column("disk", Json, nullable=True))
    op.add_column("machines", sa.Column("offered_hardware", Json, nullable=True))
