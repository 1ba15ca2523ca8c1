# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest
from shoestring_core.errors import Forbidden, InvalidList, InvalidRequest, InvalidState, Unauthenticated
from shoestring_core.store import identity, invitations, ledger, members, sessions
from shoestring_core.store.tables import InvitationRow, MembershipRow, UserRow
from shoestring_core.wording import people
from sqlalchemy import func, select, update

from tests.core.world import World

HOUR = 3_600_000_000
pytestmark = pytest.mark.any_database


def invite(world: World, **options) -> str:
    return world.store.write(
        lambda db: invitations.invite(db, world.me, options.pop("role", "member"), db.now + HOUR, **options)
    )[1]


def take(world: World, code: str, name: str | None = None) -> identity.Principal:
    return world.store.write(lambda db: invitations.take(db, code, name, sessions.NOWHERE))[0]


def count(world: World) -> tuple[int, int]:
    """Users and memberships."""
    with world.store.read() as db:
        return tuple(db.sql.scalar(select(func.count()).select_from(row)) for row in (UserRow, MembershipRow))


def test_an_invitation_makes_one_member_with_a_role_and_a_budget(world: World) -> None:
    ada = take(world, invite(world, role="lead", limit_micro=5_000_000), "ada")
    assert (ada.user_name, ada.team, ada.role, ada.scopes) == ("ada", world.team, "lead", None)
    with world.store.read() as db:
        assert ledger.paying_accounts(db, ada.team, ada.user)[0].limit_micro == 5_000_000
        assert [login.user_id for login in sessions.load_sessions(db, ada.team, ada.user)] == [ada.user]


def test_a_used_a_revoked_and_an_expired_invitation_are_refused_and_nobody_joins(world: World) -> None:
    used, revoked, expired = (invite(world) for _ in range(3))
    take(world, used, "ada")
    with world.store.read() as db:
        rows = list(reversed(invitations.load_invitations(db, world.team)))
    world.store.write(lambda db: invitations.revoke(db, world.team, rows[1].id))
    late = update(InvitationRow).where(InvitationRow.id == rows[2].id)
    world.store.write(lambda db: db.execute(late.values(expires_at=db.now)))
    before = count(world)
    for code, reason in (
        (used, people.InvitationUsed()), (revoked, people.InvitationRevoked()), (expired, people.InvitationExpired()),
    ):  # fmt: skip
        with pytest.raises(InvalidState) as refused:
            take(world, code, "ben")
        assert refused.value.reason == reason
    for unknown in ("", "x", used[:-1] + "x", "sst_invite_" + "0" * 36):
        with pytest.raises(Unauthenticated):
            take(world, unknown, "ben")
    assert count(world) == before


@pytest.mark.parametrize("name", ["", " ", " ben", "a\nb", "a" * 101, None])
def test_an_odd_name_uses_no_invitation_up(world: World, name: str | None) -> None:
    code = invite(world)
    with pytest.raises(InvalidRequest):
        take(world, code, name)
    with pytest.raises(InvalidRequest, match="taken"):
        take(world, code, world.me.user_name)
    assert take(world, code, "ben").user_name == "ben"


def test_a_person_has_one_name_however_its_accents_are_typed(world: World) -> None:
    take(world, invite(world), "rene\u0301")
    with pytest.raises(InvalidRequest, match="taken"):
        take(world, invite(world), "ren\u00e9")
    text = "name\nzoe\u0308\nzo\u00eb\nrene\u0301\n"
    with pytest.raises(InvalidList) as refused:
        world.store.write(lambda db: invitations.import_members(db, world.me, text, db.now + HOUR))
    assert [problem.pointer for problem in refused.value.problems] == ["line 3", "line 4"]
    (made,) = world.store.write(lambda db: invitations.import_members(db, world.me, "name\nzoe\u0308\n", db.now + HOUR))
    assert take(world, made[2], "zoe\u0308").user_name == "zo\u00eb"


def test_of_those_who_take_one_invitation_at_once_one_joins(world: World) -> None:
    code, joined, refused = invite(world), [], []

    def race(number: int) -> None:
        try:
            joined.append(take(world, code, f"racer {number}"))
        except InvalidState:
            refused.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(joined), len(refused)) == (1, 3)
    assert count(world) == (2, 2)


def test_a_class_list_makes_members_with_budgets_whom_their_links_sign_in(world: World) -> None:
    text = "name,role,limit\nada,lead,5\nben,,2.50\n"
    made = world.store.write(lambda db: invitations.import_members(db, world.me, text, db.now + HOUR))
    assert [member.name for member, _, _ in made] == ["ada", "ben"]
    code = made[0][2]
    with pytest.raises(InvalidRequest):
        take(world, code, "ben")
    ada = take(world, code)
    assert (ada.user_name, ada.role) == ("ada", "lead")
    with world.store.read() as db:
        assert ledger.paying_accounts(db, ada.team, ada.user)[0].limit_micro == 5_000_000
    assert count(world) == (3, 3)


@pytest.mark.parametrize("odd", ["boss,x,1", ",member,1", "cleo,member,-3", "ada,member,1", "{me},member,1"])
def test_a_list_with_an_odd_line_adds_nobody(world: World, odd: str) -> None:
    text = f"name,role,limit\nada,lead,5\n{odd.format(me=world.me.user_name)}\n"
    with pytest.raises(InvalidList) as refused:
        world.store.write(lambda db: invitations.import_members(db, world.me, text, db.now + HOUR))
    assert [problem.pointer for problem in refused.value.problems] == ["line 3"]
    assert count(world) == (1, 1)


def test_nobody_comes_back_by_an_invitation_of_theirs(world: World) -> None:
    ada = take(world, invite(world, role="admin"), "ada")
    hers = world.store.write(lambda db: invitations.invite(db, ada, "admin", db.now + HOUR))[1]
    world.store.write(lambda db: members.remove(db, ada.team, ada.user))
    with pytest.raises(InvalidState):
        take(world, hers, "ada again")


def test_the_last_admin_is_neither_removed_nor_demoted(world: World) -> None:
    for role in ("viewer", "member", "lead"):
        with pytest.raises(Forbidden, match="only admin"):
            world.store.write(lambda db, role=role: members.set_role(db, world.team, world.me.user, role))
    with pytest.raises(Forbidden, match="only admin"):
        world.store.write(lambda db: members.remove(db, world.team, world.me.user))
    ada = take(world, invite(world, role="admin"), "ada")
    outcomes = []

    def demote(user) -> None:
        try:
            world.store.write(lambda db: members.set_role(db, world.team, user, "viewer"))
        except Forbidden:
            outcomes.append(user)

    threads = [threading.Thread(target=demote, args=(user,)) for user in (ada.user, world.me.user)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1, "of two admins who demote each other one stays"
