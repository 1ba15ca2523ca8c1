# SPDX-License-Identifier: Apache-2.0
"""What it costs a training step to be told about: one line per step, against none, paired.

One process trains; in every second block of steps its lines and its progress are written, in the others not. An agent's
reader follows the files beside it, as on a rented machine. Neighbouring blocks make a pair, in alternating order, so
whatever else the machine does meets both. The jobs: the digits, whose steps are the shortest of all recipes, and a
network of the size that people rent machines for.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from shoestring_trainer.agent.launch_env import rank_environment

from bench.trainer_cpu import ROOT, load, mean_and_interval

BOUND = 0.01
SEAL_EVERY_S = 0.2
"""As the agent does while somebody watches, when it reports four times a second; else less often."""
BLOCK, WARM_UP = 25, 50
JOBS: dict[str, tuple[int, dict[str, Any]]] = {
    "digits/quickstart as it is": (400, {}),
    "digits/quickstart with 128 channels": (100, {"width": 128}),
}
"""Pairs of blocks, and the parameters."""


def main() -> list[str]:
    return [measure(name, *job) for name, job in JOBS.items()]


def measure(name: str, pairs: int, params: dict[str, Any]) -> str:
    """Train once and compare the blocks."""
    folder = Path(tempfile.mkdtemp(prefix="shoestring-bench-"))
    run = folder / "gen" / "1"
    run.mkdir(parents=True)
    steps = WARM_UP + 2 * BLOCK * pairs + 2  # the last step's line waits for the final measurement
    task = {
        "format": 1, "job": "bench", "generation": 1, "recipe": "digits/quickstart", "seed": 1, "precision": "auto",
        "params": params | {"epochs": steps * 32 // 1437 + 1, "eval_every_epochs": 10_000},
    }  # fmt: skip
    (run / "task.json").write_text(json.dumps(task))
    rooms = os.pathsep.join(str(path) for path in (ROOT, ROOT / "core", ROOT / "trainer"))
    environment = os.environ | rank_environment(1, len(os.sched_getaffinity(0))) | {"PYTHONPATH": rooms}
    reader = subprocess.Popen([sys.executable, "-m", "bench.telemetry", "read", str(folder)], env=environment)
    try:
        subprocess.run([sys.executable, "-m", "bench.telemetry", "train", str(run)], env=environment, check=True)
    finally:
        reader.terminate()
        reader.wait()
    times = json.loads((run / "times.json").read_text())
    return compare(name, blocks(times, pairs))


def blocks(times: Sequence[float], pairs: int) -> list[tuple[float, float]]:
    """Seconds per step (told, untold) of each pair of blocks, from the times at which steps ended."""
    edges = [times[WARM_UP - 1 + BLOCK * number] for number in range(2 * pairs + 1)]
    took = [(after - before) / BLOCK for before, after in pairwise(edges)]
    return [
        (first, second) if told(2 * number) else (second, first)
        for number, (first, second) in enumerate(zip(took[::2], took[1::2], strict=True))
    ]


def told(block: int) -> bool:
    """On, off, off, on, on, …: each pair begins as the one before it ended."""
    return block % 4 in (0, 3)


def compare(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    with_ms, without_ms = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    # A pair in which the machine was called away says nothing of either side: the outer tenths are left out.
    lost = sorted(on / off - 1 for on, off in pairs)
    tenth = len(lost) // 10
    kept = lost[tenth : len(lost) - tenth]
    mean, low, high = mean_and_interval(kept)
    verdict = "holds" if mean < BOUND else "MISSED"
    return (
        f"telemetry, one line per step, {name}: {mean:+.2%} of step time, 95 % interval {low:+.2%} to {high:+.2%} "
        f"({len(kept)} of {len(pairs)} pairs of {BLOCK} steps, outer tenths left out; medians {with_ms:.3f} and "
        f"{without_ms:.3f} ms a step; bound < {BOUND:.0%}: {verdict}; load {load()})"
    )


def train(run: Path) -> None:
    """Train run/task.json with the lines of every second block, and note when each step ended."""
    from shoestring_trainer.training import loop
    from shoestring_trainer.training.orders import Orders
    from shoestring_trainer.training.results import run_logger
    from shoestring_trainer.training.task import StepCounter, read_task

    times: list[float] = []

    def wanted() -> bool:
        return told(max(0, len(times) - WARM_UP) // BLOCK)

    class SwitchedLogger(run_logger.RunLogger):
        def step(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
            if wanted():
                super().step(step, epoch, values)
            times.append(time.perf_counter())

    loop.RunLogger = SwitchedLogger  # type: ignore[misc]
    loop.train(read_task(run / "task.json"), Orders(run / "order", lambda: sys.exit(1)), StepCounter())
    (run / "times.json").write_text(json.dumps(times))


def read(machine: Path) -> None:
    """What the agent does with the lines, until it is ended."""
    from shoestring_trainer.agent.agent import WATCHED_POLL_S
    from shoestring_trainer.agent.file_tailer import Tails
    from shoestring_trainer.agent.spool import Spool

    spool = Spool(machine / "spool", machine / "rejected")
    tails = Tails(machine, spool)
    tails.follow(machine / "gen" / "1", [0])
    sealed_at = 0.0
    while True:
        tails.read()
        if spool.stirring and time.monotonic() - sealed_at >= SEAL_EVERY_S:
            sealed_at = time.monotonic()
            spool.acknowledge(spool.seal())
        time.sleep(WATCHED_POLL_S)


if __name__ == "__main__":
    {"train": train, "read": read}[sys.argv[1]](Path(sys.argv[2]))
