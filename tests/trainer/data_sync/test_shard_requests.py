# SPDX-License-Identifier: Apache-2.0
"""How ranks ask for shards, and what the downloader makes of it."""

from __future__ import annotations

import fcntl
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from shoestring_trainer.data_sync import shard_requests
from shoestring_trainer.data_sync.shard_requests import Requests, ShardRequests, read_requests

NAMES = ["train-0.tar", "train-1.tar"]


def open_requests(folder: Path) -> ShardRequests:
    return ShardRequests(folder / "requests", folder / "shards", NAMES, "s3", print)


def test_a_rank_asks_for_shards_as_long_as_it_lives(tmp_path: Path) -> None:
    with closing(open_requests(tmp_path)) as requests:
        requests.announce([1, 0])
        assert read_requests(tmp_path / "requests", len(NAMES)) == Requests([[1, 0]], set())
    assert read_requests(tmp_path / "requests", len(NAMES)) == Requests([], set())
    assert list((tmp_path / "requests").iterdir()) == []


def test_a_rank_that_is_just_starting_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The downloader may look at any moment, also before the rank holds its lock."""
    flock = fcntl.flock

    def look_before(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            assert read_requests(tmp_path / "requests", len(NAMES)) == Requests([], set())
        flock(file, operation)

    monkeypatch.setattr(shard_requests.fcntl, "flock", look_before)
    with closing(open_requests(tmp_path)) as requests:
        requests.announce([1])
        assert read_requests(tmp_path / "requests", len(NAMES)).orders == [[1]]
