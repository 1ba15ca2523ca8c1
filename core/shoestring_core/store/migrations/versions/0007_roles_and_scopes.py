# SPDX-License-Identifier: Apache-2.0
"""roles and scopes"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

ROLES = "role IN ('viewer','member','lead','admin')"
KINDS = "kind IN ('pat','svc','job','login')"
JOB_KEYS = "(kind = 'job') = (job IS NOT NULL)"
SESSION_US = 14 * 86_400 * 1_000_000
"""How long sessions lasted when those that are open began."""


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        copy_memberships()
        copy_keys_and_sessions()
        return
    op.drop_constraint(op.f("ck_memberships_role"), "memberships")
    op.create_check_constraint(op.f("ck_memberships_role"), "memberships", ROLES)
    for column in key_columns():
        op.add_column("keys", column)
    op.create_foreign_key(op.f("fk_keys_job"), "keys", "jobs", ["job"], ["id"])
    op.drop_constraint(op.f("ck_keys_kind"), "keys")
    op.create_check_constraint(op.f("ck_keys_kind"), "keys", KINDS)
    op.create_check_constraint(op.f("ck_keys_job_keys_name_a_job"), "keys", JOB_KEYS)
    for column in session_columns():
        op.add_column("sessions", column)
    op.add_column("sessions", sa.Column("created_at", sa.BigInteger(), nullable=True))
    op.execute(f"UPDATE sessions SET created_at = expires_at - {SESSION_US}")
    op.alter_column("sessions", "created_at", nullable=False)


def key_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("name", sa.Text(), nullable=False, server_default=""),
        sa.Column("scopes", sa.Text(), nullable=True),
        sa.Column("job", sa.Uuid(), nullable=True),
    ]


def session_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("scopes", sa.Text(), nullable=True),
        sa.Column("address", sa.Text(), nullable=False, server_default=""),
        sa.Column("browser", sa.Text(), nullable=False, server_default=""),
    ]


def copy_memberships() -> None:
    """SQLite can't change a CHECK: the rows go to a new table."""
    op.rename_table("memberships", "memberships_before")
    op.create_table(
        "memberships",
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.CheckConstraint(ROLES, name=op.f("ck_memberships_role")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_memberships_team_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_memberships_user_id")),
        sa.PrimaryKeyConstraint("team_id", "user_id", name=op.f("pk_memberships")),
    )
    op.execute("INSERT INTO memberships (team_id, user_id, role) SELECT team_id, user_id, role FROM memberships_before")
    op.drop_table("memberships_before")


def copy_keys_and_sessions() -> None:
    """Sessions too: their foreign key follows a table that is renamed."""
    op.rename_table("sessions", "sessions_before")
    op.rename_table("keys", "keys_before")
    op.create_table(
        "keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        *key_columns(),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("made_with", sa.Uuid(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(KINDS, name=op.f("ck_keys_kind")),
        sa.CheckConstraint(JOB_KEYS, name=op.f("ck_keys_job_keys_name_a_job")),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_keys_job")),
        sa.ForeignKeyConstraint(["made_with"], ["keys.id"], name=op.f("fk_keys_made_with")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_keys_team_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_keys_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_keys_hash")),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("made_with", sa.Uuid(), nullable=True),
        *session_columns(),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("csrf", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["made_with"], ["keys.id"], name=op.f("fk_sessions_made_with")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_sessions_team_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_sessions")),
    )
    keys = "id, kind, hash, user_id, team_id, created_at, made_with, expires_at, revoked_at"
    op.execute(f"INSERT INTO keys ({keys}) SELECT {keys} FROM keys_before")
    sessions = "hash, user_id, team_id, made_with, expires_at, csrf"
    op.execute(
        f"INSERT INTO sessions ({sessions}, created_at) SELECT {sessions}, expires_at - {SESSION_US} "
        "FROM sessions_before"
    )
    op.drop_table("sessions_before")
    op.drop_table("keys_before")
