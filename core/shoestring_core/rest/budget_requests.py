# SPDX-License-Identifier: Apache-2.0
"""Requests for a higher limit."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import Field

from shoestring_core.rest.base import Dollars, Money, Reason, RequestBody, Resource, Sentence


class BudgetRequest(Resource):
    """A member's request for more dollars."""

    id: UUID
    budget: UUID
    owner: str
    """The name of the budget: team vision, member ada."""
    user: str
    amount: Money
    why: str
    state: Literal["open", "approved", "denied", "expired"]
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None = None
    decided_by: str | None = None
    note: str = ""
    approvable: bool = False
    """It is open, and the caller may approve it: a lead, but not their own; one for the team's budget, an admin."""
    effect: Reason | None = None
    """Of an open one: what its approval would leave for others."""


class BudgetRequestList(Resource):
    requests: list[BudgetRequest]


class AskForBudgetRequest(RequestBody):
    amount: Dollars
    """Decimal dollars to add to the limit."""
    why: Sentence = Field(min_length=1)
    budget: UUID | None = Field(default=None, strict=False)
    """Your own budget or your team's; None: your own if it has a limit, else the team's."""


class DecideBudgetRequest(RequestBody):
    note: Sentence = ""
