# SPDX-License-Identifier: Apache-2.0
"""when keys were last used"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("keys", sa.Column("last_used_at", sa.BigInteger(), nullable=True))
