# SPDX-License-Identifier: Apache-2.0
"""Runs on one machine and on two are measured, and a time limit then picks between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shoestring import ServiceError, exits
from shoestring_core import money

from tests.client.test_cli import shoestring
from tests.e2e.service import Service, start

pytestmark = [pytest.mark.timeout(300)]

QUICK = {"recipe": "digits/quickstart", "params": {"epochs": 8, "width": 8, "sync_norm": False}}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = start(tmp_path, options=("--budget", "5.00", "--slots", "2"))
    yield service
    service.stop()


def test_a_time_limit_picks_machines_by_what_earlier_runs_took(service: Service, tmp_path: Path) -> None:
    client = service.client
    first = client.submit(QUICK | {"limits": {"time": "10m"}})
    assert "Nothing like it has been measured" in (first.sizing or "")
    assert service.settled(first.id).end_reason == "succeeded"
    assert service.settled(client.submit(QUICK | {"resources": {"nodes": 2}}).id).end_reason == "succeeded"

    plan = client.plan(QUICK | {"limits": {"time": "20m"}})
    assert (plan.verdict, plan.runs) == ("chosen", 2)
    measured = {one.nodes: one for one in plan.options if one.basis == "measured"}
    assert set(measured) == {1, 2}
    fitting = [one for one in plan.options if one.obstacle is None]
    assert plan.expected is not None
    assert money.from_decimal(plan.expected.cost.amount) == min(money.from_decimal(one.cost.amount) for one in fitting)
    assert plan.why

    faster = min(measured.values(), key=lambda one: one.sure_s)
    slower = max(measured.values(), key=lambda one: one.sure_s)
    between = QUICK | {"limits": {"time": (faster.sure_s + slower.sure_s) / 2}}
    assert client.plan(between).nodes == faster.nodes
    with pytest.raises(ServiceError) as refused:
        client.submit(QUICK | {"limits": {"time": "1s"}})
    assert refused.value.code == "time-limit-unmet"

    said = {"SHOESTRING_URL": service.url, "SHOESTRING_KEY": (service.data / "admin.key").read_text().strip()}
    arguments = ("plan", "digits/quickstart", "epochs=8", "width=8", "sync_norm=false")
    shown = shoestring(*arguments, "limits.time=20m", home=tmp_path, **said)
    assert (shown.returncode, shown.stdout.splitlines()[:2]) == (exits.OK, [plan.text, plan.why])
    assert "2 × local.cpu" in shown.stdout
    assert shoestring(*arguments, "limits.time=1s", home=tmp_path, **said).returncode == exits.NO_CAPACITY

    job = client.submit(QUICK | {"limits": {"time": "20m"}})
    assert job.spec["resources"]["nodes"] == plan.nodes
    assert job.sizing == f"{plan.text} {plan.why}"
    done = service.settled(job.id)
    assert done.end_reason == "succeeded"
    machines = [machine for attempt in client.attempts(job.id).attempts for machine in attempt.machines]
    assert {machine.type for machine in machines} == {plan.type}
    assert len({machine.slot for machine in machines}) == plan.nodes
