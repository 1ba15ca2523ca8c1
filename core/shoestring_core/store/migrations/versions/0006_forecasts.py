# SPDX-License-Identifier: Apache-2.0
"""forecasts"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("accounts", sa.Column("forecast_told", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index(op.f("ix_transfers_at"), "transfers", ["at"], unique=False)
