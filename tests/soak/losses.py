# SPDX-License-Identifier: Apache-2.0
"""Lost machines of a training job, in every way in which they are lost: what that costs in steps and in seconds.

    python -m tests.soak.losses --seed N

The same job on the local provider and, by EC2's API, on its fake, whose image has the wheels: a gang of two that loses
a machine, or both, again and again. The seed draws order, moments and victims. Judged by what the ranks wrote: with a
notice no step is trained again, without one at most the checkpoint interval's. Over all seeds the median time until it
trains again is at most MAX_RATIO times as long on EC2.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring import Client
from shoestring.fake_ec2 import FakeEc2
from shoestring.up import LocalService, ServiceOptions
from shoestring_core.machine_network import COMPUTER
from shoestring_worker.machinehost_client import MachineHostClient

from tests import servers
from tests.e2e import service, witness
from tests.e2e.service import until

SEEDS = 3
PROVIDERS = ("local", "ec2")
NOTICE_S = 20.0
EARLIER_S = 3.0
"""How long before its notice an interruption is said to be likely."""
FALSE_NOTICE_S = 3_600.0
INTERVAL_S = 3.0
"""Of checkpoints."""
MAX_RATIO = 1.5
JOB: dict[str, Any] = service.SMALL_JOB | {
    "params": {"epochs": 5_000, "width": 8, "sync_batch_norm": False},
    "checkpoint": {"every": f"{INTERVAL_S:.0f}s"},
    "limits": {"cost": "40"},
    "retry": {"max": 1_000},
}


@dataclass(frozen=True)
class Loss:
    """seconds  from its begin to the next step that is trained
    steps    how many were trained before it and have to be trained again
    lost_s   how long that was trained
    """

    seconds: float
    steps: int
    lost_s: float


class Trial:
    """One job on one provider, whose machines are lost one after another."""

    def __init__(self, data: Path, client: Client, provider: str, draw: random.Random) -> None:
        self.data, self.client, self.draw = data, client, draw
        self.host = MachineHostClient(data / "cloud" / "machinehost.json")
        resources = JOB["resources"] | {"provider": provider, "spot": "only"}
        if provider == "ec2":
            resources["gpu"] = "any"
        params = JOB["params"] | {"seed": draw.randrange(1_000)}
        self.job = client.submit(JOB | {"resources": resources, "params": params})

    def lose(self, loss: Callable[[Trial, list[str]], float]) -> Loss:
        """Raises AssertionError if the job doesn't train again."""
        trained_s = (2.5 + self.draw.random()) * INTERVAL_S
        before, _ = until(lambda: self.newest(after=0, trained_s=trained_s), "the job to train", every_s=0.2)
        # A machine with a notice may still live, beside its successor: EC2 bills nothing for it once it interrupts it.
        machines = [one["id"] for one in self.machines() if one["state"] == "running" and one["preempt_at"] is None]
        assert len(machines) == JOB["resources"]["nodes"], machines
        self.draw.shuffle(machines)
        begun_at = loss(self, machines)
        after, first_at = until(lambda: self.newest(after=before), "the job to train again", every_s=0.1)
        steps = dict(witness.trained(self.data))
        last, resumed_after = max(steps[before]), min(steps[after]) - 1
        at = {step: when for step, (when, _) in steps[before].items()}
        lost_s = at[last] - at[resumed_after] if resumed_after in at else float("inf")
        return Loss(round(first_at - begun_at, 3), last - resumed_after, round(lost_s, 3))

    def newest(self, after: int, trained_s: float = 0.0) -> tuple[int, float] | None:
        """The newest generation that trains, and when it began to, if it has done so for `trained_s`."""
        files = (self.data / "cloud" / "machines").glob("*/gen/*/metrics.jsonl")
        for number, file in sorted(((int(file.parent.name), file) for file in files), reverse=True):
            first = _first_step_at(file)
            if first is not None:
                return (number, first) if number > after and time.time() - first >= trained_s else None
        return None

    def machines(self) -> list[dict[str, Any]]:
        machines: list[dict[str, Any]] = self.host.call("GET", "/machines").json()["machines"]
        return machines

    def folder(self, machine: str) -> Path:
        return self.data / "cloud" / "machines" / machine

    def preempt(self, machine: str, notice_s: float) -> None:
        reply = self.host.call("POST", f"/machines/{machine}/preempt", {"notice_s": notice_s})
        reply.raise_for_status()

    def end(self) -> None:
        self.client.stop(self.job.id)
        until(lambda: self.client.job(self.job.id).settled_at, "the job's end", every_s=0.5)
        assert {one["state"] for one in self.machines()} == {"ended"}


def _first_step_at(file: Path) -> float | None:
    with file.open() as lines:
        for line in lines:
            if line.endswith("\n") and "train/loss" in line:
                return float(json.loads(line)["t"])
    return None


def with_notice(trial: Trial, machines: list[str]) -> float:
    begun_at = time.time()
    trial.preempt(machines[0], NOTICE_S)
    return begun_at


def with_early_notice(trial: Trial, machines: list[str]) -> float:
    trial.host.call("POST", f"/machines/{machines[0]}/rebalance").raise_for_status()
    time.sleep(EARLIER_S)
    return with_notice(trial, machines)


def with_false_notice(trial: Trial, machines: list[str]) -> float:
    """The machine would go on after it."""
    begun_at = time.time()
    trial.preempt(machines[0], FALSE_NOTICE_S)
    return begun_at


def without_notice(trial: Trial, machines: list[str]) -> float:
    begun_at = time.time()
    trial.preempt(machines[0], 0)
    return begun_at


def while_a_checkpoint_is_written(trial: Trial, machines: list[str]) -> float:
    """All processes of the machine that writes it are killed."""
    marks = {one: f"SHOESTRING_MACHINE_DIR={trial.folder(one)}".encode() for one in machines}
    processes = {one: service.carrying(mark) for one, mark in marks.items()}

    def writing() -> str | None:  # once the service has it, the agent removes it from there
        return next((one for one in machines if any(trial.folder(one).glob("gen/*/ckpt/step-*"))), None)

    until(lambda: not writing(), "the last checkpoint to be stored", every_s=0.01)
    writer = until(writing, "a checkpoint to be written", every_s=0.002)
    begun_at = time.time()
    for pid in processes[writer]:
        os.kill(pid, signal.SIGKILL)
    return begun_at


def of_all_machines(trial: Trial, machines: list[str]) -> float:
    begun_at = time.time()
    for machine in machines:
        trial.preempt(machine, 0)
    return begun_at


LOSSES: dict[str, Callable[[Trial, list[str]], float]] = {
    "notice": with_notice,
    "early notice": with_early_notice,
    "notice that never comes true": with_false_notice,
    "no notice": without_notice,
    "while a checkpoint is written": while_a_checkpoint_is_written,
    "all machines at once": of_all_machines,
}
TOLD = {"notice", "early notice", "notice that never comes true"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    seed = parser.parse_args().seed
    folder = Path(tempfile.mkdtemp(prefix="shoestring-losses-"))
    print(f"seed {seed}, in {folder}", flush=True)
    os.environ |= service.environment(folder / "user", {})
    providers = PROVIDERS if seed % 2 else PROVIDERS[::-1]
    losses = {provider: try_all(folder / provider, provider, seed) for provider in providers}
    for of_provider in losses.values():
        for name, loss in of_provider.items():
            assert loss.steps == 0 if name in TOLD else loss.lost_s <= INTERVAL_S, (name, loss)
    shutil.rmtree(folder)  # a broken run's is left to look at
    told = {provider: {name: asdict(loss) for name, loss in each.items()} for provider, each in losses.items()}
    print(json.dumps({"seed": seed, "load": round(os.getloadavg()[0], 1)} | told))
    return 0


def try_all(data: Path, provider: str, seed: int) -> dict[str, Loss]:
    draw, losses = random.Random(seed), {}
    with serving(data, provider) as client:
        trial = Trial(data, client, provider, draw)
        for name in draw.sample(list(LOSSES), len(LOSSES)):
            losses[name] = trial.lose(LOSSES[name])
            print(f"{provider}: {name}: {losses[name]}", flush=True)
        trial.end()
        if provider == "ec2":
            until(lambda: not any(FakeEc2.of(data).left().values()), "EC2 to have nothing left", every_s=0.5)
    assert not service.machine_processes(data), "processes of machines are left"
    return losses


@contextmanager
def serving(data: Path, provider: str) -> Iterator[Client]:
    is_ec2 = provider == "ec2"
    host = COMPUTER if is_ec2 else "127.0.0.1"  # where machines with networks of their own reach it
    options = ServiceOptions(data, host, servers.free_port(), budget="100", slots=4, fake_ec2=is_ec2)
    running = LocalService(options, report=lambda _: None)
    try:
        connection = running.start()
        with Client(connection.url, connection.key) as client:
            yield client
    finally:
        running.stop()


def summarise(_case: str, last_lines: Sequence[str]) -> tuple[bool, list[str]]:
    """A line for each kind of loss on each provider, and the ratio of the medians, for RESULTS.md."""
    runs = [json.loads(line) for line in last_lines]
    lines = [
        describe(name, provider, [Loss(**run[provider][name]) for run in runs])
        for name in LOSSES
        for provider in PROVIDERS
    ]
    seconds = {one: [loss["seconds"] for run in runs for loss in run[one].values()] for one in PROVIDERS}
    local, ec2 = (statistics.median(seconds[provider]) for provider in PROVIDERS)
    passed = ec2 <= MAX_RATIO * local
    loads = ", ".join(str(run["load"]) for run in runs)
    ratio = (
        f"training again after any loss, p50 (n = {len(seconds['ec2'])}): ec2 {ec2:.2f} s, local {local:.2f} s: "
        f"{ec2 / local:.2f} times (bound <= {MAX_RATIO}: {'holds' if passed else 'MISSED'}); load averages {loads}"
    )
    return passed, [*lines, ratio]


def describe(name: str, provider: str, losses: Sequence[Loss]) -> str:
    seconds, steps = [loss.seconds for loss in losses], max(loss.steps for loss in losses)
    bound = "0 steps" if name in TOLD else f"<= {INTERVAL_S:g} s of training"
    return (
        f"{name}, {provider}: training again after p50 {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s; "
        f"trained again at most {steps} steps, {max(loss.lost_s for loss in losses):.2f} s "
        f"(bound {bound}: holds)"
    )


if __name__ == "__main__":
    sys.exit(main())
