# SPDX-License-Identifier: Apache-2.0
"""No tick and no page of jobs reads all jobs, or all their accounts, by SQLite's query plans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shoestring_core import spec
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.store import identity, job_search, jobs, queries
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.objects.local import LocalObjects
from shoestring_core.store.tables import AccountRow
from shoestring_worker.providers.sim import SimulatedProvider
from sqlalchemy import update

from tests.core.world import Clock
from tests.statements import counted
from tests.worker.conftest import SECRET, make_control_loop


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path / 'shoestring.db'}")
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def admin(store: Store) -> identity.Principal:
    admin = store.write(lambda db: identity.ensure_admin(db, "org", "vision", "ann"))
    job = spec.parse({"recipe": "digits/quickstart", "resources": {"nodes": 1}})
    for _ in range(3):
        store.write(lambda db: jobs.submit(db, admin, job, min_hold=0))
    return admin


def test_no_statement_of_a_tick_reads_all_jobs_or_their_accounts(
    store: Store, admin: identity.Principal, tmp_path: Path
):
    clock = Clock()
    provider = SimulatedProvider(clock, slots=1)
    objects = LocalObjects(tmp_path / "objects", SECRET, "http://objects")
    control_loop = make_control_loop(store, {"sim": provider}, objects, Timeouts(), clock)
    try:
        with counted(store) as first:
            control_loop.tick()
        with counted(store) as second:
            control_loop.tick()
        store.write(lambda db: db.execute(update(AccountRow).where(AccountRow.kind == "team").values(max_jobs=9)))
        store.write(lambda db: jobs.submit(db, admin, spec.parse({"recipe": "digits/quickstart"}), min_hold=0))
        with counted(store) as capped:
            control_loop.tick()
        store.write(lambda db: db.execute(update(AccountRow).where(AccountRow.kind == "team").values(overdraft=1)))
        with counted(store) as overdrawn:
            control_loop.tick()
    finally:
        control_loop.close()
    assert len(provider.alive()) == 1
    of_capped = [one for table in ("jobs", "machines", "attempts") for one in capped.scans(store, table)]
    assert [one for one in of_capped if "JSON_EXTRACT(machines.offered_hardware" in one] == []
    assert [one for one in first.scans(store, "accounts") if "ORDER BY accounts.level" not in one] == []  # the audit
    assert first.scans(store, "jobs") == second.scans(store, "jobs") == second.scans(store, "accounts") == []
    assert overdrawn.scans(store, "jobs") == overdrawn.scans(store, "accounts") == []


def test_no_statement_of_a_page_of_jobs_reads_all_jobs(store: Store, admin: identity.Principal):
    with counted(store) as statements, store.read() as db:
        page = job_search.search(db, admin.team, limit=2)
        shown = queries.load_job_rows(db, page.jobs)
        queries.load_job_rows(db, job_search.search(db, admin.team, cursor=page.next_cursor).jobs)
    assert [one.queue_position for one in shown] == [3, 2]
    assert statements.scans(store, "jobs") == []
