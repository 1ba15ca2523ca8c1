# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that an agent keeps on its machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from shoestring_core.wire import CheckpointDownload
from shoestring_trainer.agent.checkpoints import CheckpointCache, _with_store_checksum


def test_a_checkpoint_given_to_ranks_outlives_a_later_commit(tmp_path: Path) -> None:
    """An older generation's upload may be committed just after the next generation was told where to start."""
    given, late = "a" * 64, "b" * 64
    folder, run = tmp_path / "cache", tmp_path / "ckpt"
    folder.mkdir()
    run.mkdir()
    for name in (f"{given}.data", f"{given}.json"):
        (folder / name).write_bytes(b"{}")
    for name in ("step-000000002.data", "step-000000002.json"):
        (run / name).write_bytes(b"{}")
    cache = CheckpointCache(folder)
    resume = CheckpointDownload(step=1, data_url="unused", manifest_url="unused", manifest_sha256=given)
    data, manifest = asyncio.run(cache.fetch(cast("Any", None), resume))
    committed = SimpleNamespace(data=run / "step-000000002.data", manifest=run / "step-000000002.json")
    cache.store(late, cast("Any", committed))
    assert data.exists()
    assert manifest.exists()
    assert (folder / f"{late}.json").exists()


def test_what_a_hook_keeps_beside_checkpoints_stays_and_keeps_no_checkpoint_from_being_stored(tmp_path: Path) -> None:
    folder, run = tmp_path / "cache", tmp_path / "ckpt"
    folder.mkdir()
    (run / "step-000000001.data").mkdir(parents=True)
    (run / "best").mkdir()
    for name in ("best.pt", "step-000000001.json", "step-000000002.data", "step-000000002.json", "step-9.txt"):
        (run / name).write_bytes(b"{}")
    committed = SimpleNamespace(data=run / "step-000000002.data", manifest=run / "step-000000002.json")
    (folder / "older.data").write_bytes(b"{}")
    CheckpointCache(folder).store("b" * 64, cast("Any", committed))
    assert {path.name for path in folder.iterdir()} == {f"{'b' * 64}.data", f"{'b' * 64}.json"}
    assert {path.name for path in run.iterdir()} == {"best", "best.pt", "step-000000001.data", "step-9.txt"}


def test_data_that_are_larger_than_a_checkpoint_may_be_are_not_read_to_their_end(tmp_path: Path) -> None:
    run = tmp_path / "gen/1/ckpt"
    run.mkdir(parents=True)
    with (run / "step-1.data").open("wb") as file:
        file.truncate(1 << 43)
    (run / "step-1.json").write_text("{}")
    sparse = SimpleNamespace(data=run / "step-1.data", manifest=run / "step-1.json")
    with pytest.raises(OSError, match="larger than"):
        _with_store_checksum(cast("Any", sparse))
