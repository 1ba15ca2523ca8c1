# SPDX-License-Identifier: Apache-2.0
"""images and drivers of machines"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column("machines", sa.Column("image", sa.Text(), nullable=True))
    op.add_column("machines", sa.Column("driver", sa.Text(), nullable=True))
