# SPDX-License-Identifier: Apache-2.0
"""Limits: grants and transfers, and the record of every change. Any interleaving: test_ledger.py."""

from __future__ import annotations

import pytest
from shoestring_core import money
from shoestring_core.errors import BudgetUnmovable
from shoestring_core.store import identity, ledger
from shoestring_core.store.tables import AccountRow, LimitChangeRow
from sqlalchemy import exc, select, text, update

from tests.core.store.test_ledger import run_all
from tests.core.world import World


def test_a_grant_adds_to_the_limit_and_heals_an_overdraft(world: World) -> None:
    job = world.job()
    world.limit("team", 100)
    world.hold(job, 80)
    world.limit("team", 50)
    assert world.grant(world.account("team"), 20).overdraft == 10
    after = world.grant(world.account("team"), 20)
    assert (after.limit_micro, after.overdraft, after.version) == (90, 0, 4)
    assert changes(world, after) == [
        ("adjusted", None, 100), ("adjusted", 100, 50), ("granted", 50, 70), ("granted", 70, 90),
    ]  # fmt: skip
    said = world.events("budget")[-1]
    assert (said.actor, said.reason["code"], said.reason["facts"]["note"]) == ("ann", "granted", "test")
    assert (said.data["before"], said.data["limit"]) == ("0.00007", "0.00009")
    assert world.find_discrepancies() == []


def test_a_transfer_moves_what_is_left_and_no_more(world: World) -> None:
    ann, ben = members(world)
    job = world.job()
    world.hold(job, 30)
    given, taken = world.transfer(ann, ben, 70)
    assert (given.limit_micro, taken.limit_micro) == (30, 170)
    assert changes(world, given)[-1] == ("transferred", 100, 30)
    assert changes(world, taken)[-1] == ("transferred", 100, 170)
    with pytest.raises(BudgetUnmovable) as refused:
        world.transfer(ann, ben, 1)
    assert (refused.value.reason.code, refused.value.fields["left"]) == ("less_left", "0.00")
    assert reload(world, ann, ben) == [(30, 2), (170, 2)]
    assert world.find_discrepancies() == []


def test_what_can_not_be_moved_is_named_and_changes_nothing(world: World) -> None:
    ann, ben = members(world)
    team, limitless = world.account("team"), world.account("org")
    refused = [
        (lambda: world.transfer(ann, ann, 1), "transfer_to_itself"),
        (lambda: world.transfer(ann, team, 1), "transfer_across_budgets"),
        (lambda: world.transfer(limitless, team, 1), "transfer_across_budgets"),
        (lambda: world.transfer(ann, ben, 101), "less_left"),
        (lambda: world.transfer(ann, ben, money.MAX_MICRO), "less_left"),
        (lambda: world.grant(limitless, 1), "no_limit_to_move"),
        (lambda: world.grant(ann, money.MAX_MICRO), "limit_too_large"),
        *((lambda n=nothing: world.grant(ann, n), "nothing_to_move") for nothing in (0, -1)),
        *((lambda n=nothing: world.transfer(ann, ben, n), "nothing_to_move") for nothing in (0, -1)),
    ]
    seen = len(world.events("budget"))
    for move, code in refused:
        with pytest.raises(BudgetUnmovable) as error:
            move()
        assert error.value.reason.code == code
    assert reload(world, ann, ben) == [(100, 1), (100, 1)]
    assert len(world.events("budget")) == seen
    world.store.write(lambda db: ledger.set_limit(db, ben.id, None, actor="ann", reason=""))
    with pytest.raises(BudgetUnmovable, match="has no limit"):
        world.transfer(ann, ben, 1)
    assert reload(world, ann) == [(100, 1)]


def test_an_overdrawn_budget_gives_nothing(world: World) -> None:
    ann, ben = members(world)
    world.settle(world.hold(world.job(), 50), 120)
    with pytest.raises(BudgetUnmovable) as refused:
        world.transfer(ann, ben, 1)
    assert refused.value.fields["left"] == "0.00"
    world.transfer(ben, ann, 20)
    assert reload(world, ann, ben) == [(120, 2), (80, 2)]
    assert world.find_discrepancies() == []


def test_racing_transfers_and_grants_are_exact(world: World) -> None:
    ann, ben = members(world)
    refused = []

    def move(source: AccountRow, target: AccountRow) -> None:
        for _ in range(6):
            try:
                world.transfer(source, target, 30)
            except BudgetUnmovable as error:
                refused.append(error)
            world.grant(target, 1)

    run_all(lambda: move(ann, ben), lambda: move(ben, ann), lambda: move(ann, ben))
    (left, _), (right, _) = reload(world, ann, ben)
    assert left >= 0
    assert right >= 0
    assert left + right == 200 + 18
    assert world.find_discrepancies() == []


@pytest.mark.any_database
def test_the_audit_finds_a_limit_that_was_changed_by_hand(world: World) -> None:
    ann, _ = members(world)
    world.store.write(lambda db: db.execute(update(AccountRow).where(AccountRow.id == ann.id).values(limit_micro=500)))
    found = [(one.account, one.total, one.expected, one.actual) for one in world.find_discrepancies()]
    assert found == [(ann.id, "limit", 100, 500)]


def test_changes_of_limits_refuse_update_and_delete(world: World) -> None:
    world.limit("team", 100)
    for statement in ("UPDATE limit_changes SET limit_after = 1", "DELETE FROM limit_changes"):
        with pytest.raises(exc.DBAPIError, match="immutable"):
            world.store.write(lambda db, s=statement: db.sql.execute(text(s)))


def members(world: World) -> list[AccountRow]:
    """The accounts of two members of one team, each with a limit of 100."""
    ben = world.store.write(
        lambda db: identity.ensure_member(db, f"org {world.name}", f"team {world.name}", f"ben {world.name}")
    )
    path = world.store.write(lambda db: ledger.ensure_member_accounts(db, world.team, ben.user))
    accounts = [world.account("member"), path[0]]
    return [
        world.store.write(lambda db, a=one: ledger.set_limit(db, a.id, 100, actor="ann", reason="")) for one in accounts
    ]


def reload(world: World, *accounts: AccountRow) -> list[tuple[int, int]]:
    """(limit, version) of each."""
    with world.store.read() as db:
        rows = [db.sql.get_one(AccountRow, one.id) for one in accounts]
        return [(row.limit_micro, row.version) for row in rows]


def changes(world: World, account: AccountRow) -> list[tuple[str, int | None, int | None]]:
    with world.store.read() as db:
        rows = select(LimitChangeRow).where(LimitChangeRow.account == account.id).order_by(LimitChangeRow.version)
        return [(row.kind, row.limit_before, row.limit_after) for row in db.sql.scalars(rows)]
