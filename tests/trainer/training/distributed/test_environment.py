# SPDX-License-Identifier: Apache-2.0
"""When a process takes itself for a rank of torchrun's."""

from __future__ import annotations

import pytest
from shoestring_trainer.training.distributed.context import find_place


def test_a_leftover_world_size_without_a_rank_is_said_and_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    context = find_place()
    assert (context.rank, context.world_size, context.local_rank) == (0, 1, 0)
    assert "WORLD_SIZE is set without RANK" in capsys.readouterr().err
