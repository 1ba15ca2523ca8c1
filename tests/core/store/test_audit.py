# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from shoestring_core.errors import Unavailable
from shoestring_core.store import audit, audit_seals
from shoestring_core.store.objects import Objects, open_objects
from shoestring_core.wording import Reason
from shoestring_core.wording import audit as wording
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.core.world import World

SECRET = "secret"


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return open_objects(str(tmp_path / "objects"), SECRET, "http://127.0.0.1", None)


def record(world: World, count: int = 1) -> None:
    def work(db) -> None:
        for number in range(count):
            audit.record(db, world.me, "grant", f"budget {number}", amount="1.00")

    world.store.write(work)


def seal(world: World, objects: Objects) -> None:
    sealed = world.store.write(lambda db: audit.chain_batch(db, world.team))
    if sealed is not None:
        audit_seals.store_seal(objects, SECRET, sealed)


def verify(world: World, objects: Objects) -> audit.Verification:
    return audit.verify(world.store, objects, SECRET, world.team)


def faults(world: World, objects: Objects) -> list[int]:
    return [fault.number for fault in verify(world, objects).verdict.faults]


def reasons(world: World, objects: Objects) -> list[Reason]:
    return [fault.reason for fault in verify(world, objects).verdict.faults]


def tamper(world: World, *statements: str) -> None:
    """As somebody does who has the database: triggers are no obstacle."""
    with world.store.writer.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            for table in ("audit_entries", "audit_links", "audit_seals"):
                for change in ("update", "delete"):
                    connection.execute(text(f"DROP TRIGGER IF EXISTS {table}_refuse_{change}"))
        for statement in statements:
            connection.execute(text(statement))


@pytest.mark.any_database
def test_an_entry_is_written_with_its_change_or_not_at_all(world: World, objects: Objects) -> None:
    def failing(db) -> None:
        audit.record(db, world.me, "grant", "budget 1")
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        world.store.write(failing)
    assert verify(world, objects).unsealed_count == 0


def test_batches_are_chained_and_sealed_and_what_is_newer_is_named(world: World, objects: Objects) -> None:
    record(world, 3)
    assert [row.subject for row in verify(world, objects).unsealed] == ["budget 0", "budget 1", "budget 2"]
    seal(world, objects)
    record(world, 2)
    seal(world, objects)
    record(world)
    found = verify(world, objects)
    assert (found.verdict.chained, found.verdict.sealed, found.verdict.faults) == (5, 5, [])
    assert (found.unsealed_count, len(found.unsealed)) == (1, 1)
    seal(world, objects)
    seal(world, objects)
    assert verify(world, objects).verdict.sealed == 6
    with world.store.read() as db:
        assert audit.last_seal(db, world.team).number == 3, "where nothing is new, nothing is sealed"


def test_triggers_refuse_every_change_of_a_row(world: World, objects: Objects) -> None:
    record(world)
    seal(world, objects)
    for table in ("audit_entries", "audit_links", "audit_seals"):
        for change in (f"DELETE FROM {table}", f"UPDATE {table} SET team = 'x'"):
            with pytest.raises(DBAPIError, match="immutable"), world.store.writer.begin() as connection:
                connection.execute(text(change))
    assert verify(world, objects).verdict.sealed == 1


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (("UPDATE audit_entries SET detail = replace(detail, '1', '9') WHERE subject = 'budget 1'",), [2]),
        (("UPDATE audit_entries SET at = at + 1 WHERE subject = 'budget 3'",), [4]),
        (("DELETE FROM audit_entries WHERE subject = 'budget 2'",), [3]),
        (("DELETE FROM audit_links WHERE number = 2",), [2]),
        (("DELETE FROM audit_links WHERE number >= 3", "DELETE FROM audit_entries WHERE subject >= 'budget 2'"), [3]),
        (("DELETE FROM audit_links", "DELETE FROM audit_entries", "DELETE FROM audit_seals"), [0, 1]),
        (("UPDATE audit_seals SET hash = 'x'",), [0]),
    ],
)
def test_what_is_changed_in_the_database_is_found(
    world: World, objects: Objects, statements: tuple[str, ...], found: list[int]
) -> None:
    record(world, 4)
    seal(world, objects)
    assert faults(world, objects) == []
    tamper(world, *statements)
    assert faults(world, objects) == found


@pytest.mark.any_database
def test_bytes_that_are_no_text_are_found_too(world: World, objects: Objects) -> None:
    record(world, 3)
    seal(world, objects)
    tamper(world, "UPDATE audit_entries SET detail = CAST(x'7bff7d' AS TEXT) WHERE subject = 'budget 1'")
    assert faults(world, objects) == [2]


@pytest.mark.any_database
def test_a_seal_that_is_changed_is_no_seal_and_a_missing_one_is_missed(
    world: World, objects: Objects, tmp_path: Path
) -> None:
    for _ in range(3):
        record(world)
        seal(world, objects)
    folder = tmp_path / "objects" / "audit" / world.team.hex
    (folder / "3.json").write_text((folder / "2.json").read_text())
    assert reasons(world, objects) == [wording.SealForged(3)]
    (folder / "3.json").write_text("{}")
    assert reasons(world, objects) == [wording.SealForged(3)]
    (folder / "3.json").unlink()
    found = verify(world, objects)
    assert (found.verdict.sealed, found.unsealed_count) == (2, 1), "a worker may be about to store it"
    (folder / "2.json").unlink()
    assert reasons(world, objects) == [wording.SealMissing(2)]


@pytest.mark.any_database
def test_a_seal_is_stored_again_without_effect_and_a_failing_store_is_reported(
    world: World, objects: Objects, tmp_path: Path
) -> None:
    record(world)
    sealed = world.store.write(lambda db: audit.chain_batch(db, world.team))
    assert sealed is not None
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "audit").write_text("a file where a folder belongs")
    with pytest.raises(Unavailable):
        audit_seals.store_seal(objects, SECRET, sealed)
    (tmp_path / "objects" / "audit").unlink()
    for _ in range(2):
        audit_seals.store_seal(objects, SECRET, sealed)
    assert verify(world, objects).verdict.sealed == 1


@pytest.mark.any_database
def test_teams_have_chains_of_their_own(world: World, objects: Objects) -> None:
    other = World(world.store)
    record(world, 2)
    record(other, 1)
    with world.store.read() as db:
        assert set(audit.unchained_teams(db)) == {world.team, other.team}
    seal(world, objects)
    seal(other, objects)
    assert (verify(world, objects).verdict.chained, verify(other, objects).verdict.chained) == (2, 1)
    with world.store.read() as db:
        assert [row.subject for row in audit.load_entries(db, world.team, None, 10)] == ["budget 1", "budget 0"]
