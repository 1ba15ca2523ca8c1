# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that an agent keeps on its machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from shoestring_core.wire import CheckpointDownload
from shoestring_trainer.agent.checkpoints import CheckpointCache


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
