# SPDX-License-Identifier: Apache-2.0
"""machines left to their provider"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.add_column("machines", sa.Column("left_until", sa.BigInteger(), nullable=True))
