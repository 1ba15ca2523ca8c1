# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest
from shoestring_core.errors import (
    InvalidRequest,
    NotFound,
    Unauthenticated,
)
from shoestring_core.store import identity, ledger, tokens
from shoestring_core.store.tables import KeyRow, MembershipRow, TeamRow, UserRow
from sqlalchemy import select, text

from tests.core.world import World

# Teams


def test_the_first_admin_is_created_once(world: World) -> None:
    again = world.store.write(
        lambda db: identity.ensure_admin(db, f"org {world.name}", f"team {world.name}", f"user {world.name}")
    )
    assert again == world.me
    assert again.role == "admin"
    with world.store.read() as db:
        assert len(db.sql.scalars(select(UserRow)).all()) == len(db.sql.scalars(select(TeamRow)).all()) == 1
        assert [one.kind for one in ledger.team_budgets(db, world.team)] == ["org", "team", "member"]


def test_processes_that_start_at_once_create_one_admin(world: World) -> None:
    principals = []

    def start() -> None:
        principals.append(world.store.write(lambda db: identity.ensure_admin(db, "acme", "vision", "ann")))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(principals) == 4
    assert len(set(principals)) == 1


def test_a_member_keeps_the_role_it_has(world: World) -> None:
    ann = world.store.write(lambda db: identity.ensure_member(db, "acme", "vision", "ann"))
    assert ann.role == "member"
    assert world.store.write(lambda db: identity.ensure_admin(db, "acme", "vision", "ann")).role == "member"


# Keys


def test_a_key_opens_its_team_and_only_its_hash_is_stored(world: World) -> None:
    key, secret = create(world)
    principal = authenticate(world, secret)
    assert (principal.user, principal.team, principal.role) == (world.me.user, world.team, "admin")
    assert (principal.key, principal.actor) == (key.id, world.me.user_name)
    assert secret.startswith("sst_pat_")
    assert len(secret) == len("sst_pat_") + 36
    with world.store.read() as db:
        rows = db.sql.execute(text("SELECT * FROM keys")).all()
    assert secret not in str(rows)
    assert secret.removeprefix("sst_pat_")[:30] not in str(rows)


def test_secrets_never_repeat(world: World) -> None:
    assert len({tokens.generate_secret("pat") for _ in range(1000)}) == 1000


@pytest.mark.one_case_on_postgresql
@pytest.mark.parametrize(
    "change",
    [
        lambda secret: "",
        lambda secret: secret[:-1],
        lambda secret: secret + "x",
        lambda secret: secret.swapcase(),
        lambda secret: secret[:20] + ("a" if secret[20] != "a" else "b") + secret[21:],
        lambda secret: secret.replace("pat", "svc"),
        lambda secret: "é" + secret,
        lambda secret: "sst_pat_" + "\ud800" * 36,
        lambda secret: "x" * 100_000,
    ],
)
def test_a_mistyped_key_is_distinguished_from_an_unknown_one(world: World, change) -> None:
    with pytest.raises(Unauthenticated, match="mistyped") as refused:
        authenticate(world, change(create(world)[1]))
    assert refused.value.hint


def test_a_well_formed_key_of_another_service_is_unknown(world: World) -> None:
    with pytest.raises(Unauthenticated, match="Unknown API key"):
        authenticate(world, tokens.generate_secret("pat"))


def test_an_expired_key_and_a_revoked_one_say_so(world: World) -> None:
    with world.store.read() as db:
        now = db.now
    _, fresh = create(world, expires_at=now + 60 * 1_000_000)
    assert authenticate(world, fresh).team == world.team
    _, expired = create(world, expires_at=now)
    with pytest.raises(Unauthenticated, match="expired"):
        authenticate(world, expired)
    key, revoked = create(world)
    for _ in range(2):
        world.store.write(lambda db: identity.revoke_key(db, world.team, key.id))
    with pytest.raises(Unauthenticated, match="revoked"):
        authenticate(world, revoked)


@pytest.mark.parametrize("name", [" ", " laptop", "a\nb", "a\x1b[2Jb", "\u202elaptop", "a\0", "x" * 101])
def test_a_key_has_a_name_that_can_be_shown_or_none(world: World, name: str) -> None:
    with pytest.raises(InvalidRequest, match="printable"):
        world.store.write(lambda db: identity.create_key(db, "pat", world.me, None, name=name))
    for shown in ("", "my laptop"):
        assert world.store.write(lambda db, name=shown: identity.create_key(db, "pat", world.me, None, name=name))


def test_another_teams_key_cannot_be_revoked(world: World) -> None:
    stranger = World(world.store)
    key, secret = create(stranger)
    with pytest.raises(NotFound):
        world.store.write(lambda db: identity.revoke_key(db, world.team, key.id))
    assert authenticate(world, secret).team == stranger.team


def test_a_key_ends_with_its_membership(world: World) -> None:
    _, secret = create(world)
    world.store.write(lambda db: db.sql.execute(MembershipRow.__table__.delete()))
    with pytest.raises(Unauthenticated, match="no longer a member"):
        authenticate(world, secret)


def create(world: World, expires_at: int | None = None) -> tuple[KeyRow, str]:
    return world.store.write(lambda db: identity.create_key(db, "pat", world.me, expires_at))


def authenticate(world: World, secret: str) -> identity.Principal:
    with world.store.read() as db:
        return identity.authenticate(db, secret)
