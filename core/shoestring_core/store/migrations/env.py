# SPDX-License-Identifier: Apache-2.0
"""Alembic's entry point. Migrations run in the transaction of the connection they are given."""

from __future__ import annotations

from alembic import context

from shoestring_core.store.tables import Base, StorableText

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
    render_item=lambda _kind, item, _context: "sa.Text()" if isinstance(item, StorableText) else False,
)
context.run_migrations()
