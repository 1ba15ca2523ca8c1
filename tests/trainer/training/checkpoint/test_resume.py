# SPDX-License-Identifier: Apache-2.0
"""An interrupted run ends with the same bits as an unbroken one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.trainer.training.gangs import DIGITS, finished, gang

INTERRUPTIONS = 5
PARAMS = DIGITS | {"epochs": 3}
STEPS, STEPS_PER_EPOCH = 270, 1437 / 16


@pytest.mark.parametrize("nodes", [1, 2])
def test_five_interruptions_change_no_bit(tmp_path: Path, nodes: int):
    """With momentum, loss scaling (fp16), augmentation and dropout on; stopped at random steps inside epochs.

    The processes of the unbroken run share a machine.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    resume, start, seen, starts = None, 0, [], []
    for part in range(INTERRUPTIONS):
        with gang(tmp_path / str(part), nodes=nodes, params=PARAMS, precision="fp16", resume=resume) as run:
            run.until_step(start + 1 + draw.randrange(20))
            run.order_stop(node=nodes - 1)
            assert run.wait() == [0] * nodes, run.logs()
        (saved,) = run.events("checkpoint")
        assert [word["outcome"] for word in run.exits()] == ["drained"] * nodes
        assert {word["step"] for word in run.exits()} == {saved["step"]}
        assert run.events("started")[0]["step"] == start
        assert start < saved["step"] < STEPS
        start, resume = saved["step"], run.checkpoint()
        starts.append(start)
        seen += losses(run)
    assert any(step % STEPS_PER_EPOCH > 1 for step in starts)
    last = finished(tmp_path / "last", nodes=nodes, params=PARAMS, precision="fp16", resume=resume, bare=True)
    unbroken = finished(tmp_path / "unbroken", procs=nodes, params=PARAMS, precision="fp16", bare=True)
    assert last.state_hashes() == unbroken.state_hashes()
    assert seen + losses(last) == losses(unbroken)
    assert len(losses(unbroken)) == STEPS


def losses(run) -> list[float]:
    return [line["v"]["train/loss"] for line in run.metrics()]
