# SPDX-License-Identifier: Apache-2.0
"""The worker chains and seals audit logs, also where one was killed between the chain and its seal."""

from __future__ import annotations

import pytest
from shoestring_core.store import audit
from shoestring_worker.control_loop import SEALS_S

from tests.worker.conftest import SECRET, World

pytestmark = pytest.mark.any_database


def record(world: World) -> None:
    world.store.write(lambda db: audit.record(db, world.admin, "grant", "budget 1"))


def verify(world: World) -> tuple[int, int]:
    """Entries that are sealed, and those that aren't."""
    found = audit.verify(world.store, world.objects, SECRET, world.admin.team)
    assert found.verdict.faults == []
    return found.verdict.sealed, found.unsealed_count


def test_new_entries_are_sealed_within_a_minute(world: World) -> None:
    record(world)
    world.tick()
    assert verify(world) == (1, 0)
    record(world)
    world.tick(SEALS_S / 2)
    assert verify(world) == (1, 1)
    world.tick(SEALS_S / 2)
    assert verify(world) == (2, 0)


def test_a_seal_that_a_killed_worker_did_not_store_is_stored_by_the_next(world: World) -> None:
    record(world)
    world.store.write(lambda db: audit.chain_batch(db, world.admin.team))
    assert verify(world) == (0, 1)
    world.tick()
    assert verify(world) == (1, 0)


def test_a_store_that_fails_delays_the_seal_and_nothing_else(world: World) -> None:
    record(world)
    audit_folder = world.objects.folder / "audit"
    audit_folder.parent.mkdir(parents=True, exist_ok=True)
    audit_folder.write_text("a file where a folder belongs")
    world.tick()
    audit_folder.unlink()
    assert verify(world) == (0, 1)
    record(world)
    world.tick(SEALS_S)
    assert verify(world) == (2, 0)
