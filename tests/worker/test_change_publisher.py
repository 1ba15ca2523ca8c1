# SPDX-License-Identifier: Apache-2.0
"""What the worker publishes after a commit, and that no failure ends it."""

from __future__ import annotations

from uuid import uuid4

import pytest
from shoestring_core.store.transactions import CommitInfo
from shoestring_core.wakeups import WakeMessage
from shoestring_worker.change_publisher import ChangePublisher

from tests.servers import free_port, until


def test_a_change_that_fails_in_an_unknown_way_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = ChangePublisher(f"redis://127.0.0.1:{free_port()}/0")
    failures = iter([KeyError("no such channel")])
    published: list[str] = []

    def fail_once(_channel: str, message: str) -> None:
        for failure in failures:
            raise failure
        published.append(message)

    monkeypatch.setattr(publisher._client, "publish", fail_once)
    publisher(CommitInfo({uuid4()}, set(), tick_requested=False))
    until(lambda: publisher.dropped == 1)
    team, job = uuid4(), uuid4()
    publisher(CommitInfo({team}, {job}, tick_requested=False))
    until(lambda: published != [])
    assert WakeMessage.model_validate_json(published[0]).changed == {team, job}
