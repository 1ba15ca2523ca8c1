# SPDX-License-Identifier: Apache-2.0
"""Grants: what raising a limit means for those who share what is above it."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring_core import money
from shoestring_core.wording import budget


@dataclass(frozen=True)
class Balance:
    """An account. `left`: micro-dollars that are neither spent nor held, negative with an overdraft; None: no limit."""

    title: str
    left: int | None


def effect_of_grant(account: Balance, amount: int, above: Balance) -> budget.GrantEffect:
    """What `account`, which has a limit, could spend with `amount` more, and what that leaves others below `above`."""
    assert account.left is not None
    own = max(0, account.left + amount)
    if above.left is None:
        return budget.GrantEffect(account.title, money.to_decimal(own), above.title, None, None)
    shared = max(0, above.left)
    usable = min(own, shared)
    return budget.GrantEffect(
        account.title,
        money.to_decimal(usable),
        above.title,
        money.to_decimal(shared),
        money.to_decimal(shared - usable),
    )
