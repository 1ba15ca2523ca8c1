# SPDX-License-Identifier: Apache-2.0
"""Lost machines of a training job, in every way that they are lost: what it costs in steps, and in seconds.

The same job on the local provider and by EC2's API on its fake, in one run. `python -m bench losses [--rounds 3]`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring import Client
from shoestring.up import LocalService, ServiceOptions
from shoestring_core import rest
from shoestring_worker.machinehost_client import MachineHostClient

from tests.e2e import service
from tests.e2e.service import until
from tests.servers import free_port

PROVIDERS = ("local", "ec2")
ROUNDS = 3
NOTICE_S = 20.0
EARLIER_S = 3.0
"""How long before its notice an interruption is recommended to be expected."""
FALSE_NOTICE_S = 3_600.0
CHECKPOINT_EVERY_S = 2.0
MAX_RATIO = 1.5
JOB: dict[str, Any] = service.SMALL_JOB | {
    "params": {"epochs": 4_000, "width": 16, "sync_batch_norm": False},
    "checkpoint": {"every": f"{CHECKPOINT_EVERY_S:.0f}s"},
    "limits": {"cost": "40"},
}


@dataclass(frozen=True)
class Loss:
    """seconds  from its begin to the next step that is trained
    steps    how many were trained before it and have to be trained again
    step_s   how long one takes
    """

    seconds: float
    steps: int
    step_s: float


class Trial:
    """One job on one provider, whose machines are lost one after another."""

    def __init__(self, data: Path, client: Client, provider: str) -> None:
        self.data, self.client = data, client
        self.host = MachineHostClient(data / "cloud" / "machinehost.json")
        resources = JOB["resources"] | {"provider": provider, "spot": "only"}
        if provider == "ec2":
            resources["gpu"] = "any"
        self.job = client.submit(JOB | {"resources": resources})

    def lose(self, loss: Callable[[Trial, list[str]], float]) -> Loss:
        """Raises TimeoutError if the job doesn't train again."""
        before = self.generation_that_trains(after=(0, 0))
        begun_at = loss(self, self.machines())
        after = self.generation_that_trains(after=place(before))
        ended = next(one for one in self.generations() if place(one) == place(before))
        curve = next(iter(self.client.metrics(self.job.id, keys="train/loss").curves))
        assert after.first_step_at is not None
        points = itertools.pairwise(zip(curve.steps, curve.times, strict=True))
        step_s = statistics.median((later - time) / (last - step) for (step, time), (last, later) in points)
        return Loss(after.first_step_at.timestamp() - begun_at, ended.rolled_back_steps, step_s)

    def generation_that_trains(self, after: tuple[int, int]) -> rest.Generation:
        """The newest, once it has trained for two checkpoints: what came before it is then known."""

        def look() -> rest.Generation | None:
            newest = max(self.generations(), key=place, default=None)
            if newest is None or place(newest) <= after or newest.ended_at or newest.first_step_at is None:
                return None
            trained_s = time.time() - newest.first_step_at.timestamp()
            return newest if trained_s > 2.5 * CHECKPOINT_EVERY_S else None

        return until(look, "the job to train", 180, every_s=0.2)

    def generations(self) -> list[rest.Generation]:
        return [one for attempt in self.client.attempts(self.job.id).attempts for one in attempt.generations]

    def machines(self) -> list[str]:
        """The machine host's ids of the job's machines."""
        machines = self.host.call("GET", "/machines").json()["machines"]
        return [machine["id"] for machine in machines if machine["state"] == "running"]

    def preempt(self, machine: str, notice_s: float) -> None:
        reply = self.host.call("POST", f"/machines/{machine}/preempt", {"notice_s": notice_s, "force": True})
        reply.raise_for_status()

    def folder(self, machine: str) -> Path:
        return self.data / "cloud" / "machines" / machine


def place(generation: rest.Generation) -> tuple[int, int]:
    return generation.attempt, generation.number


def with_notice(trial: Trial, machines: list[str]) -> float:
    begun_at = time.time()
    trial.preempt(machines[-1], NOTICE_S)
    return begun_at


def with_early_notice(trial: Trial, machines: list[str]) -> float:
    trial.host.call("POST", f"/machines/{machines[-1]}/rebalance").raise_for_status()
    time.sleep(EARLIER_S)
    return with_notice(trial, machines)


def with_false_notice(trial: Trial, machines: list[str]) -> float:
    """The machine would go on after it."""
    begun_at = time.time()
    trial.preempt(machines[-1], FALSE_NOTICE_S)
    return begun_at


def without_notice(trial: Trial, machines: list[str]) -> float:
    begun_at = time.time()
    trial.preempt(machines[-1], 0)
    return begun_at


def while_a_checkpoint_is_written(trial: Trial, machines: list[str]) -> float:
    """All processes of the machine that writes one are killed."""
    processes = {
        machine: service.carrying(f"SHOESTRING_MACHINE_DIR={trial.folder(machine)}".encode()) for machine in machines
    }

    def writer() -> str | None:
        writing = (machine for machine in machines if any(trial.folder(machine).glob("gen/*/ckpt/*.tmp")))
        return next(writing, None)

    machine = until(writer, "a checkpoint to be written", 60, every_s=0)
    begun_at = time.time()
    for pid in processes[machine]:
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
MAX_LOST_S = {name: 0.0 if name in TOLD else CHECKPOINT_EVERY_S for name in LOSSES}


def main(options: Sequence[str] = ()) -> list[str]:
    parser = argparse.ArgumentParser(prog="python -m bench losses", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each is tried on each provider")
    rounds = parser.parse_args(options).rounds
    losses = {provider: try_all(provider, rounds) for provider in PROVIDERS}
    lines = [
        describe(name, losses[provider][name], provider, MAX_LOST_S[name]) for name in LOSSES for provider in PROVIDERS
    ]
    medians = {
        provider: statistics.median(one.seconds for each in losses[provider].values() for one in each)
        for provider in PROVIDERS
    }
    ratio = medians["ec2"] / medians["local"]
    verdict = "holds" if ratio <= MAX_RATIO else "MISSED"
    told = f"all, p50: ec2 {medians['ec2']:.2f} s, local {medians['local']:.2f} s: {ratio:.2f} times"
    return [*lines, f"{told} (bound {MAX_RATIO}: {verdict}; load {os.getloadavg()[0]:.1f})"]


def try_all(provider: str, rounds: int) -> dict[str, list[Loss]]:
    with tempfile.TemporaryDirectory(prefix="shoestring-losses-") as folder:
        data = Path(folder) / "data"
        options = ServiceOptions(data, port=free_port(), budget="100", slots=4, fake_ec2=provider == "ec2")
        running = LocalService(options, report=lambda _: None)
        try:
            connection = running.start()
            with Client(connection.url, connection.key) as client:
                trial = Trial(data, client, provider)
                tried: dict[str, list[Loss]] = {name: [] for name in LOSSES}
                for _ in range(rounds):
                    for name, loss in LOSSES.items():
                        tried[name].append(trial.lose(loss))
                        print(f"{provider}: {name}: {tried[name][-1]}", flush=True)
                client.stop(trial.job.id)
        finally:
            running.stop()
    return tried


def describe(name: str, losses: Sequence[Loss], provider: str, max_lost_s: float) -> str:
    seconds, most = [one.seconds for one in losses], max(losses, key=lambda one: one.steps * one.step_s)
    lost_s = most.steps * most.step_s
    verdict = "holds" if lost_s <= max_lost_s else "MISSED"
    return (
        f"{name}, {provider}: training again after p50 {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s; "
        f"at most {most.steps} steps lost, {lost_s:.2f} s of training "
        f"(n = {len(losses)}; bound {max_lost_s:g} s: {verdict})"
    )
