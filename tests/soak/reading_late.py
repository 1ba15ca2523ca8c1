# SPDX-License-Identifier: Apache-2.0
"""Results read late end runs as results read at once, whatever happens when, with one, two and four processes.

    python -m tests.soak.reading_late --case nan-4 --seed N

The seed draws the lag, the step and the rank. `nan`: the images of one rank are broken; all ranks must name the step,
and no checkpoint may hold what came of it. `overflow`, `stop` and `goal`: a late run, resumed if it was stopped, must
have the bits, points, samples and checkpoints of one that reads at once and is not interrupted.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load
from shoestring_trainer.training.checkpoint.files import read_checkpoint

from tests.trainer.training.gangs import Gang, gang
from tests.trainer.training.late_ranks import PARAMS, Late, points, samples_of

HAPPENINGS, WORLDS = ("nan", "overflow", "stop", "goal"), (1, 2, 4)
CASES = tuple(f"{happening}-{world}" for happening, world in product(HAPPENINGS, WORLDS))
SEEDS = 5
EPOCHS, STEPS = 4, 45


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shoestring-late-"))
    happening, _, world = options.case.partition("-")
    print(prove(happening, int(world), options.seed, folder))
    shutil.rmtree(folder)  # a broken run's is left to look at
    return 0


def prove(happening: str, world: int, seed: int, folder: Path) -> str:
    """Return what happened. Raises AssertionError."""
    draw = random.Random(f"{happening}:{world}:{seed}")
    at, every, late = (
        draw.randrange(2, STEPS - 10),
        draw.randrange(1, 9),
        Late(draw.randrange(1, 6), draw.randrange(world)),
    )
    task = {"params": PARAMS | {"epochs": EPOCHS}, "checkpoint": {"every_s": None, "every_steps": every}, "seed": seed}
    said = f"{happening} at step {at} of rank {late.rank} of {world}, read {late.lag} steps late"
    print(f"{said}, in {folder}", flush=True)
    if happening == "nan":
        broken = run(folder / "broken", world, replace(late, nan_at=at), code=1, **task)
        errors = [(word["error"]["kind"], word["error"]["since"]) for word in broken.exits()]
        assert errors == [("nan", at)] * world, errors
        assert [event["step"] for event in broken.events("checkpoint")] == list(range(every, at, every))
        return said

    task["precision"] = "fp16"
    if happening == "goal":
        task["goal"] = {"metric": "val/acc", "reach": draw.choice([0.3, 0.5, 0.6, 0.7])}
    if happening == "overflow":
        late = replace(late, overflow_at=at)
    at_once = run(folder / "at-once", world, replace(late, lag=0), **task)
    lates = [run(folder / "late", world, replace(late, stop_at=at if happening == "stop" else 0), **task)]
    if happening == "stop":
        ((outcome, step),) = {(word["outcome"], word["step"]) for word in lates[0].exits()}
        assert outcome == "drained"
        assert at <= step <= at + late.lag
        lates.append(run(folder / "resumed", world, late, resume=lates[0].checkpoint(), generation=2, **task))
    assert lates[-1].state_hashes() == at_once.state_hashes()
    assert points(*lates) == points(at_once)
    assert samples_of(*lates) == samples_of(at_once)
    assert [event["step"] for event in at_once.events("gradient_overflow")] == [at] * (happening == "overflow")
    return said


def run(folder: Path, world: int, late: Late, code: int = 0, **task: object) -> Gang:
    """Run a gang whose ranks all end with this exit code."""
    with gang(
        folder, procs=world, script=late.script(folder.with_name(f"{folder.name}-script")), bare=True, **task
    ) as ran:
        assert ran.wait() == [code] * world, ran.logs()
    require_finite_checkpoints(ran)
    return ran


def require_finite_checkpoints(ran: Gang) -> None:
    """Of those that are still there."""
    for event in ran.events("checkpoint"):
        data, manifest = ran.first / event["data"], ran.first / event["manifest"]
        if not data.exists():
            continue
        for name, content in read_checkpoint(data, manifest).items():
            if name.endswith(".safetensors"):
                assert all(torch.isfinite(tensor).all() for tensor in load(content).values()), (event["step"], name)


if __name__ == "__main__":
    sys.exit(main())
