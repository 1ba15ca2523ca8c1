# SPDX-License-Identifier: Apache-2.0
"""The initial schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("parent", sa.Uuid(), nullable=True),
        sa.Column("level", sa.BigInteger(), nullable=False),
        sa.Column("limit_micro", sa.BigInteger(), nullable=True),
        sa.Column("posted", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("overdraft", sa.BigInteger(), nullable=False),
        sa.Column("weight", sa.BigInteger(), nullable=False),
        sa.Column("recent", sa.BigInteger(), nullable=False),
        sa.Column("recent_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('org','team','member','job','cash','overrun')", name=op.f("ck_accounts_kind")),
        sa.CheckConstraint("held >= 0", name=op.f("ck_accounts_held_not_negative")),
        sa.CheckConstraint(
            "limit_micro IS NULL OR posted + held <= limit_micro + overdraft", name=op.f("ck_accounts_never_overspent")
        ),
        sa.CheckConstraint("overdraft >= 0", name=op.f("ck_accounts_overdraft_not_negative")),
        sa.CheckConstraint("1 <= weight AND weight <= 1000", name=op.f("ck_accounts_weight_in_bounds")),
        sa.ForeignKeyConstraint(["parent"], ["accounts.id"], name=op.f("fk_accounts_parent")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
    )
    op.create_index(
        op.f("ix_accounts_overdraft"),
        "accounts",
        ["overdraft"],
        unique=False,
        sqlite_where=sa.text("overdraft > 0"),
        postgresql_where=sa.text("overdraft > 0"),
    )
    op.create_index("uq_accounts_owner", "accounts", ["kind", "owner", "period"], unique=True)
    op.create_table(
        "idempotency",
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_sha", sa.Text(), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("begun_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("principal", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_begun_at"), "idempotency", ["begun_at"], unique=False)
    op.create_table(
        "leaks",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("provider_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("hourly", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("found_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("provider", "region", "provider_id", name=op.f("pk_leaks")),
    )
    op.create_table(
        "offers",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("market", sa.Text(), nullable=False),
        sa.Column("price", sa.Text(), nullable=False),
        sa.Column("on_demand_price", sa.Text(), nullable=False),
        sa.Column("slots", sa.BigInteger(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("hardware", Json, nullable=True),
        sa.Column("interruption", sa.Text(), nullable=True),
        sa.Column("billing", Json, nullable=False),
        sa.PrimaryKeyConstraint("provider", "region", "zone", "type", "market", name=op.f("pk_offers")),
    )
    op.create_table(
        "prices",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("market", sa.Text(), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("fetched_at", sa.BigInteger(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("provider", "region", "zone", "type", "market", "valid_from", name=op.f("pk_prices")),
    )
    op.create_table(
        "providers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("timeouts", Json, nullable=False),
        sa.Column("answered_at", sa.BigInteger(), nullable=False),
        sa.Column("offers_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_providers")),
    )
    op.create_table(
        "scheduler",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("plan_version", sa.BigInteger(), nullable=False),
        sa.Column("recent_half_life", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_scheduler_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scheduler")),
    )
    op.create_table(
        "services",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("up_since", sa.BigInteger(), nullable=False),
        sa.Column("last_heartbeat_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_services")),
    )
    op.create_table(
        "teams",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("feed_seq", sa.BigInteger(), nullable=False),
        sa.Column("schedule_changes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_teams")),
        sa.UniqueConstraint("name", name=op.f("uq_teams_name")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
    )
    op.create_table(
        "events",
        sa.Column("team", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("job", sa.Uuid(), nullable=True),
        sa.Column("attempt", sa.BigInteger(), nullable=True),
        sa.Column("generation", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", Json, nullable=True),
        sa.Column("data", Json, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["team"], ["teams.id"], name=op.f("fk_events_team")),
        sa.PrimaryKeyConstraint("team", "seq", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_job_seq"), "events", ["job", "seq"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("sizing", Json, nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("desired_state", sa.Text(), nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=False),
        sa.Column("wait_reason", sa.Text(), nullable=True),
        sa.Column("wait_detail", Json, nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.Column("end_detail", Json, nullable=True),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint", sa.Uuid(), nullable=True),
        sa.Column("init_checkpoint", sa.Uuid(), nullable=True),
        sa.Column("skipped_step_spans", Json, nullable=True),
        sa.Column("steps_total", sa.BigInteger(), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("last_epoch_milli", sa.BigInteger(), nullable=True),
        sa.Column("latest", Json, nullable=False),
        sa.Column("log_hour", sa.BigInteger(), nullable=False),
        sa.Column("log_bytes", sa.BigInteger(), nullable=False),
        sa.Column("log_truncated", sa.Boolean(), nullable=False),
        sa.Column("result", Json, nullable=True),
        sa.Column("retried_from", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("queued_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("first_step_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("settled_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(state = 'ended') = (end_reason IS NOT NULL)", name=op.f("ck_jobs_ended_has_reason")),
        sa.CheckConstraint("desired_state IN ('run','pause','stop')", name=op.f("ck_jobs_desired_state")),
        sa.CheckConstraint(
            "state IN ('awaiting_approval','queued','launching','running','stopping','paused','ended')",
            name=op.f("ck_jobs_state"),
        ),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_jobs_team_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_jobs_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_state_settled_at"), "jobs", ["state", "settled_at"], unique=False)
    op.create_index(
        "ix_jobs_queue", "jobs", ["state", "team_id", "user_id", "queued_at", "id", "desired_state"], unique=False
    )
    op.create_index(op.f("ix_jobs_team_id_created_at_id"), "jobs", ["team_id", "created_at", "id"], unique=False)
    op.create_index(
        op.f("ix_jobs_wait_reason"),
        "jobs",
        ["wait_reason"],
        unique=False,
        sqlite_where=sa.text("wait_reason IS NOT NULL"),
        postgresql_where=sa.text("wait_reason IS NOT NULL"),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("made_with", sa.Uuid(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("kind IN ('pat','svc','login')", name=op.f("ck_keys_kind")),
        sa.ForeignKeyConstraint(["made_with"], ["keys.id"], name=op.f("fk_keys_made_with")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_keys_team_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_keys_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_keys_hash")),
    )
    op.create_table(
        "memberships",
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.CheckConstraint("role IN ('admin','member')", name=op.f("ck_memberships_role")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_memberships_team_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_memberships_user_id")),
        sa.PrimaryKeyConstraint("team_id", "user_id", name=op.f("pk_memberships")),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("made_with", sa.Uuid(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("csrf", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["made_with"], ["keys.id"], name=op.f("fk_sessions_made_with")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_sessions_team_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_sessions")),
    )
    op.create_table(
        "transfers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("debit_account", sa.Uuid(), nullable=False),
        sa.Column("credit_account", sa.Uuid(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("hold", sa.Uuid(), nullable=True),
        sa.Column("machine", sa.Uuid(), nullable=True),
        sa.Column("line", sa.Text(), nullable=True),
        sa.Column("increment", sa.BigInteger(), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", Json, nullable=False),
        sa.CheckConstraint("amount > 0", name=op.f("ck_transfers_amount_positive")),
        sa.CheckConstraint("debit_account <> credit_account", name=op.f("ck_transfers_two_accounts")),
        sa.ForeignKeyConstraint(["credit_account"], ["accounts.id"], name=op.f("fk_transfers_credit_account")),
        sa.ForeignKeyConstraint(["debit_account"], ["accounts.id"], name=op.f("fk_transfers_debit_account")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transfers")),
    )
    op.create_index(op.f("ix_transfers_debit_account"), "transfers", ["debit_account"], unique=False)
    op.create_index(
        "uq_transfers_increment",
        "transfers",
        ["machine", "line", "increment"],
        unique=True,
        sqlite_where=sa.text("increment IS NOT NULL"),
        postgresql_where=sa.text("increment IS NOT NULL"),
    )
    op.create_table(
        "attempts",
        sa.Column("job", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("trained", sa.Boolean(), nullable=False),
        sa.Column("plan", Json, nullable=False),
        sa.Column("plan_version", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("state IN ('open','closing','closed')", name=op.f("ck_attempts_state")),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_attempts_job")),
        sa.PrimaryKeyConstraint("job", "number", name=op.f("pk_attempts")),
    )
    op.create_index(op.f("ix_attempts_state"), "attempts", ["state"], unique=False)
    op.create_index(
        "uq_attempts_job_open",
        "attempts",
        ["job"],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "series",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_series_job")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
    )
    op.create_index("uq_series_job_name", "series", ["job", "name"], unique=True)
    op.create_table(
        "generations",
        sa.Column("job", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("world_size", sa.BigInteger(), nullable=False),
        sa.Column("master", sa.Text(), nullable=True),
        sa.Column("start_checkpoint", sa.Uuid(), nullable=True),
        sa.Column("start_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=True),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("formed_at", sa.BigInteger(), nullable=True),
        sa.Column("first_step_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("end_reason", Json, nullable=True),
        sa.CheckConstraint("state IN ('forming','formed','ended')", name=op.f("ck_generations_state")),
        sa.ForeignKeyConstraint(
            ["job", "attempt"], ["attempts.job", "attempts.number"], name=op.f("fk_generations_job_attempt")
        ),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_generations_job")),
        sa.PrimaryKeyConstraint("job", "number", name=op.f("pk_generations")),
    )
    op.create_index(
        "uq_generations_job_current",
        "generations",
        ["job"],
        unique=True,
        sqlite_where=sa.text("state <> 'ended'"),
        postgresql_where=sa.text("state <> 'ended'"),
    )
    op.create_table(
        "machines",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), nullable=False),
        sa.Column("slot", sa.BigInteger(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("market", sa.Text(), nullable=False),
        sa.Column("price", sa.Text(), nullable=False),
        sa.Column("on_demand_price", sa.Text(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("billing", Json, nullable=False),
        sa.Column("launch_request", Json, nullable=False),
        sa.Column("provider_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("call_deadline", sa.BigInteger(), nullable=True),
        sa.Column("session_hash", sa.Text(), nullable=True),
        sa.Column("hello_at", sa.BigInteger(), nullable=True),
        sa.Column("boot_failure", Json, nullable=True),
        sa.Column("registered_at", sa.BigInteger(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("hardware", Json, nullable=True),
        sa.Column("acked_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_report_at", sa.BigInteger(), nullable=True),
        sa.Column("alive_until", sa.BigInteger(), nullable=True),
        sa.Column("funded_until", sa.BigInteger(), nullable=True),
        sa.Column("notice_at", sa.BigInteger(), nullable=True),
        sa.Column("launched_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("pending_until", sa.BigInteger(), nullable=True),
        sa.Column("stopping_at", sa.BigInteger(), nullable=True),
        sa.Column("price_changes", Json, nullable=True),
        sa.Column("end_cause", sa.Text(), nullable=True),
        sa.Column("end_evidence", sa.Text(), nullable=True),
        sa.Column("clock_shift", sa.BigInteger(), nullable=False),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("refusal_text", sa.Text(), nullable=True),
        sa.Column("refused_at", sa.BigInteger(), nullable=True),
        sa.Column("billed_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state <> 'terminated' OR ended_at IS NOT NULL", name=op.f("ck_machines_terminated_has_end")
        ),
        sa.CheckConstraint(
            "state IN ('planned','launching','running','terminating','terminated','never_launched')",
            name=op.f("ck_machines_state"),
        ),
        sa.ForeignKeyConstraint(
            ["job", "attempt"], ["attempts.job", "attempts.number"], name=op.f("fk_machines_job_attempt")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_machines")),
    )
    op.create_index(op.f("ix_machines_refused_at"), "machines", ["refused_at"], unique=False)
    op.create_index(op.f("ix_machines_state_billed_at"), "machines", ["state", "billed_at"], unique=False)
    op.create_index("uq_machines_job_attempt_ordinal", "machines", ["job", "attempt", "ordinal"], unique=True)
    op.create_index("uq_machines_provider_id", "machines", ["provider", "region", "provider_id"], unique=True)
    op.create_index(
        "uq_machines_slot_alive",
        "machines",
        ["job", "attempt", "slot"],
        unique=True,
        sqlite_where=sa.text("state NOT IN ('terminated','never_launched')"),
        postgresql_where=sa.text("state NOT IN ('terminated','never_launched')"),
    )
    op.create_table(
        "metric_chunks",
        sa.Column("series", sa.Uuid(), nullable=False),
        sa.Column("source", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("steps", sa.LargeBinary(), nullable=False),
        sa.Column("times", sa.LargeBinary(), nullable=False),
        sa.Column("values", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["series"], ["series.id"], name=op.f("fk_metric_chunks_series")),
        sa.PrimaryKeyConstraint("series", "source", "seq", name=op.f("pk_metric_chunks")),
    )
    op.create_index(op.f("ix_metric_chunks_source_seq"), "metric_chunks", ["source", "seq"], unique=False)
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("final", sa.Boolean(), nullable=False),
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("manifest_sha", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("stored_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job", "generation"], ["generations.job", "generations.number"], name=op.f("fk_checkpoints_job_generation")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("object_key", name=op.f("uq_checkpoints_object_key")),
    )
    op.create_index("uq_checkpoints_step", "checkpoints", ["job", "generation", "step"], unique=True)
    op.create_table(
        "holds",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("machine", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.Uuid(), nullable=False),
        sa.Column("rate_cap", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("consumed", sa.BigInteger(), nullable=False),
        sa.Column("funded_until", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.CheckConstraint("state IN ('open','closed')", name=op.f("ck_holds_state")),
        sa.CheckConstraint("0 <= consumed AND consumed <= amount", name=op.f("ck_holds_consumed_within")),
        sa.ForeignKeyConstraint(["account"], ["accounts.id"], name=op.f("fk_holds_account")),
        sa.ForeignKeyConstraint(["machine"], ["machines.id"], name=op.f("fk_holds_machine")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
    )
    op.create_index("uq_holds_machine_number", "holds", ["machine", "number"], unique=True)
    op.create_index(
        "uq_holds_machine_open",
        "holds",
        ["machine"],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "log_chunks",
        sa.Column("machine", sa.Uuid(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("byte_offset", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["machine"], ["machines.id"], name=op.f("fk_log_chunks_machine")),
        sa.PrimaryKeyConstraint("machine", "rank", "byte_offset", name=op.f("pk_log_chunks")),
    )
    op.create_index(op.f("ix_log_chunks_machine_seq"), "log_chunks", ["machine", "seq"], unique=False)
    op.create_table(
        "members",
        sa.Column("job", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("node_rank", sa.BigInteger(), nullable=False),
        sa.Column("machine", sa.Uuid(), nullable=False),
        sa.Column("nproc", sa.BigInteger(), nullable=False),
        sa.Column("port", sa.BigInteger(), nullable=True),
        sa.Column("ready_at", sa.BigInteger(), nullable=True),
        sa.Column("exited_at", sa.BigInteger(), nullable=True),
        sa.Column("exits", Json, nullable=True),
        sa.ForeignKeyConstraint(
            ["job", "generation"], ["generations.job", "generations.number"], name=op.f("fk_members_job_generation")
        ),
        sa.ForeignKeyConstraint(["machine"], ["machines.id"], name=op.f("fk_members_machine")),
        sa.PrimaryKeyConstraint("job", "generation", "node_rank", name=op.f("pk_members")),
    )
    op.create_index("uq_members_machine", "members", ["job", "generation", "machine"], unique=True)
    op.execute("INSERT INTO scheduler (id, plan_version, recent_half_life) VALUES (1, 0, 604800000000)")
    make_transfers_immutable()


def make_transfers_immutable() -> None:
    """The ledger is corrected by new rows only, also by hand."""
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER transfers_refuse_{change.lower()} BEFORE {change} ON transfers "
                "BEGIN SELECT RAISE(ABORT, 'transfers are immutable: correct them by new rows'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION transfers_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'transfers are immutable: correct them by new rows'; END $$"
    )
    op.execute(
        "CREATE TRIGGER transfers_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers "
        "FOR EACH STATEMENT EXECUTE FUNCTION transfers_refuse()"
    )
