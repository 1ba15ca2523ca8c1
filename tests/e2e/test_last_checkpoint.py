# SPDX-License-Identifier: Apache-2.0
"""A machine whose money ends and that nobody stops saves its work by itself, as long as it is paid for.

Where the service orders the stop: `test_money.py`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.e2e import witness
from tests.e2e.service import SMALL_JOB, Service, start, until

LEASE_S = 90
"""A quarter of it, at least, is left for the last checkpoint, which takes a busy machine a few seconds."""
SLOW = """
import time
def on_batch(context, images, labels):
    time.sleep(0.3 if context.step < 150 else 2)
"""


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    environment = {"SHOESTRING_TIMEOUTS__FUNDING_LEASE": f"{LEASE_S}s"}
    service = start(
        tmp_path_factory.mktemp("last"), options=("--budget", "5.00", "--slots", "1"), environment=environment
    )
    yield service
    service.stop()


def test_a_job_whose_money_runs_out_while_no_worker_runs_loses_no_step(service: Service) -> None:
    hooks = service.hooks / "slow.py"
    hooks.write_text(SLOW)
    params = SMALL_JOB["params"] | {"epochs": 5, "hooks_file": str(hooks)}
    client = service.client
    job = client.submit(SMALL_JOB | {"params": params, "resources": {"nodes": 1}})
    service.trained(job.id, 20)
    worker = service.child("worker")
    os.kill(worker, signal.SIGSTOP)
    try:
        (own,) = (budget for budget in client.cost(job.id).budgets if budget.kind == "job")
        client.set_budget(own.id, "0.001", reason="nothing for another hold")
        until(lambda: all(life.ended for life in witness.lives(service.data)), "the machine's end", every_s=0.5)
    finally:
        os.kill(worker, signal.SIGCONT)
    paused = service.wait(job.id, lambda job: job.state == "paused")
    assert paused.wait_reason == "budget"

    (*_, life) = witness.lives(service.data)
    assert life.cause == "exited"
    events = client.events(job.id).events
    assert any(event.kind == "agent" and event.data.event == "funding_end" for event in events)
    (*_, saved) = (event for event in events if event.kind == "checkpoint")
    last_step = max(witness.merged(service.data))
    assert saved.data.promoted
    assert saved.data.step == last_step
    assert saved.at.timestamp() * 1e6 <= life.ended
    attempts = client.attempts(job.id)
    assert (attempts.steps, attempts.rolled_back_steps) == (last_step, 0)
