# SPDX-License-Identifier: Apache-2.0
"""An interrupted run ends with the same bits as an unbroken one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.trainer.training.gangs import finished, gang

INTERRUPTIONS = 5
STEPS, STEPS_PER_EPOCH = 360, 1437 / 16


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Hashes and losses of runs that nobody interrupted, by world size."""
    known: dict[int, tuple[dict[str, str], list[float]]] = {}

    def run(world: int):
        if world not in known:
            whole = finished(tmp_path_factory.mktemp("unbroken"), procs=world, precision="fp16")
            known[world] = whole.state_hashes(), losses(whole)
        return known[world]

    return run


@pytest.mark.parametrize(("nodes", "procs"), [(1, 1), (1, 2), (2, 1)], ids=["1-process", "2-processes", "2-machines"])
def test_five_interruptions_change_no_bit(tmp_path: Path, unbroken, nodes: int, procs: int):
    """With momentum, loss scaling (fp16), augmentation and dropout on; stopped at random steps inside epochs."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    resume, start, seen, starts = None, 0, [], []
    for part in range(INTERRUPTIONS):
        with gang(tmp_path / str(part), nodes=nodes, procs=procs, precision="fp16", resume=resume) as run:
            run.until_step(start + 1 + draw.randrange(20))
            run.order_stop(node=nodes - 1)
            assert run.wait() == [0] * nodes * procs, run.logs()
        (saved,) = run.events("checkpoint")
        assert [word["outcome"] for word in run.exits()] == ["drained"] * nodes * procs
        assert {word["step"] for word in run.exits()} == {saved["step"]}
        assert run.events("started")[0]["step"] == start
        assert start < saved["step"] < STEPS
        start, resume = saved["step"], run.checkpoint()
        starts.append(start)
        seen += losses(run)
    assert any(step % STEPS_PER_EPOCH > 1 for step in starts)
    last = finished(tmp_path / "last", nodes=nodes, procs=procs, precision="fp16", resume=resume)
    hashes, expected_losses = unbroken(nodes * procs)
    assert last.state_hashes() == hashes
    assert seen + losses(last) == expected_losses
    assert len(expected_losses) == STEPS


def losses(run) -> list[float]:
    return [line["v"]["train/loss"] for line in run.metrics()]
