# SPDX-License-Identifier: Apache-2.0
"""guaranteed rates"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("accounts", sa.Column("guaranteed_rate", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("attempts", sa.Column("eviction", Json, nullable=True))
