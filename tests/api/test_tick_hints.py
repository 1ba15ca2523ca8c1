# SPDX-License-Identifier: Apache-2.0
"""What an API process sends after a commit, and that nothing waits for it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import redis
from shoestring_api import tick_hints
from shoestring_api.tick_hints import PAUSE_S, TickHints, next_pause
from shoestring_core.store.tables import ServiceRow
from shoestring_core.store.transactions import CommitInfo
from sqlalchemy import update

from tests.api.deployment import Deployment
from tests.servers import PATIENCE_S, Valkey, free_port, until

pytestmark = pytest.mark.any_database


def test_a_submit_asks_for_a_tick_whatever_broker_another_application_uses(
    migrated_url: str, tmp_path: Path, deployment: Deployment, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    with (
        redis.Redis.from_url(redis_url) as broker,
        Deployment(migrated_url, tmp_path / "a", redis_url=redis_url) as service,
    ):
        service.submit()
        until(lambda: broker.llen("shoestring:celery") >= 1)
        message = str(broker.lindex("shoestring:celery", 0))
        assert '"task": "shoestring.tick"' in message.replace('\\"', '"')
        assert {key.decode().partition(":")[0] for key in broker.scan_iter()} == {"shoestring"}, (
            "a shared Redis is safe"
        )


def test_a_broker_that_is_not_there_delays_nothing(
    migrated_url: str, tmp_path: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Deployment(migrated_url, tmp_path / "a", redis_url=f"redis://127.0.0.1:{free_port()}/0") as service:
        hints = service.state.tick_hints
        assert hints is not None
        tried = threading.Event()
        with monkeypatch.context() as patched:
            patched.setattr(hints, "_send_one", tried.wait)
            for _ in range(5):
                service.submit()  # which would wait for as long as a hint is being sent
            tried.set()
        service.submit()
        until(lambda: hints.dropped > 0)
        parts = service.nobody.get("/readyz").json()
        assert parts["ready"]
        assert "does not answer" in parts["parts"]["redis"]


def test_hints_go_on_when_the_broker_is_back(
    migrated_url: str, tmp_path: Path, deployment: Deployment, valkey: Valkey
) -> None:
    with Deployment(migrated_url, tmp_path / "a", redis_url=valkey.url) as service:
        hints = service.state.tick_hints
        assert hints is not None
        valkey.kill()
        service.submit()
        until(lambda: hints.dropped > 0)
        valkey.start()
        sent = hints.sent

        def another() -> bool:
            service.submit()
            return hints.sent > sent

        until(another, every_s=0.3)


def test_between_hints_is_a_pause_however_many_commits_there_are() -> None:
    hints, commit = TickHints(f"redis://127.0.0.1:{free_port()}/0"), CommitInfo(set(), set(), tick_requested=True)
    began = time.monotonic()
    hints.start()
    for number in range(1, 4):
        hints.on_commit(commit)
        until(lambda number=number: hints.dropped == number, every_s=0.001)
    hints.stop()
    assert time.monotonic() - began >= 3 * PAUSE_S


def test_pauses_between_hints_get_longer_while_commits_do_not_stop() -> None:
    pauses = [PAUSE_S]
    for more in (True, True, True, True, False, True):
        pauses.append(next_pause(pauses[-1], more=more))
    assert pauses == [0.05, 0.1, 0.2, 0.25, 0.25, 0.05, 0.1]


def test_the_end_of_the_service_does_not_wait_for_a_broker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    hints, commit = TickHints(f"redis://127.0.0.1:{free_port()}/0"), CommitInfo(set(), set(), tick_requested=True)
    sending, broker_answers = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        sending.set()
        broker_answers.wait()

    monkeypatch.setattr(hints._app, "send_task", hang)
    monkeypatch.setattr(tick_hints, "STOP_TIMEOUT_S", 0.01)
    hints.start()
    hints.on_commit(commit)
    sending.wait()
    hints.on_commit(commit)  # one that is pending
    stopper = threading.Thread(target=hints.stop, daemon=True)
    stopper.start()
    stopper.join(PATIENCE_S)
    assert not stopper.is_alive()
    broker_answers.set()
    until(lambda: not hints._thread.is_alive())
    assert hints.sent == 2


def test_a_hint_that_fails_in_an_unknown_way_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    hints, commit = TickHints(f"redis://127.0.0.1:{free_port()}/0"), CommitInfo(set(), set(), tick_requested=True)
    failures = iter([KeyError("no such channel")])

    def fail_once(*_: object, **__: object) -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr(hints._app, "send_task", fail_once)
    hints.start()
    hints.on_commit(commit)
    until(lambda: hints.dropped == 1)
    hints.on_commit(commit)
    until(lambda: hints.sent == 1)
    hints.stop()


def test_the_service_says_since_when_it_serves(deployment: Deployment) -> None:
    def row() -> ServiceRow:
        with deployment.store.read() as db:
            return db.sql.get_one(ServiceRow, "api")

    until(lambda: deployment.nobody.get("/healthz").status_code == 200)
    first = row()
    assert first.up_since <= first.last_heartbeat_at
    with deployment.store.writer.begin() as connection:
        connection.execute(
            update(ServiceRow).values(
                last_heartbeat_at=first.last_heartbeat_at - 60_000_000, up_since=first.up_since - 90_000_000
            )
        )
    until(lambda: row().last_heartbeat_at > first.last_heartbeat_at)
    assert row().up_since > first.up_since, "a silence starts its time anew"
