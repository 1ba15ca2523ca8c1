# SPDX-License-Identifier: Apache-2.0
"""Movements of money and alarms in the feed of the teams they concern."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import select

from shoestring_core import money
from shoestring_core.store.db import Write
from shoestring_core.store.ledger.accounts import title
from shoestring_core.store.tables import AccountRow, JobRow, MachineRow
from shoestring_core.wording import Reason


def record_movement(db: Write, machine: UUID, action: str, amount: int, reason: Reason | None = None) -> UUID:
    """Record a movement of a machine's money for the team of its job; returns the team.

    action  held | extended | released | posted | settled
    """
    job = db.sql.execute(
        select(JobRow.id, JobRow.team_id, MachineRow.attempt)
        .join(MachineRow, MachineRow.job == JobRow.id)
        .where(MachineRow.id == machine)
    ).one()
    data = {"action": action, "machine": str(machine), "amount": money.to_decimal(amount)}
    db.event(team=job.team_id, kind="cost", actor="ledger", reason=reason, job=job.id, attempt=job.attempt, data=data)
    team: UUID = job.team_id
    return team


def record_alarm(
    db: Write, team: UUID, alarm: str, overdrawn: Iterable[AccountRow], *, actor: str, reason: Reason
) -> None:  # fmt: skip
    """Record that accounts are overdrawn. `alarm`: overrun | limit_lowered."""
    accounts = [{"account": title(db, row), "overdraft": money.to_decimal(row.overdraft)} for row in overdrawn]
    db.event(team=team, kind="alarm", actor=actor, reason=reason, data={"alarm": alarm, "overdrawn": accounts})
