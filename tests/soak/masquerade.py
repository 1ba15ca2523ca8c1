# SPDX-License-Identifier: Apache-2.0
"""A laptop behind a router that masquerades uses a service which `aws up` started, and goes away while its job runs.

    python -m tests.soak.masquerade --seed N [--gone 600]

Against the fake, as root: the service and the two machines of the job's gang have networks of their own and meet over
them; the laptop is a network namespace behind another one. While it is away, for so many seconds, its router's link is
down, and what the router knew about connections is lost. Nothing is left afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from shoestring_core.machine_network import COMPUTER
from shoestring_trainer.machinehost import internet
from shoestring_trainer.machinehost.namespaces import inside, make_namespace, run_inside
from shoestring_trainer.machinehost.network import reach_computer

from tests import servers
from tests.e2e.service import environment, machine_processes
from tests.soak.account import FROM_IMAGE, Terminal, end_of
from tests.trainer.machinehost.own_networks import STATUS, WAIT, namespaces_in_use
from tests.worker.providers.fake_aws import IMAGE, FakeAws

SEEDS = 1
GONE_S = 30.0
OUTSIDE, WAN, LAN, LAPTOP = "198.19.255.1", "198.19.255.2", "192.168.7.1", "192.168.7.2"
JOB = (
    "digits/quickstart", "epochs=10000", "width=8", "sync_batch_norm=false", "limits.cost=1", "resources.provider=ec2",
    "resources.nodes=2",
)  # fmt: skip
"""Longer than anybody is away: it is stopped."""


class Laptop(Terminal):
    """Its commands run in a namespace that reaches the outside through its router alone; AWS through a relay."""

    def __init__(self, folder: Path, aws: FakeAws, bridge: int) -> None:
        super().__init__(folder, aws)
        self.router, self.network = make_namespace(), make_namespace()
        mine = f"/proc/{os.getpid()}/fd"
        run_inside(bridge, "ip", "-batch", "-", text=f"""
            link add outside type veth peer name wan netns {mine}/{self.router}
            addr add {OUTSIDE}/30 dev outside
            link set outside up
        """)  # fmt: skip
        run_inside(self.router, "ip", "-batch", "-", text=f"""addr add {WAN}/30 dev wan
            link add lan type veth peer name eth0 netns {mine}/{self.network}
            addr add {LAN}/24 dev lan
            link set lan up
        """)  # fmt: skip
        run_inside(self.router, "sh", "-e", text="echo 1 > /proc/sys/net/ipv4/ip_forward")
        run_inside(self.router, "nft", "-f", "-", text="""table ip router {
            chain leaving { type nat hook postrouting priority 100; oifname "wan" masquerade; }
            chain forward {
              type filter hook forward priority 0; policy drop;
              iifname "lan" accept
              ct state established,related accept
            }
          }
        """)  # fmt: skip
        run_inside(self.network, "ip", "-batch", "-", text=f"""link set lo up
            addr add {LAPTOP}/24 dev eth0
            link set eth0 up
            route add default via {LAN}
        """)  # fmt: skip
        self.come_back()
        with inside(self.network):
            relay = internet.listen()
        internet.start_relay(relay)
        reach_computer(self.network, relay.getsockname()[1])

    def run(self, *arguments: str) -> str:
        with inside(self.network):
            return super().run(*arguments)

    def go_away(self) -> None:
        run_inside(self.router, "ip", "link", "set", "wan", "down", text="")

    def come_back(self) -> None:
        up = f"link set wan up\nroute replace default via {OUTSIDE}\n"
        run_inside(self.router, "ip", "-batch", "-", text=up)


class Elsewhere(Terminal):
    """Another computer of the same person: an instance, from where the job is looked at meanwhile."""

    def __init__(self, folder: Path, aws: FakeAws, machine: dict[str, Any], laptop: Laptop) -> None:
        super().__init__(folder, aws)
        self.environment = laptop.environment
        self._agent = machine["agent_pid"]

    def run(self, *arguments: str) -> str:
        with open(f"/proc/{self._agent}/ns/net") as network, inside(network.fileno()):
            return super().run(*arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--gone", type=float, default=GONE_S, help="seconds")
    options = parser.parse_args()
    if STATUS.problem:
        print(f"skipped: {STATUS.refusal()}")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="shoestring-masquerade-"))
    print(f"seed {options.seed}, in {folder}", flush=True)
    with fake(folder) as (aws, cloud):
        summary, descriptors = use(folder, aws, cloud, options.seed, options.gone)
    assert not machine_processes(folder), "processes of machines are left"
    ours = {str(Path(f"/proc/self/fd/{each}").readlink()) for each in descriptors}
    servers.until(lambda: not namespaces_in_use() & ours)
    shutil.rmtree(folder)  # a broken run's is left to look at
    print(json.dumps(summary))
    return 0


@contextmanager
def fake(folder: Path, slots: int = 6, network: str = "own") -> Iterator[tuple[FakeAws, Path]]:
    """The fake, with its machine host in a folder."""
    cloud = folder / "cloud"
    host = [sys.executable, "-m", "shoestring_trainer.machinehost", "--dir", str(cloud), "--slots", str(slots)]
    machines = subprocess.Popen([*host, "--stop-machines-on-exit"], env=environment(folder / "user", {}))
    aws = None
    try:
        servers.until((cloud / "machinehost.json").exists)
        options = ("--host", COMPUTER, "--network", network, "--machinehost", str(cloud / "machinehost.json"))
        aws = FakeAws.start(*options, settings=folder / "fake.json")
        yield aws, cloud
    finally:
        if aws is not None:
            aws.stop()  # first: a service that still runs may launch nothing any more
        machines.terminate()
        machines.wait(2 * servers.PATIENCE_S)


def use(folder: Path, aws: FakeAws, cloud: Path, seed: int, gone_s: float) -> tuple[dict[str, Any], list[int]]:
    """Returns figures, and descriptors of the network namespaces that there were: their names are given to no other."""
    os.environ |= {"AWS_ACCESS_KEY_ID": aws.access_key, "AWS_SECRET_ACCESS_KEY": "none"}
    bystander = launch_bystander(aws, cloud)
    with open(f"/proc/{bystander['init_pid']}/fd/{bystander['bridge']}") as bridge:
        laptop = Laptop(folder, aws, bridge.fileno())
        namespaces = [os.dup(bridge.fileno()), laptop.router, laptop.network]
    laptop.load(laptop.run("aws", "bootstrap", "--image", IMAGE))
    url = json.loads(laptop.run("aws", "up", *FROM_IMAGE, "--budget", "5", "--json"))["url"]
    assert url.startswith("https://198.1"), url
    job = str(json.loads(laptop.run("submit", *JOB, f"seed={seed}", "--json"))["id"])
    elsewhere = Elsewhere(folder, aws, bystander, laptop)
    servers.until(lambda: step_of(elsewhere, job) > 0, every_s=1)
    laptop.go_away()
    gone_at, left_at = time.monotonic(), step_of(elsewhere, job)
    time.sleep(gone_s)
    came_at = step_of(elsewhere, job)
    away_s = time.monotonic() - gone_at
    assert came_at > left_at, "the job goes on without its client"
    print(f"away for {away_s:.0f} s: steps {left_at} to {came_at}", flush=True)
    laptop.come_back()
    shown = json.loads(laptop.run("show", job, "--json"))
    assert len(shown["attempts"]) == 1, "nothing was started again"
    running = [machine for machine in machines_of(cloud) if machine["state"] == "running"]
    assert len({machine["address"] for machine in running}) == 4, "of the bystander, the service and the gang"
    namespaces += [os.open(f"/proc/{machine['agent_pid']}/ns/net", os.O_RDONLY) for machine in running]
    assert shown["job"]["progress"]["step"] >= came_at
    laptop.run("stop", job)
    servers.until(lambda: end_of(laptop, job) != "None", every_s=1)
    laptop.run("aws", "teardown", "--yes")
    aws.ec2().terminate_instances(InstanceIds=[bystander["token"]])
    return {"away_s": round(away_s, 1), "steps_meanwhile": came_at - left_at}, namespaces


def launch_bystander(aws: FakeAws, cloud: Path) -> dict[str, Any]:
    """An instance; its machine as the host lists it, with the descriptor that its init has of the bridge."""
    one = {"ImageId": IMAGE, "InstanceType": "t3.small", "MinCount": 1, "MaxCount": 1, "UserData": WAIT}
    token = aws.ec2().run_instances(ClientToken="bystander", **one)["Instances"][0]["InstanceId"]
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = [each for each in machines_of(cloud) if each["token"] == token and each["agent_pid"]]
        return bool(found)

    servers.until(look)
    lines = [json.loads(line) for line in Path(found[0]["journal"]).read_text().splitlines()]
    return found[0] | {"bridge": next(line["bridge"] for line in lines if line["event"] == "start")}


def machines_of(cloud: Path) -> list[dict[str, Any]]:
    host = json.loads((cloud / "machinehost.json").read_text())
    headers = {"Authorization": f"Bearer {host['key']}"}
    machines: list[dict[str, Any]] = httpx.get(f"{host['url']}/machines", headers=headers).json()["machines"]
    return machines


def step_of(terminal: Terminal, job: str) -> int:
    return int(json.loads(terminal.run("show", job, "--json"))["job"]["progress"]["step"])


if __name__ == "__main__":
    sys.exit(main())
