# SPDX-License-Identifier: Apache-2.0
"""20 machines launched and ended at once through boto3, on the fake EC2, which throttles at AWS's rates.

    python -m tests.soak.launches --seed N

The service rents them for 20 jobs. Ten jobs, drawn, are stopped while the machines of the others are being launched,
the others once these are. Each job gets one machine, no termination waits for the launches, no user is told of an
error, and nothing is left. The machines execute their user data, but in place of the agent they sleep: a machine whose
agent has registered powers itself off, and here the service has to terminate each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from shoestring import Client
from shoestring.up import LocalService, ServiceOptions
from shoestring_core.machine_network import COMPUTER

from tests.e2e.service import SMALL_JOB, machine_processes, until
from tests.servers import free_port
from tests.soak.masquerade import fake
from tests.worker.providers.fake_aws import REGION, FakeAws

SEEDS = 3
MACHINES = 20
MAX_WAIT_S = 30.0
RATES = {
    "RunInstances": {"size": 5, "per_s": 2},
    "TerminateInstances": {"size": 50, "per_s": 5},
    "DescribeInstances": {"size": 100, "per_s": 20},
}
"""docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html"""
JOB: dict[str, Any] = SMALL_JOB | {
    "resources": {"provider": "ec2", "gpu": "any", "regions": [REGION], "nodes": 1, "spot": "only"},
    "limits": {"cost": "1"},
}
IDLE_PYTHON = '#!/bin/sh\ncase "$*" in *agent) exec sleep 600;; esac\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    seed = parser.parse_args().seed
    folder = Path(tempfile.mkdtemp(prefix="shoestring-launches-"))
    print(f"seed {seed}, in {folder}", flush=True)
    with fake(folder, slots=MACHINES, network="auto") as (aws, _):
        aws.control("limits", **RATES)
        rent_from(aws, folder)
        options = ServiceOptions(folder / "service", COMPUTER, free_port(), budget=str(MACHINES))
        service = LocalService(options, report=print)
        try:
            connection = service.start()
            with Client(connection.url, connection.key) as client:
                figures = storm(client, aws, seed)
        finally:
            service.stop()
        assert not machine_processes(folder), "processes of machines are left"
        for log in ("worker", "api"):
            assert "Traceback" not in (folder / "service" / "logs" / f"{log}.log").read_text()
    shutil.rmtree(folder)  # a broken run's is left to look at
    print(json.dumps(figures))
    return 0


def summarise(_case: str, last_lines: list[str]) -> tuple[bool, list[str]]:
    runs = [json.loads(line) for line in last_lines]
    launched_s, wait_s = (max(run[figure] for run in runs) for figure in ("launched_s", "longest_wait_s"))
    return True, [
        f"{MACHINES} machines launched in {launched_s} s, ended {wait_s} s after the stop (bound <= 30), at most"
    ]


def rent_from(aws: FakeAws, folder: Path) -> None:
    """The settings of a service that rents its machines there."""
    python = folder / "python"
    python.write_text(IDLE_PYTHON)
    python.chmod(0o755)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": aws.access_key,
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_CONFIG_FILE": os.devnull,
        "SHOESTRING_PROVIDERS": "ec2",
        "SHOESTRING_EC2_ENDPOINT_URL": aws.url,
        "SHOESTRING_EC2_REGIONS": json.dumps(aws.written()["regions"]),
        "SHOESTRING_EC2_SIMULATED": "true",
        "SHOESTRING_EC2_PYTHON": str(python),
        "SHOESTRING_EC2_MAX_MACHINES": str(MACHINES),
    }


def storm(client: Client, aws: FakeAws, seed: int) -> dict[str, Any]:
    """Returns figures, in seconds."""
    began = time.monotonic()
    jobs = [client.submit(JOB).id for _ in range(MACHINES)]
    half = MACHINES // 2

    def launched() -> list[UUID] | None:
        found = [job for job in jobs if instance_of(client, job)]
        return found if len(found) >= half else None

    stopped_early = random.Random(seed).sample(until(launched, "half of the machines to be launched"), half)
    waits = stop(client, aws, stopped_early)
    until(lambda: len(tokens(aws)) == MACHINES, "all machines to be launched", every_s=0.5)
    launched_s = time.monotonic() - began
    waits += stop(client, aws, [job for job in jobs if job not in stopped_early])
    until(lambda: not any(aws.read("left").values()), "everything to end", every_s=0.5)
    assert len(tokens(aws)) == len(aws.instances(states=("terminated",))) == MACHINES
    for job in jobs:
        require_told_no_error(client, job)
    calls = {f"calls_{action}": len(aws.calls(action)) for action in RATES}
    return {"launched_s": round(launched_s, 1), "longest_wait_s": round(max(waits), 1)} | calls


def stop(client: Client, aws: FakeAws, jobs: list[UUID]) -> list[float]:
    """Stop jobs at once; seconds until EC2 got the termination of the machine of each, at most MAX_WAIT_S."""
    stopped_at, waits = {}, {}
    for job in jobs:
        client.stop(job)
        stopped_at[job] = time.monotonic()

    def look() -> bool:
        terminated = set(terminations(aws))
        for job in stopped_at.keys() - waits.keys():
            if instance_of(client, job) in terminated:
                waits[job] = time.monotonic() - stopped_at[job]
        return len(waits) == len(jobs)

    until(look, "the machines of stopped jobs to be terminated", MAX_WAIT_S, every_s=0.1)
    return list(waits.values())


def tokens(aws: FakeAws) -> set[str]:
    """Of the launches so far, those aside that were throttled."""
    instances = aws.instances(states=("pending", "running", "shutting-down", "terminated"))
    return {instance["ClientToken"] for instance in instances}


def terminations(aws: FakeAws) -> Iterable[str]:
    """The instances whose termination was asked for so far."""
    for call in aws.calls("TerminateInstances"):
        yield from (value for name, value in call["parameters"].items() if name.startswith("InstanceId."))


def instance_of(client: Client, job: UUID) -> str | None:
    """Of a job's one machine, once the service knows it."""
    machines = [machine for attempt in client.attempts(job).attempts for machine in attempt.machines]
    assert len(machines) <= 1
    return machines[0].provider_id if machines else None


def require_told_no_error(client: Client, job: UUID) -> None:
    found = until(lambda: shown if (shown := client.job(job)).settled_at else None, f"job {job} to be settled")
    assert (found.status, found.end_reason) == ("stopped", "user_stop"), (found.status, found.end_reason, found.reason)
    (attempt,) = client.attempts(job).attempts
    assert [machine.end_cause for machine in attempt.machines] == ["requested"]
    for event in client.events(job).events:
        assert event.kind in ("job", "wait", "machine", "cost", "agent"), event
        if event.kind == "agent":
            assert (event.data.event, (event.data.model_extra or {})["failure"]) == ("boot", None), event


if __name__ == "__main__":
    sys.exit(main())
