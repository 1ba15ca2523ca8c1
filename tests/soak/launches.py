# SPDX-License-Identifier: Apache-2.0
"""20 machines launched and ended at once by EC2's API, on its fake, which throttles as AWS does.

    python -m tests.soak.launches --seed N

Half of the jobs are stopped while the other half's machines are still being launched. Each slot gets one machine, no
termination waits for launches, no user sees an error, nothing is left.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from shoestring import Client
from shoestring.fake_ec2 import FakeEc2
from shoestring.up import LocalService, ServiceOptions

from tests.e2e.service import SMALL_JOB, machine_processes, until
from tests.servers import free_port

SEEDS = 1
MACHINES = 20
RATES = {
    "RunInstances": {"size": 5, "per_s": 2},
    "TerminateInstances": {"size": 100, "per_s": 5},
    "DescribeInstances": {"size": 50, "per_s": 10},
}
"""docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html"""
MAX_WAIT_S = 30.0
JOB: dict[str, Any] = SMALL_JOB | {
    "params": {"epochs": 4_000, "width": 8, "sync_batch_norm": False},
    "resources": {"provider": "ec2", "gpu": "any", "nodes": 1, "spot": "only"},
    "limits": {"cost": "4"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    print(f"seed {parser.parse_args().seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="shoestring-launches-") as folder:
        data = Path(folder) / "data"
        options = ServiceOptions(data, port=free_port(), budget="100", slots=MACHINES, fake_ec2=True)
        service = LocalService(options, report=lambda _: None)
        try:
            connection = service.start()
            with Client(connection.url, connection.key) as client:
                figures = storm(client, FakeEc2.of(data))
        finally:
            service.stop()
        assert not machine_processes(data), "processes of machines are left"
    print(json.dumps(figures))
    return 0


def storm(client: Client, ec2: FakeEc2) -> dict[str, float]:
    with httpx.Client(base_url=ec2.url, headers={"Authorization": f"Bearer {ec2.access_key_id}"}) as fake:
        fake.post("/_fake/limits", json=RATES).raise_for_status()
        begun_at = time.monotonic()
        jobs = [client.submit(JOB).id for _ in range(MACHINES)]
        until(lambda: len(tokens(fake)) >= MACHINES // 2, "half of the machines to be launched", 120)
        early = [job for job in jobs if client.attempts(job).attempts][: MACHINES // 2]
        waits = stop_all(client, early)
        rest_of_them = [job for job in jobs if job not in early]
        until(lambda: len(tokens(fake)) >= MACHINES, "all machines to be launched", 180)
        launched_s = time.monotonic() - begun_at
        waits += stop_all(client, rest_of_them)
        until(lambda: not any(ec2.left().values()), "everything to end", 120)
        assert len(tokens(fake)) == MACHINES, f"{len(tokens(fake))} machines for {MACHINES} slots"
    for job in jobs:
        found = client.job(job)
        assert found.status == "stopped", f"job {job}: {found.status}, {found.reason}"
    assert max(waits) <= MAX_WAIT_S, f"a machine ended {max(waits):.0f} s after its job was stopped"
    return {"machines": MACHINES, "launched_s": round(launched_s, 1), "longest_wait_s": round(max(waits), 1)}


def tokens(fake: httpx.Client) -> set[str]:
    """Of all launches so far: one a machine."""
    calls = fake.get("/_fake/calls", timeout=30).raise_for_status().json()
    return {call["parameters"]["ClientToken"] for call in calls if call["action"] == "RunInstances"}


def stop_all(client: Client, jobs: list[Any]) -> list[float]:
    """Seconds from the stop of each to the end of its machines."""
    asked_at = {}
    for job in jobs:
        asked_at[job] = time.monotonic()
        client.stop(job)
    waits: dict[Any, float] = {}

    def look() -> bool:
        for job in asked_at.keys() - waits.keys():
            if client.job(job).ended_at is not None:
                waits[job] = time.monotonic() - asked_at[job]
        return len(waits) == len(asked_at)

    until(look, "stopped jobs to end", 180, every_s=0.5)
    return list(waits.values())


if __name__ == "__main__":
    sys.exit(main())
