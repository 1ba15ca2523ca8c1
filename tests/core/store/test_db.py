# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from alembic import command
from shoestring_core.errors import NotFound, StoreTooNew, Unavailable
from shoestring_core.events import AgentReport, BatchStored, JobChange
from shoestring_core.states import JobState
from shoestring_core.store import engines, migrations, sessions
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.tables import (
    AccountRow,
    Base,
    EventRow,
    JobRow,
    KeyRow,
    MembershipRow,
    SchedulerRow,
    SessionRow,
    TeamRow,
    UserRow,
)
from shoestring_core.store.transactions import CommitInfo, Read, Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording.agents import AgentMessage
from sqlalchemy import exc, insert, select, text, update

from tests import write_order
from tests.core.world import World
from tests.servers import PATIENCE_S


def test_migrations_make_what_the_models_say(database_url: str, tmp_path: Path) -> None:
    store = open_store(database_url)
    store.migrate()
    if store.writer.dialect.name == "sqlite":
        created = open_store(f"sqlite:///{tmp_path / 'created.db'}")
        with created.writer.begin() as connection:
            Base.metadata.create_all(connection)
        with store.reader.connect() as left, created.reader.connect() as right:
            assert migrations.differences(left, right) == []
        created.close()
        store.close()
        return
    with store.writer.begin() as left:
        left.execute(text("CREATE SCHEMA created"))
        right = left.execution_options(schema_translate_map={None: "created"})
        Base.metadata.create_all(right)
        ours = migrations.described(left)
        theirs = migrations.described(left, schema="created")
    store.close()
    assert {line.replace("created.", "").replace("schema: created", "schema: None") for line in theirs} == ours


def test_the_check_for_make_check_passes() -> None:
    check = [sys.executable, "-m", "shoestring_core.store.migrations", "check"]
    assert subprocess.run(check, capture_output=True, timeout=PATIENCE_S).returncode == 0


def test_a_missing_check_constraint_is_a_difference(tmp_path: Path) -> None:
    migrated = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    migrated.migrate()
    created = open_store(f"sqlite:///{tmp_path / 'b.db'}")
    with created.writer.begin() as connection:
        Base.metadata.create_all(connection)
        connection.execute(text("DROP TABLE services"))
        connection.execute(text("CREATE TABLE services (name TEXT PRIMARY KEY CHECK (name <> ''))"))
    with migrated.reader.connect() as left, created.reader.connect() as right:
        assert any("services" in line and "<> ''" in line for line in migrations.differences(left, right))


def test_migrating_twice_and_at_once_is_harmless(database_url: str) -> None:
    stores = [open_store(database_url) for _ in range(3)]
    assert stores[0].revision() is None
    assert not stores[0].is_current()
    threads = [threading.Thread(target=store.migrate) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(store.is_current() for store in stores)
    with stores[0].read() as db:
        assert db.sql.scalars(select(SchedulerRow.plan_version)).all() == [0]
    for store in stores:
        store.close()


def test_keys_and_logins_of_an_older_database_stay_valid(database_url: str) -> None:
    team, user, first, second = (f"{number:032x}" for number in range(1, 5))
    rows = [
        f"INSERT INTO teams (id, name, feed_seq, schedule_changes) VALUES ('{team}', 'vision', 0, 0)",
        f"INSERT INTO users (id, name, created_at) VALUES ('{user}', 'ada', 1)",
        f"INSERT INTO memberships (team_id, user_id, role) VALUES ('{team}', '{user}', 'admin')",
        (
            "INSERT INTO keys (id, kind, hash, user_id, team_id, created_at, made_with) VALUES "
            f"('{first}', 'pat', 'one', '{user}', '{team}', 1, NULL), "
            f"('{second}', 'svc', 'two', '{user}', '{team}', 2, '{first}')"
        ),
        (
            "INSERT INTO sessions (hash, user_id, team_id, made_with, expires_at, csrf) "
            f"VALUES ('three', '{user}', '{team}', '{second}', 2000000000000, 'four')"
        ),
    ]
    store = open_store(database_url)
    settings = migrations.config()
    with store.writer.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, "0006")
        for row in rows:
            connection.execute(text(row))
    store.migrate()
    with store.read() as db:
        keys = [(key.hash, key.kind, key.scopes, key.job) for key in db.sql.scalars(select(KeyRow).order_by(KeyRow.id))]
        assert keys == [("one", "pat", None, None), ("two", "svc", None, None)]
        (login,) = db.sql.scalars(select(SessionRow)).all()
        assert (login.made_with, login.created_at) == (UUID(second), 2000000000000 - sessions.SESSION_TTL)
        assert db.sql.scalars(select(MembershipRow.role)).all() == ["admin"]
    store.close()


def test_a_newer_database_is_refused(database_url: str) -> None:
    store = open_store(database_url)
    store.migrate()
    with store.writer.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreTooNew, match="9999") as refused:
        open_store(database_url)
    assert refused.value.hint
    with pytest.raises(StoreTooNew):
        store.migrate()
    store.close()


def test_sqlite_is_set_up_for_durability_keys_and_little_memory(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    with store.writer.connect() as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in (
                "journal_mode",
                "synchronous",
                "foreign_keys",
                "busy_timeout",
                "query_only",
                "cache_size",
                "soft_heap_limit",
            )
        }
    store.close()
    assert values == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000, "query_only": 0,
        "cache_size": -512,  # KiB
        "soft_heap_limit": 4 * 2**20,  # of the process
    }  # fmt: skip


def test_postgresql_reads_committed_rows_and_has_timeouts(postgres_store: Store) -> None:
    with postgres_store.read() as db:
        assert db.sql.scalar(text("SHOW transaction_read_only")) == "on"
    with postgres_store.writer.connect() as connection:
        assert connection.scalar(text("SHOW transaction_read_only")) == "off"
        assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
        assert connection.scalar(text("SHOW statement_timeout")) == "30s"
        assert connection.scalar(text("SHOW lock_timeout")) == "10s"
        assert connection.scalar(text("SHOW idle_in_transaction_session_timeout")) == "1min"


def test_a_read_session_cannot_write(store: Store) -> None:
    def add(db: Read) -> None:
        db.sql.execute(insert(UserRow).values(id=uuid7(), name="ann", created_at=db.now))

    with pytest.raises((Unavailable, exc.DBAPIError)), store.read() as db:
        add(db)
    store.write(add)


def test_a_read_sees_one_snapshot(store: Store) -> None:
    with store.read() as db:
        assert db.sql.scalar(select(SchedulerRow.plan_version)) == 0
        store.write(lambda w: w.sql.execute(update(SchedulerRow).values(plan_version=7)))
        assert db.sql.scalar(select(SchedulerRow.plan_version)) == 0
    with store.read() as db:
        assert db.sql.scalar(select(SchedulerRow.plan_version)) == 7


def test_a_row_read_again_has_the_updated_values(store: Store) -> None:
    def work(db: Write) -> int:
        assert db.sql.scalars(select(SchedulerRow)).one().plan_version == 0
        db.sql.execute(update(SchedulerRow).values(plan_version=SchedulerRow.plan_version + 1))
        return db.sql.scalars(select(SchedulerRow)).one().plan_version

    assert store.write(work) == 1


def test_a_failed_write_changes_nothing(store: Store) -> None:
    def work(db: Write) -> None:
        db.sql.execute(update(SchedulerRow).values(plan_version=5))
        raise NotFound("no such job")

    with pytest.raises(NotFound):
        store.write(work)
    with store.read() as db:
        assert db.sql.scalar(select(SchedulerRow.plan_version)) == 0


def test_readers_one_after_the_other_use_one_connection_however_many_there_were_at_once(store: Store) -> None:
    with store.read() as one, store.read() as other:
        assert one.connection.connection.driver_connection is not other.connection.connection.driver_connection
    used = []
    for _ in range(3):
        with store.read() as db:
            used.append(db.connection.connection.driver_connection)
    assert used[0] is used[1] is used[2]


def test_now_is_read_once(store: Store) -> None:
    def work(db: Write) -> None:
        assert db.now == db.now
        assert db.now > 1_700_000_000_000_000

    store.write(work)
    with store.read() as db:
        assert db.now == db.now


def test_what_several_steps_of_a_transaction_need_is_loaded_once(store: Store) -> None:
    loads: list[Read] = []

    def load(db: Read) -> int:
        loads.append(db)
        return len(loads)

    for transaction in (1, 2):
        with store.read() as db:
            assert (db.once(load), db.once(load)) == (transaction, transaction)


def test_a_row_is_after_its_insert_as_it_is_when_it_is_read(world: World) -> None:
    job, columns = world.job("1.00"), JobRow.__table__.columns.keys()
    with world.store.read() as db:
        stored = db.sql.get_one(JobRow, job.id)
    assert [getattr(job, name) for name in columns] == [getattr(stored, name) for name in columns]


def test_writers_that_read_first_lose_no_update(store: Store) -> None:
    """On SQLite a deferred read-then-write would fail with BUSY_SNAPSHOT; PostgreSQL's UPDATE sees the newest row."""

    def increment(db: Write) -> None:
        db.sql.scalar(select(SchedulerRow.plan_version))
        db.sql.execute(update(SchedulerRow).values(plan_version=SchedulerRow.plan_version + 1))

    threads = [threading.Thread(target=lambda: [store.write(increment) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as db:
        assert db.sql.scalar(select(SchedulerRow.plan_version)) == 40


def test_writers_in_several_processes_wait_for_each_other(store: Store) -> None:
    script = (
        "import sys; from sqlalchemy import update\n"
        "from shoestring_core.store.db import open_store\n"
        "from shoestring_core.store.tables import SchedulerRow\n"
        "store = open_store(sys.argv[1])\n"
        "next_version = update(SchedulerRow).values(plan_version=SchedulerRow.plan_version + 1)\n"
        "for _ in range(20): store.write(lambda db: db.execute(next_version))\n"
    )
    url = store.writer.url.render_as_string(hide_password=False)
    writers = [subprocess.Popen([sys.executable, "-c", script, url]) for _ in range(3)]
    assert [writer.wait(timeout=PATIENCE_S) for writer in writers] == [0, 0, 0]
    with store.read() as db:
        assert db.sql.scalar(select(SchedulerRow.plan_version)) == 60


def test_characters_that_no_database_can_store_are_replaced(store: Store) -> None:
    """NUL, half a surrogate pair and NaN come from machines and users; no row is lost for them."""
    team = uuid7()
    logged = {"a\0": ["\ud800", float("nan"), float("inf"), float("-inf"), 1.5, None, True, "é\\u0000"]}
    data = AgentReport.model_validate(logged | {"event": "x", "machine": team, "at": 0, "step": None})

    def work(db: Write) -> None:
        db.insert_new(TeamRow, id=team, name="n\0\udfff", feed_seq=0)
        db.event(data, team=team, actor="a\0", reason=AgentMessage("\ud800", "\0"))

    store.write(work)
    with store.read() as db:
        assert db.sql.scalar(select(TeamRow.name)) == "n\ufffd\ufffd"
        event = db.sql.scalars(select(EventRow)).one()
    assert (event.actor, event.reason["facts"]) == ("a\ufffd", {"event": "\ufffd", "message": "\ufffd"})
    assert event.data["a\ufffd"] == ["\ufffd", "NaN", "Infinity", "-Infinity", 1.5, None, True, "é\\u0000"]


def test_idle_connections_that_died_are_replaced(postgres_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PING_AFTER_IDLE_S", 0)

    def work(db: Write) -> int:
        return db.execute(update(SchedulerRow).values(plan_version=SchedulerRow.plan_version + 1))

    assert postgres_store.write(work) == 1
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> {}"
    with psycopg.connect(_plain_url(postgres_store), autocommit=True) as other:
        other.execute(kill.format("pg_backend_pid()"))
    assert postgres_store.write(work) == 1


def test_a_connection_in_steady_use_is_not_tried_before_each_transaction(
    postgres_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pings: list[object] = []
    monkeypatch.setattr(postgres_store.reader.dialect, "do_ping", pings.append)
    monkeypatch.setattr(engines, "PING_AFTER_IDLE_S", 600)
    for _ in range(3):
        with postgres_store.read() as db:
            db.sql.scalar(select(SchedulerRow.plan_version))
    assert pings == []
    monkeypatch.setattr(engines, "PING_AFTER_IDLE_S", 0)
    with postgres_store.read() as db:
        db.sql.scalar(select(SchedulerRow.plan_version))
    assert len(pings) == 1


def test_a_connection_that_dies_in_a_write_is_unavailable_and_changes_nothing(postgres_store: Store) -> None:
    def work(db: Write) -> None:
        db.execute(update(SchedulerRow).values(plan_version=9))
        with psycopg.connect(_plain_url(postgres_store), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (db.sql.scalar(text("SELECT pg_backend_pid()")),))
        db.execute(update(SchedulerRow).values(plan_version=10))

    with pytest.raises(Unavailable) as refused:
        postgres_store.write(work)
    assert refused.value.retryable
    with postgres_store.read() as db:
        assert db.sql.scalar(select(SchedulerRow.plan_version)) == 0


def _plain_url(store: Store) -> str:
    return store.writer.url.set(drivername="postgresql").render_as_string(hide_password=False)


def test_a_deadlock_runs_the_whole_function_again(postgres_store: Store) -> None:
    """Two writers lock two rows in opposite orders: PostgreSQL kills one, whose second run succeeds."""
    store = postgres_store
    ids = [uuid7(), uuid7()]
    for number, team in enumerate(ids):
        store.write(lambda db, n=number, t=team: db.sql.execute(insert(TeamRow).values(id=t, name=str(n), feed_seq=0)))
    meet, runs = threading.Barrier(2), []

    def crossing(order: list[UUID]):
        def work(db: Write) -> None:
            first_run = not any(order is seen for seen in runs)
            runs.append(order)
            for position, team in enumerate(order):
                db.sql.execute(update(TeamRow).where(TeamRow.id == team).values(feed_seq=TeamRow.feed_seq + 1))
                if position == 0 and first_run:
                    meet.wait(timeout=PATIENCE_S)

        return work

    orders = [ids, ids[::-1]]
    threads = [threading.Thread(target=store.write, args=(crossing(order),)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 3
    with store.read() as db:
        assert db.sql.scalars(select(TeamRow.feed_seq)).all() == [2, 2]


def test_a_transaction_that_breaks_the_order_of_writes_is_seen(database_url: str) -> None:
    store = open_store(database_url)
    store.migrate()
    world = World(store)
    job = world.job()
    leaf, top = world.account("job", job).id, world.account("org", job).id

    def touch(table: type[Base], row: UUID):
        return lambda db: db.execute(update(table).where(table.id == row).values(id=row))

    def both(first, then) -> None:
        store.write(lambda db: (first(db), then(db)))

    with write_order.watch(store) as out_of_order:
        both(touch(JobRow, job.id), touch(AccountRow, leaf))
        both(touch(AccountRow, leaf), touch(AccountRow, top))
        assert out_of_order() == []
        both(touch(AccountRow, leaf), touch(JobRow, job.id))
        both(touch(AccountRow, top), touch(AccountRow, leaf))
        assert out_of_order() == [[("accounts", leaf), ("jobs", job.id)], [("accounts", top), ("accounts", leaf)]]
    store.close()


def test_listeners_are_called_after_commits_and_their_errors_are_logged(store: Store) -> None:
    team, heard = uuid7(), []
    job = uuid7()

    def broken(_: CommitInfo) -> None:
        raise RuntimeError("listener")

    store.on_commit += [broken, heard.append]
    store.write(lambda db: db.sql.execute(insert(TeamRow).values(id=team, name="t", feed_seq=0)))
    assert heard == []

    def work(db: Write) -> None:
        db.event(JobChange(from_state=None, to=JobState.QUEUED), team=team, actor="ann", job=job)
        db.request_tick()

    store.write(work)
    assert heard == [CommitInfo({team}, {job}, tick_requested=True)]


def test_a_stored_batch_wakes_the_teams_streams_and_no_held_order(store: Store) -> None:
    """However many machines a gang has, their orders aren't read again for each batch of its points."""
    team, heard = uuid7(), []
    store.write(lambda db: db.sql.execute(insert(TeamRow).values(id=team, name="t", feed_seq=0)))
    store.on_commit.append(heard.append)
    batch = BatchStored(source=uuid7(), seq=1)
    store.write(lambda db: db.event(batch, team=team, actor="source", job=uuid7()))
    assert heard == [CommitInfo({team}, set(), tick_requested=False)]


# What the disk or the server refuses


def test_a_locked_sqlite_file_is_unavailable(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    holder, other = open_store(url), open_store(url, busy_timeout_s=0.2)
    holder.migrate()
    with holder.writer.begin() as connection:
        connection.execute(update(SchedulerRow).values(plan_version=1))
        with pytest.raises(Unavailable, match="locked") as refused:
            other.write(lambda db: db.sql.execute(update(SchedulerRow).values(plan_version=2)))
    assert refused.value.hint
    other.write(lambda db: db.sql.execute(update(SchedulerRow).values(plan_version=2)))
    holder.close()
    other.close()


def test_a_full_disk_is_unavailable_and_loses_nothing(tmp_path: Path) -> None:
    """SQLite answers SQLITE_FULL both when the disk is full and when max_page_count is reached."""
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    store.migrate()

    def fill(db: Write) -> None:
        pages = db.sql.scalar(text("PRAGMA page_count"))
        db.sql.execute(text(f"PRAGMA max_page_count = {pages}"))
        db.sql.execute(insert(UserRow).values(id=uuid7(), name="x" * 100_000, created_at=0))

    with pytest.raises(Unavailable, match="full") as refused:
        store.write(fill)
    assert "space" in (refused.value.hint or "")
    with store.read() as db:
        assert db.sql.scalars(select(UserRow)).all() == []
    store.close()


def test_a_read_only_sqlite_file_is_unavailable(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 's.db'}")
    store.migrate()

    def work(db: Write) -> None:
        db.sql.execute(text("PRAGMA query_only = ON"))
        db.sql.execute(update(SchedulerRow).values(plan_version=2))

    with pytest.raises(Unavailable, match="can't be written"):
        store.write(work)
    store.close()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(Unavailable, match="not an SQLite database"):
        open_store(f"sqlite:///{tmp_path / 's.db'}")


def test_a_missing_folder_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="can't be opened") as refused:
        open_store(f"sqlite:///{tmp_path / 'missing' / 's.db'}")
    assert "data folder" in (refused.value.hint or "")


@pytest.mark.parametrize("url", ["sqlite://", "mysql://localhost/x", "a file"])
def test_a_database_of_another_kind_is_refused_with_advice(url: str) -> None:
    with pytest.raises(Unavailable) as refused:
        open_store(url)
    assert refused.value.hint


def test_a_postgresql_that_does_not_answer_is_unavailable(free_port: int) -> None:
    with pytest.raises(Unavailable, match="can't be reached"):
        open_store(f"postgresql://nobody@127.0.0.1:{free_port}/x")


def test_a_wrong_postgresql_database_is_unavailable(postgres_store: Store) -> None:
    url = postgres_store.writer.url.set(database="missing").render_as_string(hide_password=False)
    with pytest.raises(Unavailable, match="can't be reached") as refused:
        open_store(url)
    assert "database" in (refused.value.hint or "")


def test_ids_sort_by_the_time_they_were_made() -> None:
    made = [uuid7() for _ in range(10_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}
