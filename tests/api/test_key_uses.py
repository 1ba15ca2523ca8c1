# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from uuid import UUID

import pytest
from shoestring_api import key_uses
from shoestring_api.key_uses import KeyUses
from shoestring_core.errors import Unavailable
from shoestring_core.store import identity
from shoestring_core.store.db import Store
from shoestring_core.store.transactions import Read

from tests.api.deployment import Deployment
from tests.core.world import Clock, World

pytestmark = pytest.mark.any_database


def test_a_key_says_when_it_was_last_used(deployment: Deployment) -> None:
    made = deployment.member.post("/v1/keys", json={"kind": "svc", "name": "nightly"}).json()
    assert made["key"]["last_used_at"] is None

    def used() -> dict[str, bool]:
        return {
            one["name"]: one["last_used_at"] is not None for one in deployment.member.get("/v1/keys").json()["keys"]
        }

    assert used() == {"": True, "nightly": False}
    with deployment.client(made["secret"]) as nightly:
        assert nightly.get("/v1/jobs").status_code == 200
    assert used() == {"": True, "nightly": True}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(Read, "now", property(lambda _: clock.now))
    return clock


def test_a_use_is_written_down_once_in_ten_minutes_whatever_the_number_of_processes(
    clock: Clock, migrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(migrated.store())
    key, _ = world.store.write(lambda db: identity.create_key(db, "pat", world.me, None))
    processes = [KeyUses(lambda: clock.now / 1e6) for _ in range(2)]
    began, written = clock.now, []
    for _ in range(100):  # 50 minutes, of which each process sees every half
        clock.pass_(30)
        for process in processes:
            process.note(world.store, key.id)
        at = last_used(world.store, key.id)
        if at not in written:
            written.append(at)
    assert written == [began + 30_000_000 + 600_000_000 * number for number in range(5)]


def test_a_request_does_not_fail_when_its_keys_use_cannot_be_written(clock: Clock, migrated) -> None:
    class Busy:
        def write(self, *_: object, **__: object) -> None:
            raise Unavailable("The database is too busy with other writes.", hint="Try again.")

    world = World(migrated.store())
    key, _ = world.store.write(lambda db: identity.create_key(db, "pat", world.me, None))
    KeyUses(lambda: clock.now / 1e6).note(Busy(), key.id)  # type: ignore[arg-type]
    assert last_used(world.store, key.id) is None


def test_a_process_remembers_so_many_keys_and_no_more(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted:
        writes = 0

        def write(self, *_: object, **__: object) -> None:
            self.writes += 1

    monkeypatch.setattr(key_uses, "REMEMBERED", 2)
    uses, store = KeyUses(lambda: clock.now / 1e6), Counted()
    for number in (1, 2, 2, 3, 3, 1):  # the first was forgotten for the third
        uses.note(store, UUID(int=number))  # type: ignore[arg-type]
    assert store.writes == 4


def last_used(store: Store, key: UUID) -> int | None:
    with store.read() as db:
        return db.sql.get_one(identity.KeyRow, key).last_used_at
