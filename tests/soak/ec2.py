# SPDX-License-Identifier: Apache-2.0
"""The main job on machines of a fake EC2: `shoestring demo --provider ec2`, judged by what EC2's API says afterwards.

    python -m tests.soak.ec2 --seed N

Every call is boto3's; the machines' user data is executed; the notice stands in their metadata. `make test` has each
part: `tests/worker/fake_ec2/test_machines.py` up to a training agent, `tests/worker/providers/ec2` the user data.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import boto3
from shoestring import Client
from shoestring_trainer.machinehost.journal import read_machine

from tests import servers
from tests.e2e.service import environment, machine_processes
from tests.trainer.machinehost.own_networks import STATUS

SEEDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    seed = parser.parse_args().seed
    folder = Path(tempfile.mkdtemp(prefix="shoestring-ec2-"))
    print(f"seed {seed}, in {folder}", flush=True)
    data = folder / "demo"
    command = [sys.executable, "-m", "shoestring", "demo", "--provider", "ec2", "--json", "--seed", str(seed)]
    demo = subprocess.Popen(
        [*command, "--data", str(data)], env=environment(data, {}), stdout=subprocess.PIPE, text=True
    )
    try:
        assert demo.stdout is not None
        summary = json.loads(demo.stdout.readline())
        require_resumed_elsewhere(summary)
        require_told(summary, data)
        require_nothing_left(data)
        require_networks(data)
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(servers.PATIENCE_S)
    assert demo.returncode == 0
    assert not machine_processes(data), "processes of machines are left"
    shutil.rmtree(folder)  # a broken run's is left to look at
    print(json.dumps(summary))
    return 0


def require_resumed_elsewhere(summary: dict[str, Any]) -> None:
    assert summary["status"] == "succeeded", summary
    assert summary["accuracy"] >= summary["target"], summary
    assert (summary["rolled_back_steps"], summary["world_size"]) == (0, 2), summary
    assert summary["provider"] == "ec2", summary
    assert len(set(summary["zones"])) >= 2, f"not resumed in another zone: {summary}"
    assert summary["left"] == {"instances": 0, "volumes": 0, "spot_requests": 0}, summary


def require_told(summary: dict[str, Any], data: Path) -> None:
    """The page's events say how each machine booted, and that one got a notice."""
    with Client(summary["url"], (data / "admin.key").read_text().strip()) as client:
        events, cursor = [], None
        while (page := client.events(summary["job_id"], cursor=cursor)).events:
            events += page.events
            cursor = page.next_cursor
            if cursor is None:
                break
    told = [(event.data.machine, event.data.event) for event in events if event.kind == "agent"]
    machines = {machine for machine, _ in told}
    assert all(told.count((machine, "boot")) >= 3 for machine in machines), told
    assert [event for _, event in told].count("preemption_notice") == 1, told


def require_nothing_left(data: Path) -> None:
    """By EC2's own API in all zones of the region: all instances have terminated, no volume and no request is left."""
    settings = json.loads((data / "fake-ec2.json").read_text())
    for region in settings["regions"]:
        ec2 = boto3.client(
            "ec2", region_name=region, endpoint_url=settings["endpoint_url"],
            aws_access_key_id=settings["access_key_id"], aws_secret_access_key="none",
        )  # fmt: skip
        instances = [one for each in ec2.describe_instances()["Reservations"] for one in each["Instances"]]
        assert len(instances) >= 4
        assert {one["State"]["Name"] for one in instances} == {"terminated"}, instances
        assert len({one["ClientToken"] for one in instances}) == len(instances), "a token launched twice"
        assert ec2.describe_volumes()["Volumes"] == []
        states = {one["State"] for one in ec2.describe_spot_instance_requests()["SpotInstanceRequests"]}
        assert states == {"closed"}, states


def require_networks(data: Path) -> None:
    """Each instance had an address of its own, where that can be: its gang met over these."""
    machines = [read_machine(folder) for folder in (data / "cloud" / "machines").iterdir()]
    if STATUS.problem:
        print(f"on loopback: {STATUS.refusal()}", flush=True)
    else:
        assert len({machine.address for machine in machines} - {"127.0.0.1"}) == len(machines) >= 4


if __name__ == "__main__":
    sys.exit(main())
