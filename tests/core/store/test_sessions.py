# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest
from shoestring_core.errors import (
    TooMany,
    Unauthenticated,
)
from shoestring_core.store import identity, sessions
from shoestring_core.store.tables import KeyRow, SessionRow
from sqlalchemy import select, text, update

from tests.core.world import World
from tests.servers import PATIENCE_S


def test_a_login_code_works_once(world: World) -> None:
    code = world.store.write(lambda db: sessions.create_login_code(db, world.me))
    signed_in = world.store.write(lambda db: sessions.redeem_login_code(db, code))
    principal = session(world, signed_in.secret)
    assert (principal.user, principal.team, principal.csrf) == (world.me.user, world.team, signed_in.csrf)
    with pytest.raises(Unauthenticated, match="used already"):
        world.store.write(lambda db: sessions.redeem_login_code(db, code))


def test_of_two_browsers_that_redeem_one_code_one_is_signed_in(world: World) -> None:
    code = world.store.write(lambda db: sessions.create_login_code(db, world.me))
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
    code = world.store.write(lambda db: sessions.create_login_code(db, world.me))
    with pytest.raises(Unauthenticated):
        authenticate(world, code)
    _, secret = create(world)
    for wrong in (secret, "", "sst_login_x", "\ud800"):
        with pytest.raises(Unauthenticated):
            world.store.write(lambda db, w=wrong: sessions.redeem_login_code(db, w))


def test_an_old_login_code_is_refused(world: World) -> None:
    code = world.store.write(lambda db: sessions.create_login_code(db, world.me))
    world.store.write(lambda db: db.execute(update(KeyRow).values(expires_at=db.now)))
    with pytest.raises(Unauthenticated):
        world.store.write(lambda db: sessions.redeem_login_code(db, code))


def test_revoking_a_key_ends_everything_that_was_made_with_it(world: World) -> None:
    root = authenticate(world, create(world)[1])
    day, other = made_by(world, root), made_by(world, root)
    link, unused = [
        world.store.write(lambda db: sessions.create_login_code(db, authenticate(world, day))) for _ in range(2)
    ]
    browser = world.store.write(lambda db: sessions.redeem_login_code(db, link)).secret
    in_browser = made_by(world, session(world, browser))
    second = world.store.write(lambda db: sessions.open_session(db, authenticate(world, in_browser))).secret
    kept = world.store.write(lambda db: sessions.open_session(db, authenticate(world, other))).secret
    world.store.write(lambda db: identity.revoke_key(db, world.team, authenticate(world, day).key))
    for secret in (day, in_browser):
        with pytest.raises(Unauthenticated, match="revoked"):
            authenticate(world, secret)
    for secret in (browser, second):
        with pytest.raises(Unauthenticated, match="signed out"):
            session(world, secret)
    with pytest.raises(Unauthenticated):
        world.store.write(lambda db: sessions.redeem_login_code(db, unused))
    assert session(world, kept).key == authenticate(world, other).key
    assert authenticate(world, other).key


def test_nothing_is_made_with_a_key_that_was_revoked_meanwhile(world: World) -> None:
    maker = authenticate(world, create(world)[1])
    world.store.write(lambda db: identity.revoke_key(db, world.team, maker.key))
    for make in (
        lambda db: identity.create_key(db, "pat", maker, None),
        lambda db: sessions.create_login_code(db, maker),
        lambda db: sessions.open_session(db, maker),
    ):
        with pytest.raises(Unauthenticated, match="revoked"):
            world.store.write(make)


def test_no_key_or_session_outlives_what_made_it(world: World) -> None:
    with world.store.read() as db:
        ends = db.now + 3_600 * 1_000_000
    day = authenticate(world, create(world, expires_at=ends)[1])
    made = authenticate(world, made_by(world, day))
    opened = world.store.write(lambda db: sessions.open_session(db, made))
    in_browser = session(world, opened.secret)
    link = world.store.write(lambda db: sessions.create_login_code(db, in_browser))
    again = world.store.write(lambda db: sessions.redeem_login_code(db, link))
    last = authenticate(world, made_by(world, session(world, again.secret)))
    assert [one.expires_at for one in (day, made, in_browser, last)] == [ends] * 4
    assert again.expires_at == ends

    forever = world.store.write(lambda db: sessions.open_session(db, world.me))
    assert authenticate(world, made_by(world, session(world, forever.secret))).expires_at == forever.expires_at


def test_a_person_has_at_most_so_many_keys_sessions_and_login_codes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "MAX_KEYS", 2)
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 2)
    monkeypatch.setattr(sessions, "MAX_LOGIN_CODES", 2)
    first, _ = create(world)
    create(world)
    with pytest.raises(TooMany, match="2 API keys"):
        create(world)
    world.store.write(lambda db: identity.revoke_key(db, world.team, first.id))
    create(world)
    create(World(world.store))  # others are not concerned
    for make, table in ((sessions.open_session, SessionRow), (sessions.create_login_code, KeyRow)):
        made = [world.store.write(lambda db, make=make: make(db, world.me)) for _ in range(3)]
        with world.store.read() as db:
            own = select(table).where(table.user_id == world.me.user)
            rows = db.sql.scalars(own if table is SessionRow else own.where(KeyRow.kind == "login")).all()
        assert len(rows) == 2
    world.store.write(lambda db: sessions.redeem_login_code(db, made[-1]))
    with pytest.raises(Unauthenticated):
        world.store.write(lambda db: sessions.redeem_login_code(db, made[0]))


def test_a_session_ends_by_sign_out_and_by_time(world: World) -> None:
    first, second = [world.store.write(lambda db: sessions.open_session(db, world.me)) for _ in range(2)]
    for _ in range(2):
        world.store.write(lambda db: sessions.close_session(db, first.secret))
    world.store.write(lambda db: db.execute(update(SessionRow).values(expires_at=db.now)))
    for secret in (first.secret, second.secret, "", "x"):
        with pytest.raises(Unauthenticated):
            session(world, secret)
    world.store.write(lambda db: sessions.open_session(db, world.me))
    with world.store.read() as db:
        assert len(db.sql.scalars(select(SessionRow)).all()) == 1
        assert second.secret not in str(db.sql.execute(text("SELECT * FROM sessions")).all())


def create(world: World, expires_at: int | None = None) -> tuple[KeyRow, str]:
    return world.store.write(lambda db: identity.create_key(db, "pat", world.me, expires_at))


def made_by(world: World, maker: identity.Principal) -> str:
    """The secret of a key that its maker wants to last forever."""
    return world.store.write(lambda db: identity.create_key(db, "pat", maker, None))[1]


def authenticate(world: World, secret: str) -> identity.Principal:
    with world.store.read() as db:
        return identity.authenticate(db, secret)


def session(world: World, secret: str) -> identity.Principal:
    with world.store.read() as db:
        return sessions.authenticate(db, secret)
