# SPDX-License-Identifier: Apache-2.0
"""A batch that breaks the numbers, on two machines of the whole service: the job goes back and does without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.service import start

pytestmark = [pytest.mark.timeout(300)]

BAD = 20
HOOKS = f"""
def on_batch(run, pictures, labels):
    if run.step + 1 == {BAD}:
        return pictures * float("nan"), labels
"""


def test_a_gang_recovers_from_a_batch_that_breaks_the_numbers(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(HOOKS)
    service = start(tmp_path)
    try:
        job = service.client.submit(
            {
                "recipe": "digits/quickstart",
                "params": {"epochs": 2, "width": 8, "hooks": str(hooks)},
                "resources": {"nodes": 2},
                "limits": {"cost": "0.50"},
            }
        )
        done = service.settled(job.id)
        assert done.end_reason == "succeeded", done.sentence
        assert f"without the batch of step {BAD}" in done.sentence
        assert done.result is not None
        assert done.result["steps_skipped"] == 1
        (curve,) = service.client.metrics(job.id, keys="train/loss").curves
        assert curve.steps == list(range(1, (done.progress.steps_total or 0) + 1))
        assert [step for step, loss in zip(curve.steps, curve.values, strict=True) if loss != loss] == [BAD]
        attempts = service.client.attempts(job.id)
        assert [len(one.machines) for one in attempts.attempts] == [2]
        assert "skipping" in (attempts.attempts[0].generations[0].over_reason or "")
        events = service.client.events(job.id).events
        assert [one.data["step"] for one in events if one.data.get("event") == "skipped"] == [BAD]
    finally:
        service.stop()
