# SPDX-License-Identifier: Apache-2.0
"""Requests for more dollars."""

from __future__ import annotations

from collections.abc import Sequence

from shoestring_core import rest
from shoestring_core.decide import access
from shoestring_core.store import budget_requests, ledger
from shoestring_core.store.identity import Principal
from shoestring_core.store.tables import BudgetRequestRow
from shoestring_core.store.transactions import Read

from shoestring_api.serializers.times import to_datetime


def serialize_requests(db: Read, caller: Principal, rows: Sequence[BudgetRequestRow]) -> list[rest.BudgetRequest]:
    accounts, users = budget_requests.budgets(db, rows), budget_requests.askers(db, rows)
    titles = ledger.titles(db, list(accounts.values()))
    return [
        _request(db, caller, row, accounts[row.account].kind, titles[row.account], users[row.user_id]) for row in rows
    ]


def _request(
    db: Read, caller: Principal, row: BudgetRequestRow, kind: str, owner: str, user: str
) -> rest.BudgetRequest:  # fmt: skip
    expired = row.state == "open" and row.expires_at <= db.now
    is_open = row.state == "open" and not expired
    effect = budget_requests.effect(db, row) if is_open else None
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
            "approvable": is_open and access.may_raise_budget(caller.role, kind, own=row.user_id == caller.user),
            "effect": rest.Reason.of(effect) if effect else None,
        }
    )
