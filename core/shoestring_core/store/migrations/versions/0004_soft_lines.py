# SPDX-License-Identifier: Apache-2.0
"""soft lines"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("accounts", sa.Column("soft_lines", Json, nullable=True))
    op.add_column("accounts", sa.Column("soft_line_reached", sa.BigInteger(), nullable=False, server_default="0"))
