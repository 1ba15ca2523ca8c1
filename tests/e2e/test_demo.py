# SPDX-License-Identifier: Apache-2.0
"""The main job, as a newcomer runs it, judged from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

from shoestring import Client

from tests.e2e import witness
from tests.e2e.service import environment
from tests.servers import PATIENCE_S


def test_a_gang_loses_a_machine_half_way_and_finishes_as_if_it_had_not(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    demo = subprocess.Popen(
        [sys.executable, "-m", "shoestring", "demo", "--json", "--seed", "1", "--data", str(data)],
        env=environment(data, {}), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert demo.stdout is not None
        summary = json.loads(demo.stdout.readline())
        assert summary["status"] == "succeeded"
        assert summary["accuracy"] >= summary["target"] == 0.97
        assert summary["attempts"] >= 2  # on a busy machine a gang may take more than one to get ready
        assert (summary["rolled_back_steps"], summary["world_size"]) == (0, 2)
        assert summary["price_basis"] == "simulated"
        assert summary["seed"] == 1
        assert 0.3 <= summary["preempt_step"] / summary["steps"] <= 0.75
        assert summary["notice_to_checkpoint_s"] < 10
        assert summary["resume_s"] > 0
        assert Decimal(summary["spent_usd"]) < Decimal(summary["on_demand_usd"])

        with Client(summary["url"], (data / "admin.key").read_text().strip()) as client:
            job = summary["job_id"]
            generations = [g for attempt in client.attempts(job).attempts for g in attempt.generations]
            starts = [g.start_step for g in generations]
            lost = sum(g.last_step - start for g, start in zip(generations, starts[1:], strict=False))
            assert lost == summary["rolled_back_steps"] == 0
            loss = next(curve for curve in client.metrics(job).curves if curve.name == "train/loss")
            assert loss.steps == list(range(1, summary["steps"] + 1))
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(PATIENCE_S)

    assert demo.returncode == 0
    assert witness.spent_usd(data, summary["job_id"]) == Decimal(summary["spent_usd"])
    assert [life.cause for life in witness.lives(data) if life.notice] == ["preempted"]
    witness.require_one_machine_a_slot(data)
    witness.require_none_alive(data)
