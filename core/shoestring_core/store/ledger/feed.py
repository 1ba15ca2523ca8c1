# SPDX-License-Identifier: Apache-2.0
"""Movements of money and alarms in the feed of the teams they concern."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from uuid import UUID

from sqlalchemy import bindparam, select

from shoestring_core import money
from shoestring_core.events import Alarm, CostAction, CostChange, Overdraft
from shoestring_core.store.ledger.accounts import title
from shoestring_core.store.tables import AccountRow, JobRow, MachineRow
from shoestring_core.store.transactions import Write
from shoestring_core.wording import Reason


def record_movement(db: Write, machine: UUID, action: CostAction, amount: int, reason: Reason | None = None) -> UUID:
    """Record a movement of a machine's money for the team of its job; returns the team."""
    (job,) = db.rows(_JOB_OF_MACHINE, machine=machine)
    data = CostChange(action=action, machine=machine, amount=money.to_decimal(amount))
    db.event(data, team=job.team_id, actor="ledger", reason=reason, job=job.id, attempt=job.attempt)
    team: UUID = job.team_id
    return team


_JOB_OF_MACHINE = (
    select(JobRow.id, JobRow.team_id, MachineRow.attempt)
    .join(MachineRow, MachineRow.job == JobRow.id)
    .where(MachineRow.id == bindparam("machine"))
)


def record_alarm(
    db: Write,
    team: UUID,
    alarm: Literal["overrun", "limit_lowered"],
    overdrawn: Iterable[AccountRow],
    *,
    actor: str,
    reason: Reason,
) -> None:
    """Record that accounts are overdrawn."""
    accounts = tuple(Overdraft(account=title(db, row), overdraft=money.to_decimal(row.overdraft)) for row in overdrawn)
    db.event(Alarm(alarm=alarm, overdrawn=accounts), team=team, actor=actor, reason=reason)
