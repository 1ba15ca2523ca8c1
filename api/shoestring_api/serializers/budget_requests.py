# SPDX-License-Identifier: Apache-2.0
"""Requests for more dollars."""

from __future__ import annotations

from collections.abc import Sequence

from shoestring_core import rest
from shoestring_core.store import budget_requests
from shoestring_core.store.tables import BudgetRequestRow
from shoestring_core.store.transactions import Read

from shoestring_api.serializers.times import to_datetime


def serialize_requests(db: Read, rows: Sequence[BudgetRequestRow]) -> list[rest.BudgetRequest]:
    titles, users = budget_requests.names(db, rows)
    return [_request(db, row, titles[row.account], users[row.user_id]) for row in rows]


def _request(db: Read, row: BudgetRequestRow, owner: str, user: str) -> rest.BudgetRequest:
    expired = row.state == "open" and row.expires_at <= db.now
    effect = budget_requests.effect(db, row) if row.state == "open" and not expired else None
    return rest.BudgetRequest.model_validate(
        {
            "id": row.id,
            "budget": row.account,
            "owner": owner,
            "user": user,
            "amount": rest.Money.of(row.amount),
            "why": row.why,
            "state": "expired" if expired else row.state,
            "created_at": to_datetime(row.created_at),
            "expires_at": to_datetime(row.expires_at),
            "decided_at": to_datetime(row.decided_at),
            "decided_by": row.decided_by,
            "note": row.note,
            "effect": rest.Reason.of(effect) if effect else None,
        }
    )
