# SPDX-License-Identifier: Apache-2.0
"""periods that begin later"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("budget_periods", sa.Column("then_ends_at", sa.BigInteger(), nullable=True))
