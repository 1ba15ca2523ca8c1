# SPDX-License-Identifier: Apache-2.0
"""Budgets over REST: the accounts that a team spends from, and their limits."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Response
from shoestring_core import money, rest
from shoestring_core.errors import Forbidden, InvalidRequest, PreconditionFailed
from shoestring_core.store import ledger, rows
from shoestring_core.store.db import Read, Write
from shoestring_core.store.fleet import gangs
from shoestring_core.store.tables import AccountRow

from shoestring_api import views
from shoestring_api.bodies import ExactRoute
from shoestring_api.service import Admin, Caller, Here, Reading

router = APIRouter(prefix="/v1/budgets", tags=["budgets"], route_class=ExactRoute)


@router.get("")
def index(db: Reading, caller: Caller) -> rest.BudgetList:
    """The organisation's, the team's and its members' budgets."""
    return rest.BudgetList(budgets=[_view(db, account) for account in ledger.team_budgets(db, caller.team)])


@router.get("/{budget_id}")
def show(budget_id: UUID, db: Reading, caller: Caller, response: Response) -> rest.Budget:
    """One budget. Its ETag goes into If-Match of a change."""
    return _answer(_view(db, ledger.visible_account(db, caller.team, budget_id)), response)


@router.put("/{budget_id}")
def set_limit(
    budget_id: UUID,
    body: rest.SetBudget,
    service: Here,
    caller: Admin,
    response: Response,
    if_match: Annotated[str | None, Header(max_length=200)] = None,
) -> rest.Budget:
    """Set a limit (admin). One below what is spent and held makes an overdraft: jobs save and pause.

    A higher one queues the jobs that it had paused for want of money.
    """
    limit, version = _limit(body.limit), _version(if_match)

    def work(db: Write) -> rest.Budget:
        account = ledger.visible_account(db, caller.team, budget_id)
        if account.kind == "org" and len(rows.teams(db)) > 1:
            raise Forbidden("The organisation's budget belongs to several teams.", hint="Set the team's instead.")
        if limit is None or (account.limit_micro is not None and limit > account.limit_micro):
            gangs.resume_paused_below(db, account.id, caller.actor)
        after = ledger.set_limit(
            db, account.id, limit, actor=caller.actor, reason=body.reason[:500], if_version=version
        )
        return _view(db, after)

    return _answer(service.store.write(work), response)


def _limit(text: str) -> int | None:
    """Micro-dollars; None for "none", which takes the limit away."""
    if text.strip().lower() == "none":
        return None
    try:
        return money.from_decimal(text[:100])
    except ValueError as wrong:
        raise InvalidRequest(f"{wrong}.", hint="Or write none, to take the limit away.") from None


def _version(if_match: str | None) -> int | None:
    if if_match is None or if_match == "*":
        return None
    digits = if_match.removeprefix("W/").strip('"')
    if not digits.isdecimal() or len(digits) > 18:
        raise PreconditionFailed("If-Match is not an ETag of this budget.", hint="Read the budget again.")
    return int(digits)


def _view(db: Read, account: AccountRow) -> rest.Budget:
    return views.budget(account, ledger.title(db, account))


def _answer(view: rest.Budget, response: Response) -> rest.Budget:
    response.headers["ETag"] = view.etag
    return view
