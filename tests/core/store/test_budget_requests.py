# SPDX-License-Identifier: Apache-2.0
"""Requests for more dollars: asked for, decided once, expired."""

from __future__ import annotations

import pytest
from shoestring_core.decide.grants import Balance, effect_of_grant
from shoestring_core.errors import BudgetUnmovable, InvalidState, NotFound, TooMany
from shoestring_core.store import budget_requests, identity
from shoestring_core.store.tables import BudgetRequestRow
from sqlalchemy import update

from tests.core.store.test_ledger import run_all
from tests.core.world import World


def ask(world: World, amount: int = 40, **options: object) -> BudgetRequestRow:
    return world.store.write(lambda db: budget_requests.ask(db, world.me, amount, "seeds", **options))


def decide(world: World, request: BudgetRequestRow, *, approve: bool = True) -> BudgetRequestRow:
    return world.store.write(lambda db: budget_requests.decide(db, world.me, request.id, approve=approve, note="go"))


def test_a_request_is_granted_once_however_often_it_is_approved(world: World) -> None:
    world.limit("team", 100)
    request = ask(world)
    assert request.account == world.account("team").id
    for _ in range(2):
        assert (decide(world, request).state, world.account("team").limit_micro) == ("approved", 140)
    with pytest.raises(InvalidState, match="already approved this request"):
        decide(world, request, approve=False)
    assert [one.data["state"] for one in world.events("budget_request")] == ["open", "approved"]
    assert world.find_discrepancies() == []


def test_of_racing_decisions_one_counts(world: World) -> None:
    world.limit("team", 100)
    request, outcomes = ask(world), []

    def race(approve: bool) -> None:
        try:
            outcomes.append(decide(world, request, approve=approve).state)
        except InvalidState as error:
            outcomes.append(error.reason.code)

    run_all(*(lambda a=approve: race(a) for approve in (True, False, True, True)))
    granted = "approved" in outcomes
    assert world.account("team").limit_micro == (140 if granted else 100)
    assert len({one for one in outcomes if one in ("approved", "denied")}) == 1
    assert len(world.events("budget_request")) == 2
    assert world.find_discrepancies() == []


def test_an_expired_request_is_decided_by_nobody(world: World) -> None:
    world.limit("team", 100)
    request = ask(world)
    world.store.write(lambda db: db.execute(update(BudgetRequestRow).values(expires_at=db.now)))
    for approve in (True, False):
        with pytest.raises(InvalidState, match="expired"):
            decide(world, request, approve=approve)
    assert world.account("team").limit_micro == 100


def test_a_request_that_can_not_be_granted_any_more_stays_open(world: World) -> None:
    world.limit("team", 100)
    request = ask(world)
    world.limit("team", None)
    with pytest.raises(BudgetUnmovable, match="no limit"):
        decide(world, request)
    world.limit("team", 10)
    assert decide(world, request).state == "approved"
    assert world.account("team").limit_micro == 50


@pytest.mark.any_database
def test_a_members_own_limit_goes_before_the_teams(world: World) -> None:
    with pytest.raises(BudgetUnmovable, match="no limit"):
        ask(world)
    world.limit("team", 100)
    world.limit("member", 50)
    assert ask(world).account == world.account("member").id
    assert ask(world, account=world.account("team").id).account == world.account("team").id
    for nothing in (0, -1):
        with pytest.raises(BudgetUnmovable):
            ask(world, nothing)
    with pytest.raises(NotFound):
        ask(world, account=world.account("org").id)


@pytest.mark.any_database
def test_open_requests_of_a_member_are_bounded_and_another_teams_are_not_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_requests, "MAX_OPEN", 2)
    world.limit("team", 100)
    requests = [ask(world), ask(world)]
    with pytest.raises(TooMany):
        ask(world)
    decide(world, requests[0], approve=False)
    ask(world)
    stranger = world.store.write(lambda db: identity.ensure_admin(db, f"org {world.name}", "other", "eve"))
    with pytest.raises(NotFound):
        world.store.write(lambda db: budget_requests.decide(db, stranger, requests[1].id, approve=True, note=""))


@pytest.mark.parametrize(
    ("own", "above", "usable", "others"),
    [
        (5, 100, "0.000015", "0.000085"),
        (5, 12, "0.000012", "0.00"),
        (-20, 50, "0.00", "0.00005"),
        (5, -3, "0.00", "0.00"),
    ],
)
def test_the_effect_of_a_grant_is_what_others_are_left_with(own: int, above: int, usable: str, others: str) -> None:
    effect = effect_of_grant(Balance("member ada", own), 10, Balance("team vision", above))
    assert (effect.usable, effect.others_left) == (usable, others)


def test_without_a_limit_above_a_grant_takes_nothing_from_others() -> None:
    effect = effect_of_grant(Balance("member ada", 0), 10, Balance("team vision", None))
    assert (effect.usable, effect.above_left, effect.others_left) == ("0.00001", None, None)
