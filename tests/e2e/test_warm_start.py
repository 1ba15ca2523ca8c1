# SPDX-License-Identifier: Apache-2.0
"""What one job has learned, another starts with: through the service, its object store and a machine of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.service import start

pytestmark = [pytest.mark.timeout(300)]

JOB = {"recipe": "digits/quickstart", "params": {"epochs": 3, "width": 8}, "limits": {"cost": "0.50"}}


def test_a_job_goes_on_from_what_another_has_learned(tmp_path: Path) -> None:
    service = start(tmp_path)
    try:
        first = service.settled(service.client.submit(JOB).id)
        assert first.result is not None
        second = service.settled(service.client.submit(JOB | {"init": f"job/{first.id}"}).id)
        assert second.end_reason == "succeeded"
        (told,) = [one for one in service.client.events(second.id).events if one.data.get("event") == "warm_start"]
        assert "fresh" not in told.data["message"]
        began = [service.client.metrics(job.id, keys="train/loss").curves[0].values[0] for job in (first, second)]
        assert began[0] > 2.0  # ten classes, nothing known
        assert began[1] < 1.0
    finally:
        service.stop()
