# SPDX-License-Identifier: Apache-2.0
"""Alembic's entry point. Migrations run in the transaction of the connection they are given."""

from __future__ import annotations

from alembic import context

from shoestring_core.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
)
context.run_migrations()
