# SPDX-License-Identifier: Apache-2.0
"""Requests for more dollars, and their approval."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Response
from shoestring_core import rest
from shoestring_core.decide import access
from shoestring_core.store import audit, budget_requests, ledger
from shoestring_core.store.transactions import Write

from shoestring_api.dependencies import Caller, IdempotencyKey, ReadDep, StateDep, own_budget, too_low
from shoestring_api.idempotency import run_once
from shoestring_api.json_body import ExactJsonRoute
from shoestring_api.routes.budgets import parse_amount
from shoestring_api.serializers.budget_requests import serialize_requests

PATH = "/v1/budget-requests"
LISTED = 100

router = APIRouter(prefix=PATH, tags=["budgets"], route_class=ExactJsonRoute)


@router.get("")
def list_requests(db: ReadDep, caller: Caller) -> rest.BudgetRequestList:
    """List the team's newest 100 requests for more dollars."""
    return rest.BudgetRequestList(
        requests=serialize_requests(db, caller, budget_requests.newest(db, caller.team, LISTED))
    )


@router.post("", status_code=201, response_model=rest.BudgetRequest)
def ask(body: rest.AskForBudgetRequest, state: StateDep, caller: Caller, key: IdempotencyKey = None) -> Response:
    """Ask for more dollars, for your own limit or the team's. A lead or an admin approves or denies it."""
    amount = parse_amount(body.amount)

    def work(db: Write) -> rest.BudgetRequest:
        row = budget_requests.ask(db, caller, amount, body.why, body.budget)
        audit.record(db, caller, "ask", f"request {row.id}", amount=body.amount, why=body.why)
        (asked,) = serialize_requests(db, caller, [row])
        return asked

    return run_once(state, caller, key, f"POST {PATH} {body.model_dump_json()}", 201, work, PATH)


@router.post("/{request_id}:approve")
def approve(
    request_id: UUID, state: StateDep, caller: Caller, body: rest.DecideBudgetRequest | None = None
) -> rest.BudgetRequest:
    """Approve a request (another lead; for the team: admin): its dollars are granted, however often it is approved."""
    return _decide(state, caller, request_id, body, approve=True)


@router.post("/{request_id}:deny")
def deny(
    request_id: UUID, state: StateDep, caller: Caller, body: rest.DecideBudgetRequest | None = None
) -> rest.BudgetRequest:
    """Deny a request (lead; for the team: admin)."""
    return _decide(state, caller, request_id, body, approve=False)


def _decide(
    state: StateDep, caller: Caller, request: UUID, body: rest.DecideBudgetRequest | None, *, approve: bool
) -> rest.BudgetRequest:
    note = body.note if body else ""

    def work(db: Write) -> rest.BudgetRequest:
        asked = budget_requests.load(db, caller.team, request)
        account = ledger.visible_account(db, caller.team, asked.account)
        if not access.is_at_least(caller.role, least := access.budget_role(account.kind)):
            raise too_low(caller, least)
        if approve and not access.may_raise_budget(caller.role, account.kind, own=asked.user_id == caller.user):
            raise own_budget()
        audit.record(db, caller, "approve" if approve else "deny", f"request {request}", note=note)
        row = budget_requests.decide(db, caller, request, approve=approve, note=note)
        (decided,) = serialize_requests(db, caller, [row])
        return decided

    return state.store.write(work)
