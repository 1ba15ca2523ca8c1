# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest
from shoestring_core.errors import (
    IdempotencyConflict,
    IdempotencyInFlight,
    InvalidRequest,
    NotFound,
    Unauthenticated,
)
from shoestring_core.store import identity, ledger
from shoestring_core.store.tables import IdempotencyRow, KeyRow, MembershipRow, SessionRow, TeamRow, UserRow
from sqlalchemy import select, text, update

from tests.core.world import World
from tests.servers import PATIENCE_S

# Teams


def test_the_first_admin_is_made_once(world: World) -> None:
    again = world.store.write(
        lambda db: identity.ensure_admin(db, f"org {world.name}", f"team {world.name}", f"user {world.name}")
    )
    assert again == world.me
    assert again.role == "admin"
    with world.store.read() as db:
        assert len(db.sql.scalars(select(UserRow)).all()) == len(db.sql.scalars(select(TeamRow)).all()) == 1
        assert [one.kind for one in ledger.team_budgets(db, world.team)] == ["org", "team", "member"]


def test_processes_that_start_at_once_make_one_admin(world: World) -> None:
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
    assert (principal.scopes, principal.key, principal.actor) == (frozenset({"jobs"}), key.id, world.me.user_name)
    assert secret.startswith("sst_pat_")
    assert len(secret) == len("sst_pat_") + 36
    with world.store.read() as db:
        rows = db.sql.execute(text("SELECT * FROM keys")).all()
    assert secret not in str(rows)
    assert secret.removeprefix("sst_pat_")[:30] not in str(rows)


def test_secrets_never_repeat(world: World) -> None:
    assert len({identity._secret("pat") for _ in range(1000)}) == 1000


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
def test_a_mistyped_key_is_told_from_an_unknown_one(world: World, change) -> None:
    with pytest.raises(Unauthenticated, match="mistyped") as refused:
        authenticate(world, change(create(world)[1]))
    assert refused.value.hint


def test_a_well_formed_key_of_somewhere_else_is_not_known(world: World) -> None:
    with pytest.raises(Unauthenticated, match="not known"):
        authenticate(world, identity._secret("pat"))


def test_an_expired_key_and_a_revoked_one_say_so(world: World) -> None:
    with world.store.read() as db:
        now = db.now
    _, fresh = create(world, expires_at=now + 60 * identity.S)
    assert authenticate(world, fresh).team == world.team
    _, expired = create(world, expires_at=now)
    with pytest.raises(Unauthenticated, match="expired"):
        authenticate(world, expired)
    key, revoked = create(world)
    for _ in range(2):
        world.store.write(lambda db: identity.revoke_key(db, world.team, key.id))
    with pytest.raises(Unauthenticated, match="revoked"):
        authenticate(world, revoked)


def test_another_teams_key_cannot_be_revoked(world: World) -> None:
    stranger = World(world.store)
    key, secret = create(stranger)
    with pytest.raises(NotFound):
        world.store.write(lambda db: identity.revoke_key(db, world.team, key.id))
    assert authenticate(world, secret).team == stranger.team


def test_a_key_dies_with_its_membership(world: World) -> None:
    _, secret = create(world)
    world.store.write(lambda db: db.sql.execute(MembershipRow.__table__.delete()))
    with pytest.raises(Unauthenticated, match="not a member"):
        authenticate(world, secret)


# Browsers


def test_a_login_code_works_once(world: World) -> None:
    code = world.store.write(lambda db: identity.create_login_code(db, world.me.user, world.team))
    signed_in = world.store.write(lambda db: identity.redeem_login_code(db, code))
    principal = session(world, signed_in.secret)
    assert (principal.user, principal.team, principal.csrf) == (world.me.user, world.team, signed_in.csrf)
    with pytest.raises(Unauthenticated, match="used already"):
        world.store.write(lambda db: identity.redeem_login_code(db, code))


def test_of_two_browsers_that_redeem_one_code_one_is_signed_in(world: World) -> None:
    code = world.store.write(lambda db: identity.create_login_code(db, world.me.user, world.team))
    start, outcomes = threading.Barrier(4), []

    def redeem() -> None:
        start.wait(timeout=PATIENCE_S)
        try:
            outcomes.append(world.store.write(lambda db: identity.redeem_login_code(db, code)))
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
    code = world.store.write(lambda db: identity.create_login_code(db, world.me.user, world.team))
    with pytest.raises(Unauthenticated):
        authenticate(world, code)
    _, secret = create(world)
    for wrong in (secret, "", "sst_login_x", "\ud800"):
        with pytest.raises(Unauthenticated):
            world.store.write(lambda db, w=wrong: identity.redeem_login_code(db, w))


def test_an_old_login_code_is_refused(world: World) -> None:
    code = world.store.write(lambda db: identity.create_login_code(db, world.me.user, world.team))
    world.store.write(lambda db: db.count(update(KeyRow).values(expires_at=db.now)))
    with pytest.raises(Unauthenticated):
        world.store.write(lambda db: identity.redeem_login_code(db, code))


def test_a_revoked_key_takes_its_owners_browsers_and_sign_in_links_with_it(world: World) -> None:
    key, _ = create(world)
    opened = world.store.write(lambda db: identity.open_session(db, world.me.user, world.team, key.id))
    link = world.store.write(lambda db: identity.create_login_code(db, world.me.user, world.team))
    world.store.write(lambda db: identity.revoke_key(db, world.team, key.id))
    with world.store.read() as db, pytest.raises(Unauthenticated):
        identity.session(db, opened.secret)
    with pytest.raises(Unauthenticated):
        world.store.write(lambda db: identity.redeem_login_code(db, link))


def test_a_session_lasts_no_longer_than_the_key_that_opened_it(world: World) -> None:
    with world.store.read() as db:
        ends = db.now + 3_600 * identity.S
    key, _ = create(world, expires_at=ends)
    opened = world.store.write(lambda db: identity.open_session(db, world.me.user, world.team, key.id))
    assert opened.expires_at == ends


def test_a_session_ends_by_sign_out_and_by_time(world: World) -> None:
    first, second = [
        world.store.write(lambda db: identity.open_session(db, world.me.user, world.team)) for _ in range(2)
    ]
    for _ in range(2):
        world.store.write(lambda db: identity.close_session(db, first.secret))
    world.store.write(lambda db: db.count(update(SessionRow).values(expires_at=db.now)))
    for secret in (first.secret, second.secret, "", "x"):
        with pytest.raises(Unauthenticated):
            session(world, secret)
    world.store.write(lambda db: identity.open_session(db, world.me.user, world.team))
    with world.store.read() as db:
        assert len(db.sql.scalars(select(SessionRow)).all()) == 1
        assert second.secret not in str(db.sql.execute(text("SELECT * FROM sessions")).all())


# Repeated requests


def test_a_repeated_request_gets_the_first_answer(world: World) -> None:
    assert begin(world, "k", "body") is None
    world.store.write(lambda db: identity.finish(db, "ann", "k", 201, '{"id": 1}'))
    for _ in range(2):
        assert begin(world, "k", "body") == identity.Answer(201, '{"id": 1}')
    world.store.write(lambda db: identity.finish(db, "ann", "k", 500, "late"))
    assert begin(world, "k", "body") == identity.Answer(201, '{"id": 1}')


def test_the_same_key_with_another_body_conflicts(world: World) -> None:
    begin(world, "k", "body")
    for _ in range(2):
        with pytest.raises(IdempotencyConflict):
            begin(world, "k", "other")
        world.store.write(lambda db: identity.finish(db, "ann", "k", 201, ""))


def test_a_twin_is_told_that_the_first_still_runs(world: World) -> None:
    begin(world, "k", "body")
    with pytest.raises(IdempotencyInFlight) as refused:
        begin(world, "k", "body")
    assert refused.value.retryable


def test_a_request_that_died_in_flight_can_be_repeated_by_one(world: World) -> None:
    begin(world, "k", "body")
    age(world, identity.IN_FLIGHT_LASTS + 1)
    assert begin(world, "k", "body") is None
    with pytest.raises(IdempotencyInFlight):
        begin(world, "k", "body")


def test_a_refused_request_gives_its_key_free(world: World) -> None:
    begin(world, "k", "body")
    world.store.write(lambda db: identity.forget(db, "ann", "k"))
    assert begin(world, "k", "other") is None


def test_an_answer_is_kept_for_two_days(world: World) -> None:
    begin(world, "k", "body")
    world.store.write(lambda db: identity.finish(db, "ann", "k", 201, ""))
    age(world, identity.ANSWERS_LAST - 60 * identity.S)
    assert begin(world, "k", "body") is not None
    age(world, 120 * identity.S)
    assert begin(world, "k", "other") is None


def test_keys_of_different_people_never_meet(world: World) -> None:
    begin(world, "k", "body")
    assert world.store.write(lambda db: identity.begin(db, "bob", "k", "other")) is None


@pytest.mark.parametrize("key", ["", "x" * 201, "a\nb", "\x00"])
def test_an_absurd_key_is_refused(world: World, key: str) -> None:
    with pytest.raises(InvalidRequest):
        begin(world, key, "body")


def test_of_twins_that_race_one_goes_on(world: World) -> None:
    start, outcomes = threading.Barrier(4), []

    def claim() -> None:
        start.wait(timeout=PATIENCE_S)
        try:
            outcomes.append(begin(world, "k", "body"))
        except IdempotencyInFlight as refusal:
            outcomes.append(refusal)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4
    assert outcomes.count(None) == 1


def create(world: World, expires_at: int | None = None) -> tuple[KeyRow, str]:
    return world.store.write(lambda db: identity.create_key(db, "pat", world.me.user, world.team, ["jobs"], expires_at))


def authenticate(world: World, secret: str) -> identity.Principal:
    with world.store.read() as db:
        return identity.authenticate(db, secret)


def session(world: World, secret: str) -> identity.Principal:
    with world.store.read() as db:
        return identity.session(db, secret)


def begin(world: World, key: str, body_sha: str) -> identity.Answer | None:
    return world.store.write(lambda db: identity.begin(db, "ann", key, body_sha))


def age(world: World, by: int) -> None:
    world.store.write(lambda db: db.count(update(IdempotencyRow).values(at=IdempotencyRow.at - by)))
