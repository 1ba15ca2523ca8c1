# SPDX-License-Identifier: Apache-2.0
"""time to store checkpoints"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("save_ms", sa.BigInteger(), nullable=True))
