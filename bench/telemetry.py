# SPDX-License-Identifier: Apache-2.0
"""Overhead of telemetry on a training step: one metrics line per step against none, in a paired comparison.

One process trains; metrics and progress are written in every second block of steps. An agent's collector reads the
files meanwhile, as on a rented machine. Neighbouring blocks form a pair, in alternating order, so other load on the
machine affects both alike. The jobs: the digits recipe, whose steps are the shortest of all, and a larger network.
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
"""The agent's batch interval while somebody watches the job; else it is longer."""
BLOCK, WARM_UP = 25, 50
JOBS: dict[str, tuple[int, dict[str, Any]]] = {
    "digits/quickstart as it is": (400, {}),
    "digits/quickstart with 128 channels": (100, {"width": 128}),
}
"""Number of pairs of blocks, and the recipe's parameters."""


def main() -> list[str]:
    return [measure(name, *job) for name, job in JOBS.items()]


def measure(name: str, pairs: int, params: dict[str, Any]) -> str:
    """Train once and compare the blocks with and without telemetry."""
    folder = Path(tempfile.mkdtemp(prefix="shoestring-bench-"))
    run = folder / "gen" / "1"
    run.mkdir(parents=True)
    steps = WARM_UP + 2 * BLOCK * pairs + 2  # the last step's metrics wait for the final evaluation
    task = {
        "format": 1, "job": "bench", "generation": 1, "recipe": "digits/quickstart", "seed": 1, "precision": "auto",
        "params": params | {"epochs": steps * 32 // 1437 + 1, "eval_every_epochs": 10_000},
    }  # fmt: skip
    (run / "task.json").write_text(json.dumps(task))
    python_path = os.pathsep.join(str(path) for path in (ROOT, ROOT / "core", ROOT / "trainer"))
    environment = os.environ | rank_environment(1, len(os.sched_getaffinity(0))) | {"PYTHONPATH": python_path}
    reader = subprocess.Popen([sys.executable, "-m", "bench.telemetry", "tail", str(folder)], env=environment)
    try:
        subprocess.run([sys.executable, "-m", "bench.telemetry", "train", str(run)], env=environment, check=True)
    finally:
        reader.terminate()
        reader.wait()
    times = json.loads((run / "times.json").read_text())
    return compare(name, blocks(times, pairs))


def blocks(times: Sequence[float], pairs: int) -> list[tuple[float, float]]:
    """Return seconds per step (with, without telemetry) of each pair of blocks, from the times at which steps ended."""
    edges = [times[WARM_UP - 1 + BLOCK * number] for number in range(2 * pairs + 1)]
    durations = [(after - before) / BLOCK for before, after in pairwise(edges)]
    return [
        (first, second) if has_telemetry(2 * number) else (second, first)
        for number, (first, second) in enumerate(zip(durations[::2], durations[1::2], strict=True))
    ]


def has_telemetry(block: int) -> bool:
    """On, off, off, on, on, …: each pair begins as the previous one ended."""
    return block % 4 in (0, 3)


def compare(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    with_ms, without_ms = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    # A pair disturbed by other processes says nothing about telemetry: leave out the outer tenths.
    overheads = sorted(on / off - 1 for on, off in pairs)
    tenth = len(overheads) // 10
    trimmed = overheads[tenth : len(overheads) - tenth]
    mean, low, high = mean_and_interval(trimmed)
    verdict = "holds" if mean < BOUND else "MISSED"
    return (
        f"telemetry, one metrics line per step, {name}: {mean:+.2%} of step time, 95 % interval {low:+.2%} to "
        f"{high:+.2%} ({len(trimmed)} of {len(pairs)} pairs of {BLOCK} steps, outer tenths left out; "
        f"medians {with_ms:.3f} and {without_ms:.3f} ms a step; bound < {BOUND:.0%}: {verdict}; load {load()})"
    )


def train(run: Path) -> None:
    """Train run/task.json with telemetry in every second block, and record when each step ended."""
    from shoestring_trainer.training import loop
    from shoestring_trainer.training.results import run_recorder
    from shoestring_trainer.training.stop_listener import StopListener
    from shoestring_trainer.training.task import StepCounter, read_task

    times: list[float] = []

    def enabled() -> bool:
        return has_telemetry(max(0, len(times) - WARM_UP) // BLOCK)

    class SwitchedLogger(run_recorder.RunRecorder):
        def log_step(self, step: int, epoch: float, metrics: Mapping[str, float], *, at: float) -> None:
            if enabled():
                super().log_step(step, epoch, metrics, at=at)
            times.append(time.perf_counter())

    loop.RunRecorder = SwitchedLogger  # type: ignore[attr-defined]
    loop.train(read_task(run / "task.json"), StopListener(run / "order", lambda: sys.exit(1)), StepCounter())
    (run / "times.json").write_text(json.dumps(times))


def tail(machine: Path) -> None:
    """Tail the metrics files as the agent does, until terminated."""
    from shoestring_trainer.agent.agent import WATCHED_POLL_S
    from shoestring_trainer.agent.rank_output import RankOutputCollector
    from shoestring_trainer.agent.spool import Spool

    spool = Spool(machine / "spool", machine / "rejected")
    collector = RankOutputCollector(machine, spool)
    collector.follow(machine / "gen" / "1", [0])
    sealed_at = 0.0
    while True:
        collector.read()
        if spool.has_draft and time.monotonic() - sealed_at >= SEAL_EVERY_S:
            sealed_at = time.monotonic()
            spool.acknowledge(spool.seal())
        time.sleep(WATCHED_POLL_S)


if __name__ == "__main__":
    {"train": train, "tail": tail}[sys.argv[1]](Path(sys.argv[2]))
