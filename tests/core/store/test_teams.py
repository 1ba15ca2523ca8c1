# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from shoestring_core.errors import InvalidRequest, TooMany, Unauthenticated
from shoestring_core.store import identity, ledger, members, teams

from tests.core.world import World

pytestmark = pytest.mark.any_database


def test_an_admin_makes_a_team_of_the_same_organization_and_is_its_admin(world: World) -> None:
    maker = world.store.write(
        lambda db: identity.load_principal(db, world.me.user, world.team, scopes=frozenset({"people"}))
    )
    admin = world.store.write(lambda db: teams.create(db, maker, "speech"))
    assert (admin.user, admin.team_name, admin.role, admin.scopes) == (world.me.user, "speech", "admin", maker.scopes)
    with world.store.read() as db:
        assert [(one.name, one.members) for one in members.load_teams(db, admin.user) if one.id == admin.team] == [
            ("speech", 1)
        ]
        budgets = ledger.team_budgets(db, admin.team)
    assert [one.kind for one in budgets] == ["org", "team", "member"]
    assert budgets[0].owner == f"org {world.name}"
    assert budgets[1].limit_micro == teams.NEW_TEAM_BUDGET
    assert world.find_discrepancies() == []


@pytest.mark.parametrize("name", ["", " speech", "speech\n", "x" * 101, "\u202espeech"])
def test_a_name_that_cannot_be_one_or_is_taken_makes_no_team(world: World, name: str) -> None:
    for refused in (name, f"team {world.name}"):
        with pytest.raises(InvalidRequest):
            world.store.write(lambda db, refused=refused: teams.create(db, world.me, refused))
    with world.store.read() as db:
        assert [one.name for one in members.load_teams(db, world.me.user)] == [f"team {world.name}"]


def test_a_name_is_taken_however_its_accents_are_typed(world: World) -> None:
    typed = ("caf\u00e9", "cafe\u0301")
    for name in (typed, typed[::-1]):
        made = world.store.write(lambda db, name=name: teams.create(db, world.me, f"{name[0]} {len(name[0])}"))
        assert made.team_name == f"{typed[0]} {len(name[0])}"
        with pytest.raises(InvalidRequest, match="taken"):
            world.store.write(lambda db, name=name: teams.create(db, world.me, f"{name[1]} {len(name[0])}"))


def test_nobody_makes_teams_without_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams, "MAX_TEAMS", 2)
    world.store.write(lambda db: teams.create(db, world.me, "speech"))
    with pytest.raises(TooMany):
        world.store.write(lambda db: teams.create(db, world.me, "robots"))


def test_a_team_ends_with_nothing_if_the_key_behind_it_was_revoked_meanwhile(world: World) -> None:
    key, _ = world.store.write(lambda db: identity.create_key(db, "pat", world.me, None))
    maker = world.store.write(lambda db: identity.load_principal(db, world.me.user, world.team, key=key.id))
    world.store.write(lambda db: identity.revoke_key(db, world.team, key.id))
    with pytest.raises(Unauthenticated):
        world.store.write(lambda db: teams.create(db, maker, "speech"))
