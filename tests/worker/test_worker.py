# SPDX-License-Identifier: Apache-2.0
"""Real worker processes: with a broker, without one, and with one that dies and comes back empty."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from shoestring_core import spec
from shoestring_core.store import identity, jobs
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.tables import JobRow
from sqlalchemy import select

from tests import servers
from tests.servers import PATIENCE_S, until
from tests.trainer.machinehost import local_cloud

pytestmark = pytest.mark.any_database

ROOT = Path(__file__).parents[2]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[local_cloud.LocalCloud]:
    host = local_cloud.LocalCloud(tmp_path / "cloud")
    host.start(slots=4)
    yield host
    host.clean_up()


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    store = open_store(migrated_url)
    yield store
    store.close()


@pytest.fixture
def start(tmp_path: Path, migrated_url: str, host: local_cloud.LocalCloud) -> Iterator[Start]:
    """Starts `celery …` on a Redis URL; ends what it started."""
    started: list[subprocess.Popen[bytes]] = []

    def start(redis_url: str, *words: str, application: str = "app") -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(str(ROOT / package) for package in ("core", "worker")),
            "SHOESTRING_DATABASE_URL": migrated_url,
            "SHOESTRING_REDIS_URL": redis_url,
            "SHOESTRING_SECRET": "a secret of the tests",
            "SHOESTRING_OBJECT_STORE": str(tmp_path / "objects"),
            "SHOESTRING_AGENT_URL": "http://127.0.0.1:9",
            "SHOESTRING_LOCAL_SLOTS": "4",
            "SHOESTRING_MACHINEHOST_FILE": str(host.folder / "machinehost.json"),
        }
        command = [sys.executable, "-m", "celery", "-A", f"shoestring_worker.{application}", *words]
        with (tmp_path / "celery.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(PATIENCE_S)


def submit(store: Store) -> UUID:
    admin = store.write(lambda db: identity.ensure_admin(db, "org", "vision", "ann"))
    wanted = spec.parse({"recipe": "digits/quickstart"})
    return store.write(lambda db: jobs.submit(db, admin, wanted, min_hold=0)).job.id


def launched(store: Store, job: UUID) -> Callable[[], bool]:
    def look() -> bool:
        with store.read() as db:
            return db.sql.scalars(select(JobRow.state).where(JobRow.id == job)).one() == "launching"

    return look


WORKER = ("worker", "--pool", "threads", "--concurrency", "2", "--without-gossip", "--without-mingle")


def test_beat_and_worker_start_a_job(store: Store, start: Start, redis_url: str, tmp_path: Path):
    job = submit(store)
    start(redis_url, *WORKER)
    start(redis_url, "beat", "--schedule", str(tmp_path / "beat"), application="celery_app")
    until(launched(store, job))


def test_only_our_settings_choose_the_broker(monkeypatch: pytest.MonkeyPatch):
    ours = {
        "DATABASE_URL": "sqlite:////x",
        "OBJECT_STORE": "/x",
        "MACHINEHOST_FILE": "/x",
        "REDIS_URL": "redis://ours/1",
    }
    for name, value in ours.items():
        monkeypatch.setenv(f"SHOESTRING_{name}", value)
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        monkeypatch.setenv(name, "redis://other/0")
    module = importlib.import_module("shoestring_worker.celery_app")
    app = module.make_app(module.settings)
    assert {connection().hostname for connection in (app.connection_for_read, app.connection_for_write)} == {"ours"}


def test_without_a_broker_the_worker_ticks_by_itself(store: Store, start: Start, free_port: int):
    worker = start(f"redis://127.0.0.1:{free_port}/0", *WORKER)
    job = submit(store)
    until(launched(store, job))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE_S) is not None


def test_a_broker_that_dies_and_comes_back_empty_stops_nothing(
    store: Store, start: Start, valkey: servers.Valkey, tmp_path: Path
):
    start(valkey.url, *WORKER)
    start(valkey.url, "beat", "--schedule", str(tmp_path / "beat"), application="celery_app")
    until(launched(store, submit(store)))
    valkey.kill()
    until(launched(store, submit(store)))
    valkey.start()
    until(launched(store, submit(store)))


def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unusable = {"LOCAL_SLOTS": "abc", "TIMEOUTS__DRAIN": "soon", "REDIS_URL": "nonsense", "DATABASE_URL": "sqlite://"}
    for name, value in unusable.items():
        monkeypatch.setenv(f"SHOESTRING_{name}", value)
    monkeypatch.setenv("SHOESTRING_MACHINEHOST_FILE", str(tmp_path / "machinehost.json"))
    monkeypatch.delenv("SHOESTRING_OBJECT_STORE", raising=False)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("shoestring_worker.celery_app").read_settings()
    said = str(ended.value)
    assert said.startswith("shoestring worker: SHOESTRING_")
    assert "SHOESTRING_LOCAL_SLOTS: " in said
    assert "SHOESTRING_TIMEOUTS__DRAIN: " in said
    assert "SHOESTRING_REDIS_URL: no address" in said
    assert "SHOESTRING_OBJECT_STORE is not set." in said, "the working folder is no object store"
    assert "\n" not in said
