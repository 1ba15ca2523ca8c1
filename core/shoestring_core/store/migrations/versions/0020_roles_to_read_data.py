# SPDX-License-Identifier: Apache-2.0
"""roles to read data"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.add_column("offers", sa.Column("data_role", sa.Text(), nullable=True))
