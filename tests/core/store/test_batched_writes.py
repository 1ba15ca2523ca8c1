# SPDX-License-Identifier: Apache-2.0
"""Small writes that share a transaction, and savepoints, which keep a failing one from the others."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread

import pytest
from shoestring_core.errors import InvalidRequest, Unavailable
from shoestring_core.events import WaitChange
from shoestring_core.spec import parse
from shoestring_core.store import events, jobs, queries
from shoestring_core.store.db import Store
from shoestring_core.store.queries import JobRows
from shoestring_core.store.tables import ServiceRow
from shoestring_core.store.transactions import CommitInfo, Read, Write
from sqlalchemy import Connection, event, insert, select

from tests.core.world import World
from tests.servers import until
from tests.statements import counted

STORED, REFUSED = (WaitChange(from_reason=None, to=to) for to in ("stored", "refused"))


def run_together(
    store: Store, works: list[Callable[[Write], object]], only_inserts: bool = False
) -> list[object]:  # fmt: skip
    """Run writes in threads of their own that all wait for their turn first. Returns results and errors."""
    outcomes: list[object] = [None] * len(works)
    begun, go_on = Event(), Event()

    def hold_the_writer(_: Write) -> None:
        begun.set()
        go_on.wait()

    def write(number: int) -> None:
        try:
            outcomes[number] = store.write(works[number], batch=True, only_inserts=only_inserts)
        except Exception as error:  # noqa: BLE001 - an outcome too
            outcomes[number] = error

    options = {"batch": True, "only_inserts": only_inserts}
    threads = [Thread(target=store.write, args=(hold_the_writer,), kwargs=options)]
    threads += [Thread(target=write, args=(number,)) for number in range(len(works))]
    threads[0].start()
    begun.wait()
    for thread in threads[1:]:
        thread.start()
    if only_inserts or store.writer.dialect.name == "sqlite":
        until(lambda: len(store._waiting) == len(works))
    go_on.set()
    for thread in threads:
        thread.join()
    return outcomes


def service(number: int, error: Exception | None = None) -> Callable[[Write], int]:
    """A write that inserts a row and then succeeds or raises."""

    def work(db: Write) -> int:
        db.sql.execute(insert(ServiceRow).values(name=f"service {number}", up_since=number, last_heartbeat_at=0))
        if error is not None:
            raise error
        return number

    return work


def stored(store: Store) -> set[int]:
    with store.read() as db:
        return stored_now(db)


def stored_now(db: Read) -> set[int]:
    return set(db.sql.scalars(select(ServiceRow.up_since)))


@pytest.mark.parametrize("only_inserts", [False, True])
def test_writes_that_come_together_each_get_their_own_outcome(store: Store, only_inserts: bool) -> None:
    """Some are refused, some run into a mistake of ours; the others are stored, whole."""
    errors = {3: InvalidRequest("refused"), 4: ZeroDivisionError()}
    works = [service(number, errors.get(number % 5)) for number in range(100)]
    outcomes = run_together(store, works, only_inserts)
    assert outcomes == [errors.get(number % 5, number) for number in range(100)]
    assert stored(store) == {number for number in range(100) if number % 5 < 3}


@pytest.mark.parametrize("only_inserts", [False, True])
def test_writes_that_wait_for_the_one_writer_of_sqlite_share_a_transaction_and_inserts_do_on_postgresql(
    store: Store, only_inserts: bool
) -> None:
    commits: list[int] = []

    def count(_: Connection) -> None:
        commits.append(1)

    event.listen(store.writer, "commit", count)
    assert run_together(store, [service(number) for number in range(20)], only_inserts) == list(range(20))
    event.remove(store.writer, "commit", count)
    assert len(commits) == (1 if only_inserts or store.writer.dialect.name == "sqlite" else 20)


def test_submissions_that_share_a_transaction_share_its_statements(world: World) -> None:
    """Each as if it were alone: with an account and an event of its own, and its place in the queue."""
    who, spec, made = world.me, parse({"recipe": "digits/quickstart"}), list[JobRows]()

    def submit(db: Write) -> JobRows:
        return queries.rows_of_new_job(db, jobs.submit(db, who, spec, min_hold=0), who)

    counts = []
    for number in (1, 1, 6):
        with counted(world.store) as statements:
            together = run_together(world.store, [submit] * number, only_inserts=True)
            made += [row for row in together if isinstance(row, JobRows)]
        counts.append((statements.reads, len(statements.writes)))
    assert counts[1] == counts[2]  # the first also loads what the process keeps
    with world.store.read() as db:
        rows = queries.load_job_rows(db, queries.load_jobs(db, [row.job.id for row in made]))
        events_of = {event.job for event in events.load_events(db, world.team, 0, 100)}
    assert [row.queue_position for row in rows] == list(range(1, 9))
    assert {row.job.id: row.queue_position for row in made} == {row.job.id: row.queue_position for row in rows}
    assert {row.account.id for row in rows if row.account} == {row.account.id for row in made if row.account}
    assert events_of >= {row.job.id for row in made}


def test_a_write_alone_raises_what_it_raised(store: Store) -> None:
    with pytest.raises(InvalidRequest):
        store.write(service(1, InvalidRequest("no")), batch=True)
    with pytest.raises(ZeroDivisionError):
        store.write(service(1, ZeroDivisionError()), batch=True)
    assert store.write(service(1), batch=True) == 1
    assert stored(store) == {1}


def test_what_a_refused_write_recorded_goes_with_it_and_the_feed_has_no_gap(world: World) -> None:
    commits: list[CommitInfo] = []
    world.store.on_commit.append(commits.append)
    with world.store.read() as db:
        before = events.latest_seq(db, world.team)

    def record(refused: bool) -> Callable[[Write], None]:
        def work(db: Write) -> None:
            db.event(REFUSED if refused else STORED, team=world.team, actor="agent")
            db.request_tick()
            if refused:
                raise InvalidRequest("no")

        return work

    outcomes = run_together(world.store, [record(refused) for refused in (True, False, True, False)])
    assert [type(outcome) for outcome in outcomes] == [InvalidRequest, type(None), InvalidRequest, type(None)]
    with world.store.read() as db:
        recorded = [(row.seq, row.data["to"]) for row in events.load_events(db, world.team, before, 100)]
    assert recorded == [(before + 1, "stored"), (before + 2, "stored")]


def test_a_savepoint_that_fails_takes_its_events_and_its_request_for_a_tick_along(world: World) -> None:
    commits: list[CommitInfo] = []
    world.store.on_commit.append(commits.append)

    def fail_within_savepoint(db: Write) -> None:
        with db.savepoint():
            db.sql.execute(insert(ServiceRow).values(name="api", up_since=1, last_heartbeat_at=0))
            db.insert(ServiceRow(name="worker", up_since=2, last_heartbeat_at=0), defer=True)
            db.event(STORED, team=world.team, actor="test")
            db.request_tick()
            assert db.once(stored_now) == {1}
            raise InvalidRequest("no")

    def work(db: Write) -> None:
        with pytest.raises(InvalidRequest):
            fail_within_savepoint(db)
        assert db.once(stored_now) == set()

    world.store.write(work)
    assert stored(world.store) == set()
    assert commits == []


def test_a_write_that_waited_too_long_for_its_turn_is_not_run_later(store: Store) -> None:
    begun, go_on = Event(), Event()

    def hold_the_writer(_: Write) -> None:
        begun.set()
        go_on.wait()

    holder = Thread(target=store.write, args=(hold_the_writer,))
    holder.start()
    begun.wait()
    store.busy_timeout_s = 0.01
    refused = set()
    try:
        store.write(service(1), batch=True)
    except Unavailable:
        refused.add(1)
    go_on.set()
    holder.join()
    store.write(service(2), batch=True)
    assert refused == ({1} if store.writer.dialect.name == "sqlite" else set())  # PostgreSQL has many writers
    assert stored(store) == {1, 2} - refused
