# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest
from shoestring_core.errors import (
    IdempotencyConflict,
    IdempotencyInFlight,
    InvalidRequest,
)
from shoestring_core.store import idempotency
from shoestring_core.store.tables import IdempotencyRow
from sqlalchemy import update

from tests.core.world import World
from tests.servers import PATIENCE_S


def test_a_repeated_request_gets_the_first_response(world: World) -> None:
    assert begin(world, "k", "body") is None
    world.store.write(lambda db: idempotency.store_response(db, "ann", "k", 201, '{"id": 1}'))
    for _ in range(2):
        assert begin(world, "k", "body") == idempotency.StoredResponse(201, '{"id": 1}')
    world.store.write(lambda db: idempotency.store_response(db, "ann", "k", 500, "late"))
    assert begin(world, "k", "body") == idempotency.StoredResponse(201, '{"id": 1}')


def test_the_same_key_with_another_body_conflicts(world: World) -> None:
    begin(world, "k", "body")
    for _ in range(2):
        with pytest.raises(IdempotencyConflict):
            begin(world, "k", "other")
        world.store.write(lambda db: idempotency.store_response(db, "ann", "k", 201, ""))


def test_a_concurrent_repetition_is_refused_while_the_first_runs(world: World) -> None:
    begin(world, "k", "body")
    with pytest.raises(IdempotencyInFlight) as refused:
        begin(world, "k", "body")
    assert refused.value.retryable


def test_a_request_that_died_in_flight_can_be_repeated_by_one(world: World) -> None:
    begin(world, "k", "body")
    age(world, idempotency.IN_FLIGHT_TTL + 1)
    assert begin(world, "k", "body") is None
    with pytest.raises(IdempotencyInFlight):
        begin(world, "k", "body")


def test_a_response_is_stored_for_two_days(world: World) -> None:
    begin(world, "k", "body")
    world.store.write(lambda db: idempotency.store_response(db, "ann", "k", 201, ""))
    age(world, idempotency.RESPONSE_TTL - 60 * idempotency.S)
    world.store.write(idempotency.delete_expired)
    assert begin(world, "k", "body") is not None
    age(world, 120 * idempotency.S)
    world.store.write(idempotency.delete_expired)
    assert begin(world, "k", "other") is None


def test_keys_of_different_principals_are_independent(world: World) -> None:
    begin(world, "k", "body")
    assert world.store.write(lambda db: idempotency.begin_request(db, "bob", "k", "other")) is None


@pytest.mark.parametrize("key", ["", "x" * 201, "a\nb", "\x00"])
def test_an_invalid_key_is_refused(world: World, key: str) -> None:
    with pytest.raises(InvalidRequest):
        begin(world, key, "body")


def test_of_racing_requests_with_one_key_one_proceeds(world: World) -> None:
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


def begin(world: World, key: str, body_sha: str) -> idempotency.StoredResponse | None:
    return world.store.write(lambda db: idempotency.begin_request(db, "ann", key, body_sha))


def age(world: World, by: int) -> None:
    world.store.write(lambda db: db.execute(update(IdempotencyRow).values(begun_at=IdempotencyRow.begun_at - by)))
