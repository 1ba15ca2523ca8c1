# SPDX-License-Identifier: Apache-2.0
"""concurrency caps"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("accounts", sa.Column("max_jobs", sa.BigInteger(), nullable=True))
    op.add_column("accounts", sa.Column("max_gpus", sa.BigInteger(), nullable=True))
