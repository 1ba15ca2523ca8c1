# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest
from shoestring_core.errors import (
    Unauthenticated,
)
from shoestring_core.store import identity, sessions
from shoestring_core.store.tables import KeyRow, SessionRow
from sqlalchemy import select, text, update

from tests.core.world import World
from tests.servers import PATIENCE_S


def test_a_login_code_works_once(world: World) -> None:
    code = world.store.write(lambda db: sessions.create_login_code(db, world.me.user, world.team))
    signed_in = world.store.write(lambda db: sessions.redeem_login_code(db, code))
    principal = session(world, signed_in.secret)
    assert (principal.user, principal.team, principal.csrf) == (world.me.user, world.team, signed_in.csrf)
    with pytest.raises(Unauthenticated, match="used already"):
        world.store.write(lambda db: sessions.redeem_login_code(db, code))


def test_of_two_browsers_that_redeem_one_code_one_is_signed_in(world: World) -> None:
    code = world.store.write(lambda db: sessions.create_login_code(db, world.me.user, world.team))
    start, outcomes = threading.Barrier(4), []

    def redeem() -> None:
        start.wait(timeout=PATIENCE_S)
        try:
            outcomes.append(world.store.write(lambda db: sessions.redeem_login_code(db, code)))
        except Unauthenticated:
            outcomes.append(None)

    threads = [threading.Thread(target=redeem) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4
    assert sum(outcome is not None for outcome in outcomes) == 1


def test_a_login_code_is_no_api_key_and_a_key_no_login_code(world: World) -> None:
    code = world.store.write(lambda db: sessions.create_login_code(db, world.me.user, world.team))
    with pytest.raises(Unauthenticated):
        authenticate(world, code)
    _, secret = create(world)
    for wrong in (secret, "", "sst_login_x", "\ud800"):
        with pytest.raises(Unauthenticated):
            world.store.write(lambda db, w=wrong: sessions.redeem_login_code(db, w))


def test_an_old_login_code_is_refused(world: World) -> None:
    code = world.store.write(lambda db: sessions.create_login_code(db, world.me.user, world.team))
    world.store.write(lambda db: db.execute(update(KeyRow).values(expires_at=db.now)))
    with pytest.raises(Unauthenticated):
        world.store.write(lambda db: sessions.redeem_login_code(db, code))


def test_revoking_a_key_ends_its_owners_sessions_and_login_codes(world: World) -> None:
    key, _ = create(world)
    opened = world.store.write(lambda db: sessions.open_session(db, world.me.user, world.team, key.id))
    link = world.store.write(lambda db: sessions.create_login_code(db, world.me.user, world.team))
    world.store.write(lambda db: identity.revoke_key(db, world.team, key.id))
    with world.store.read() as db, pytest.raises(Unauthenticated):
        sessions.authenticate(db, opened.secret)
    with pytest.raises(Unauthenticated):
        world.store.write(lambda db: sessions.redeem_login_code(db, link))


def test_a_session_lasts_no_longer_than_the_key_that_opened_it(world: World) -> None:
    with world.store.read() as db:
        ends = db.now + 3_600 * 1_000_000
    key, _ = create(world, expires_at=ends)
    opened = world.store.write(lambda db: sessions.open_session(db, world.me.user, world.team, key.id))
    assert opened.expires_at == ends


def test_a_session_ends_by_sign_out_and_by_time(world: World) -> None:
    first, second = [
        world.store.write(lambda db: sessions.open_session(db, world.me.user, world.team)) for _ in range(2)
    ]
    for _ in range(2):
        world.store.write(lambda db: sessions.close_session(db, first.secret))
    world.store.write(lambda db: db.execute(update(SessionRow).values(expires_at=db.now)))
    for secret in (first.secret, second.secret, "", "x"):
        with pytest.raises(Unauthenticated):
            session(world, secret)
    world.store.write(lambda db: sessions.open_session(db, world.me.user, world.team))
    with world.store.read() as db:
        assert len(db.sql.scalars(select(SessionRow)).all()) == 1
        assert second.secret not in str(db.sql.execute(text("SELECT * FROM sessions")).all())


def create(world: World, expires_at: int | None = None) -> tuple[KeyRow, str]:
    return world.store.write(lambda db: identity.create_key(db, "pat", world.me.user, world.team, expires_at))


def authenticate(world: World, secret: str) -> identity.Principal:
    with world.store.read() as db:
        return identity.authenticate(db, secret)


def session(world: World, secret: str) -> identity.Principal:
    with world.store.read() as db:
        return sessions.authenticate(db, secret)
