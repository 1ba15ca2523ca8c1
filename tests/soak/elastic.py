# SPDX-License-Identifier: Apache-2.0
"""A gang of four loses a machine in the middle of an epoch, trains on with three, and grows back to four.

    python -m tests.soak.elastic --case CASE --seed N

A case is how the machine is lost: its agent is killed (`killed`), the one with rank 0 too (`first-killed`), the machine
host ends it at once (`ended`), or the provider takes it back with a notice (`preempted`). Judged by the ranks' files,
the machine host's journals and the process table: how long until the next step, each sample of each epoch met once,
one generation at a time, one machine in a slot, exact bills, and an accuracy like that of one process that nobody
disturbed. Last, four ranks started by hand from the checkpoint at which the gang was whole again must leave the very
bits that the job left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from shoestring_core import rest
from shoestring_trainer.training.cli.sample_audit import audit_samples
from shoestring_trainer.training.results.sample_log import read_sample_log

from tests import servers
from tests.e2e import witness
from tests.e2e.service import PATIENT, Service, carrying
from tests.trainer.training.gangs import finished

CASES = ("killed", "first-killed", "ended", "preempted")
NODES, EPOCHS = 4, 80
STATE = ("model.safetensors", "optimizer.safetensors")
PATIENCE_S = 600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shoestring-elastic-"))
    print(f"case {options.case}, seed {options.seed}, in {folder}", flush=True)
    print(prove(options.case, options.seed, folder, options.epochs))
    shutil.rmtree(folder)  # a broken run's is left to look at
    return 0


def prove(case: str, seed: int, folder: Path, epochs: int = EPOCHS) -> str:
    """Run one job through loss and return to its end, and judge. Returns the figures in one line."""
    generations, summary, left = live_through(case, seed, folder, epochs)
    tasks = [json.loads((one.folder / "task.json").read_text()) for one in generations]
    assert left is not None
    ours, theirs = float(left["val/acc"]), accuracy_of_one_undisturbed(folder / "alone", tasks[0])
    assert abs(ours - theirs) < 0.02, f"accuracy {ours}, undisturbed {theirs}"
    by_hand = finished(folder / "by-hand", nodes=NODES, **tasks[2]).state_hashes()
    for name in STATE:
        assert by_hand[name] == left[name], f"the gang that was whole again left another {name}"
    return f"{summary}; accuracy {ours:.4f}, undisturbed {theirs:.4f}; resumed by four, the same bits"


def live_through(
    case: str,
    seed: int,
    folder: Path,
    epochs: int,
    *,
    nodes: int = NODES,
    batch_size: int = 32,
    step_s: float = 0,
    look_every_s: float = 0.1,
    to_the_end: bool = True,
) -> tuple[list[Ran], str, dict[str, Any] | None]:
    """Lose a machine and grow back; at the end, the state's hashes and the accuracy. Else stop once it has grown.

    Raises AssertionError.
    """
    draw = random.Random(f"{case}:{seed}")
    url = f"sqlite:///{folder / 'store.db'}"
    service = Service(
        folder / "service", servers.free_port(), options=("--budget", "9.00", "--slots", str(nodes)),
        environment=PATIENT | {"SHOESTRING_DATABASE_URL": url},
    )  # fmt: skip
    left: dict[str, Any] | None = None
    try:
        service.start()
        with witness.Watch(service.data, look_every_s) as looking:
            submitted = service.client.submit(spec(seed, epochs, nodes, batch_size, hooks(service.hooks, step_s)))
            step = draw.randrange(100, 130) * 32 // batch_size  # in the third epoch
            lost_at = lose(service, str(submitted.id), case, step, draw, nodes)
            if not to_the_end:
                wait_for_steps_of_all(service, str(submitted.id))
                service.client.stop(submitted.id)
            job = service.settled(submitted.id, within_s=PATIENCE_S)
        assert not looking.broken, looking.broken
        if to_the_end:
            left = {"val/acc": job.latest["val/acc"]}
            left |= {name: hashed(service, job, name, folder) for name in STATE}
    finally:
        service.stop()
    assert job.end_reason == ("succeeded" if to_the_end else "user_stop"), job.status_text
    witness.require_none_alive(service.data)
    witness.require_one_machine_a_slot(service.data)
    witness.require_one_generation_at_a_time(service.data)
    witness.require_exact_bills(service.data, url)
    generations = gangs_of(service.data)
    assert [one.world_size for one in generations] == [nodes, nodes - 1, nodes], generations
    first, second = (one.first_step_at - lost_at for one in generations[1:])
    samples = require_each_sample_once(service.data, epochs if to_the_end else None)
    return (
        generations,
        f"{case}: stepped on {first:.1f} s after the loss, with all after {second:.1f} s; {samples}",
        left,
    )


def wait_for_steps_of_all(service: Service, job: str) -> None:
    def grown_back(found: rest.Job) -> bool:
        assert found.state != "ended", "the job was over before it had grown back"
        newest = service.client.attempts(job).attempts[-1].generations[-1] if found.generation >= 3 else None
        return newest is not None and (newest.last_step or 0) > newest.start_step + 5

    service.wait(job, grown_back, PATIENCE_S)


def spec(seed: int, epochs: int, nodes: int, batch_size: int, hooks_file: Path) -> dict[str, Any]:
    return {
        "recipe": "digits/quickstart",
        "params": {
            "epochs": epochs, "batch_size": batch_size, "width": 8, "eval_every_epochs": 5, "precision": "fp32",
            "seed": seed, "hooks_file": str(hooks_file),
        },
        "resources": {"nodes": f"{nodes // 2}..{nodes}", "spot": "only"},
        "checkpoint": {"every": "2s"},
        "limits": {"cost": "5.00"},
    }  # fmt: skip


def hooks(folder: Path, step_s: float) -> Path:
    """Hooks that make each step last so much longer, so that waiting for machines costs little CPU."""
    file = folder / "hooks.py"
    file.write_text(f"import time\ndef on_batch(context, images, labels):\n    time.sleep({step_s})\n")
    return file


def lose(service: Service, job: str, case: str, step: int, draw: random.Random, nodes: int) -> float:
    """Take a machine away after `step`; returns when (unix seconds)."""
    trained = service.trained(job, step)
    slot = 0 if case == "first-killed" else draw.randrange(1, nodes)
    attempt = service.client.attempts(trained.id).attempts[-1]
    machine = next(one for one in attempt.machines if one.slot == slot)
    folder = next(
        path.parent for path in (service.data / "cloud" / "machines").glob("*/journal.jsonl")
        if str(machine.id) in path.read_text().split("\n", 1)[0]
    )  # fmt: skip
    at = time.time()
    print(f"step {trained.progress.step}: slot {slot} is lost", flush=True)
    if case == "preempted":
        service.client.preempt(machine.id, notice_s=30.0)
    elif case == "ended":
        host = json.loads((service.data / "cloud" / "machinehost.json").read_text())
        authorised = {"Authorization": f"Bearer {host['key']}"}
        answer = httpx.delete(f"{host['url']}/machines/{folder.name}?grace_s=0", headers=authorised, timeout=10)
        assert answer.status_code == 202, answer.text
    else:
        mark = f"SHOESTRING_MACHINE_DIR={folder}".encode()
        (agent,) = [pid for pid in carrying(mark) if witness.role(pid) == "agent"]
        os.kill(agent, signal.SIGKILL)
    return at


@dataclass(frozen=True)
class Ran:
    """A generation that stepped, by its rank 0's files."""

    number: int
    world_size: int
    first_step_at: float
    folder: Path


def gangs_of(data: Path) -> list[Ran]:
    found = []
    for number, steps in witness.trained(data):
        (file,) = (data / "cloud" / "machines").glob(f"*/gen/{number}/metrics.jsonl")
        events = [json.loads(line) for line in (file.parent / "events.jsonl").read_text().splitlines()]
        world_size = next(event["world_size"] for event in events if event["event"] == "started")
        found.append(Ran(number, world_size, min(at for at, _ in steps.values()), file.parent))
    return found


def require_each_sample_once(data: Path, epochs: int | None) -> str:
    audit = audit_samples(
        read_sample_log(path) for path in (data / "cloud" / "machines").glob("*/gen/*/samples-rank*.bin")
    )
    assert audit.passed, (audit.gaps, [(epoch.number, epoch.problems) for epoch in audit.epochs])
    whole = [epoch for epoch in audit.epochs if not epoch.problems]
    assert epochs is None or len(whole) == epochs
    lost = sum(one.rolled_back for one in audit.generations)
    return f"each of {len(whole)} epochs had its {whole[0].expected} samples once, {lost} steps were done twice"


def accuracy_of_one_undisturbed(folder: Path, task: dict[str, Any]) -> float:
    run = finished(folder, **(task | {"resume": None}))
    return float(run.events("checkpoint")[-1]["result"]["val/acc"])


def hashed(service: Service, job: rest.Job, name: str, folder: Path) -> str:
    file = next(one for one in service.client.artifacts(job.id).artifacts if one.name == name)
    service.client.download(file, folder / name)
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
