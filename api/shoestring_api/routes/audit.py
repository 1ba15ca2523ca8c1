# SPDX-License-Identifier: Apache-2.0
"""The audit log of the caller's team: read, and verified."""

from __future__ import annotations

import json
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from shoestring_core import rest, wording
from shoestring_core.store import audit
from shoestring_core.store.tables import AuditEntryRow

from shoestring_api.dependencies import Caller, ReadDep, StateDep
from shoestring_api.serializers.times import to_datetime

router = APIRouter(prefix="/v1/audit", tags=["people"])

NAMED = 100
"""Unsealed entries that a verification lists."""


@router.get("")
def list_audit_entries(
    db: ReadDep,
    caller: Caller,
    cursor: Annotated[UUID | None, Query(description="`next_cursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> rest.AuditPage:
    """List the team's audit log, the newest entries first (admin). `next_cursor` is None on the last page."""
    rows = audit.load_entries(db, caller.team, None if cursor is None else cursor.hex, limit + 1)
    last = rows[limit - 1] if len(rows) > limit else None
    return rest.AuditPage(entries=[_serialize(row) for row in rows[:limit]], next_cursor=last and last.id)


@router.get("/verification")
def verify_audit_log(state: StateDep, caller: Caller) -> rest.AuditVerification:
    """Compare the whole log of the team with its chain of hashes and its newest seal (admin)."""
    found = audit.verify(state.store, state.objects, state.secret, caller.team)
    return rest.AuditVerification(
        intact=not found.verdict.fault_count,
        chained=found.verdict.chained,
        sealed=found.verdict.sealed,
        faults=[
            rest.AuditFault(entry=fault.number, text=wording.sentence(fault.reason)) for fault in found.verdict.faults
        ],
        fault_count=found.verdict.fault_count,
        unsealed=[_serialize(row) for row in found.unsealed[:NAMED]],
        unsealed_count=found.unsealed_count,
    )


def _serialize(row: AuditEntryRow) -> rest.AuditEntry:
    return rest.AuditEntry(
        id=row.id,
        at=to_datetime(row.at),
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        detail=_facts(row.detail),
        address=row.address,
        credential=row.credential,
    )


def _facts(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:  # somebody changed it
        return {"unreadable": text}
