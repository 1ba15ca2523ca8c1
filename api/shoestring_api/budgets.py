# SPDX-License-Identifier: Apache-2.0
"""Budgets over REST: the accounts on the caller's path, and their limits."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header
from shoestring_core import rest
from shoestring_core.errors import Unavailable

router = APIRouter(prefix="/v1/budgets", tags=["budgets"])


def _not_yet() -> Unavailable:
    return Unavailable("The store is being built.")


@router.get("")
def index() -> rest.BudgetList:
    """The organisation's, the team's and its members' budgets."""
    raise _not_yet()


@router.get("/{budget_id}")
def show(budget_id: UUID) -> rest.Budget:
    """One budget. Its ETag goes into If-Match of a change."""
    raise _not_yet()


@router.put("/{budget_id}")
def set_limit(budget_id: UUID, body: rest.SetBudget, if_match: Annotated[str | None, Header()] = None) -> rest.Budget:
    """Set a limit (admin). A limit below what is spent and held makes an overdraft: jobs save and pause."""
    raise _not_yet()
