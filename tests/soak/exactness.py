# SPDX-License-Identifier: Apache-2.0
"""An interrupted job ends with the same bits as an uninterrupted one, over the whole path.

    python -m tests.soak.exactness --case CASE --seed N

Two jobs with one spec run on one service, with momentum, dropout, augmentation and (in fp16) the loss scaler on. One
is left alone. Of the other the provider takes a machine back, again and again, at steps that the seed draws, always
inside an epoch; each time it drains, uploads, queues, and resumes on fresh machines. In the end the parameters and
buffers, the optimizer and the rest of the state are downloaded from both, and their SHA-256 must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from shoestring import Client, watch
from shoestring_core import rest

from tests import servers
from tests.e2e import witness
from tests.e2e.service import Service

INTERRUPTIONS = 5
NOTICE_S = 60.0
"""Generous: the machines leave as soon as their checkpoint is stored."""

EPOCHS = 30
STATE = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Topology:
    nodes: int
    procs: int
    precision: str


CASES = {
    "one-process": Topology(nodes=1, procs=1, precision="fp16"),
    "two-processes": Topology(nodes=1, procs=2, precision="auto"),
    "two-machines": Topology(nodes=2, procs=1, precision="fp16"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shoestring-exactness-"))
    print(f"case {options.case}, seed {options.seed}, in {folder}", flush=True)
    prove(options.case, options.seed, folder)
    shutil.rmtree(folder)  # a broken run's is left to look at
    return 0


def prove(case: str, seed: int, folder: Path, interruptions: int = INTERRUPTIONS, epochs: int = EPOCHS) -> None:
    """Run both jobs and compare them. Raises AssertionError."""
    topology = CASES[case]
    slots = str(2 * topology.nodes)
    service = Service(folder / "service", servers.free_port(), options=("--budget", "9.00", "--slots", slots))
    service.start()
    try:
        client = service.client
        unbroken = client.submit(spec(topology, seed, "unbroken", epochs))
        broken = client.submit(spec(topology, seed, "broken", epochs))
        preemptions = interrupt(client, broken.id, interruptions, epochs, random.Random(f"{case}:{seed}"))
        for job in (unbroken, broken):
            require_whole_curve(client, service.settled(job.id, within_s=300))
        trained = [attempt for attempt in client.attempts(broken.id).attempts if attempt.trained]
        assert len(trained) == preemptions + 1
        left = {job.name: state(client, job.id, folder / job.name) for job in (unbroken, broken)}
        require_everything_on(folder / "broken", topology)
        assert left["unbroken"] == left["broken"]
    finally:
        service.stop()
    witness.require_none_alive(service.data)
    witness.require_one_machine_a_slot(service.data)
    taken = [life for life in witness.lives(service.data) if life.notice]
    assert len(taken) == preemptions
    assert {life.cause for life in taken} == {"preempted"}


def spec(topology: Topology, seed: int, name: str, epochs: int) -> dict[str, Any]:
    return {
        "name": name,
        "recipe": "digits/quickstart",
        "params": {
            "epochs": epochs, "batch_size": 16, "width": 12, "momentum": 0.9, "dropout": 0.2, "rotate": 15,
            "translate": 1, "eval_every_epochs": 4, "precision": topology.precision, "seed": seed,
        },
        "resources": {"nodes": topology.nodes, "procs": topology.procs, "spot": "only"},
        "limits": {"cost": "4.00"},
        "retry": {"max": 50},
    }  # fmt: skip


def interrupt(client: Client, job: UUID, times: int, epochs: int, draw: random.Random) -> int:
    """Have a machine of the job taken back at drawn steps, until it has resumed inside an epoch so many times.

    Returns how often one was taken: a resume that happens to begin where an epoch does is made up for.
    """
    starts: list[int] = []
    preemptions = generation = target = 0
    for found, _ in watch.follow(client, str(job)):
        total = found.progress.steps_total
        if found.state != "running" or found.generation < generation or not total:
            continue
        if found.generation > generation:
            generation = found.generation
            start = client.attempts(job).attempts[-1].generations[-1].start_step
            if inside_an_epoch(start, total / epochs):
                starts.append(start)
            if len(starts) == times:
                return preemptions
            target = start + draw.randrange(1, total // (2 * times))
        elif target and found.progress.step >= target:
            machine = draw.choice([one for one in client.attempts(job).attempts[-1].machines if one.state == "running"])
            client.preempt(machine.id, notice_s=NOTICE_S)
            preemptions += 1
            print(f"step {found.progress.step}: slot {machine.slot} is taken", flush=True)
            target = 0
    raise AssertionError(f"the job was over after {len(starts)} interruptions: {starts}")


def inside_an_epoch(step: int, per_epoch: float) -> bool:
    return 1 < step % per_epoch < per_epoch - 1


def require_whole_curve(client: Client, job: rest.Job) -> None:
    """It succeeded; each step is there once, and none was lost."""
    assert job.end_reason == "succeeded", job.status_text
    loss = next(curve for curve in client.metrics(job.id).curves if curve.name == "train/loss")
    assert job.progress.steps_total is not None
    assert loss.steps == list(range(1, job.progress.steps_total + 1))
    assert client.attempts(job.id).rolled_back_steps == 0


def state(client: Client, job: UUID, folder: Path) -> dict[str, str]:
    """SHA-256 of what the job's final checkpoint holds, as downloaded."""
    folder.mkdir()
    files = {file.name: file for file in client.artifacts(job).artifacts}
    for name in STATE:
        client.download(files[name], folder / name)
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in STATE}


def require_everything_on(folder: Path, topology: Topology) -> None:
    """The state really has what could go wrong: momentum, running statistics, and the loss scale in fp16."""
    facts = json.loads((folder / "state.json").read_text())
    assert facts["optimizer_state"] == ["momentum_buffer"]
    assert bool(facts["scaler"]) == (topology.precision == "fp16")
    assert facts["params"]["dropout"] > 0
    assert b"running_mean" in (folder / "model.safetensors").read_bytes()


if __name__ == "__main__":
    sys.exit(main())
