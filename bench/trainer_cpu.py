# SPDX-License-Identifier: Apache-2.0
"""Throughput of our training loop against a plain PyTorch loop, timm's loader and fastai's Learner, on the CPU.

Same network, images, batch size, optimizer, precision, augmentation, threads and allocator. Each loop runs in its own
processes throughout; all but one are paused (SIGSTOP), and every round starts with another loop. Ours is the trainer
as a rented machine starts it, with its telemetry. Last, airbench94-muon beside the code that it reproduces: see
bench/source_cpu, which needs no data.

    make bench ONLY=trainer_cpu DATA=folder of CIFAR-10 [ROUNDS=7] [STEPS=12] [PARTS="loops source"] [REFERENCE=folder]
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from scipy.stats import t as student
from shoestring_trainer.agent.launch_env import rank_environment

from bench import source_cpu

ROOT = Path(__file__).parents[1]
FASTAI, FASTAI_PINS = ROOT / ".peers" / "fastai", Path(__file__).with_name("fastai.txt")
LOOPS = ["ours", "torchvision", "timm", "fastai", "bare"]
ROUNDS, STEPS = int(os.environ.get("ROUNDS", "7")), int(os.environ.get("STEPS", "12"))
WARM_UP_STEPS, SETTLE_STEPS, TIMEOUT_S = 4, 2, 1200
BATCH = int(os.environ.get("BATCH", "512"))
LOOP_TITLES = {
    "ours": "ours",
    "torchvision": "plain PyTorch loop with torchvision's transforms and DataLoader, 2 workers",
    "timm": "the same loop with timm's loader, 2 workers",
    "fastai": "fastai's Learner, 0 workers",
    "bare": "forward, backward and optimizer step only, on precomputed batches",
}
MAX_OVERHEAD = 0.05
PARTS = os.environ.get("PARTS", "loops source").split()


class Throughput(NamedTuple):
    """Throughput and CPU time of one loop in one round."""

    images_per_s: float
    cpu_s_per_image: float


def main() -> list[str]:
    return [line for part in PARTS for line in {"loops": compare_loops, "source": source_cpu.compare}[part]()]


def compare_loops() -> list[str]:
    data = os.environ.get("DATA")
    if not data:
        return ["loops skipped: they need CIFAR-10; set DATA to the folder that holds cifar-10-batches-bin"]
    loops, notes = list(LOOPS), []
    if reason := install_fastai():
        loops.remove("fastai")
        notes.append(f"fastai skipped: {reason}")
    runners: dict[str, Runner] = {}
    rounds: list[dict[str, Throughput]] = []
    try:
        for loop in loops:
            runners[loop] = Runner(loop, Path(data))
            runners[loop].run(WARM_UP_STEPS)
        for number in range(ROUNDS):
            order = loops[number % len(loops) :] + loops[: number % len(loops)]
            rounds.append({loop: runners[loop].run(STEPS) for loop in order})
            summary = ", ".join(f"{loop} {rounds[-1][loop].images_per_s:.0f}" for loop in loops)
            print(f"round {number + 1}: {summary} images/s (load {os.getloadavg()[0]:.1f})", flush=True)
    finally:
        for runner in runners.values():
            runner.kill()
    setup = (
        f"airbench94's network on CIFAR-10, batch {BATCH}, crop and flip, {len(os.sched_getaffinity(0))} threads, "
        f"bf16 if the processor supports it; {ROUNDS} rounds of {STEPS} steps a loop, medians; load {load()}"
    )
    return [
        setup,
        *(describe(loop, [round_[loop] for round_ in rounds]) for loop in loops),
        *(compare(loop, rounds) for loop in loops if loop not in ("ours", "bare")),
        overhead(rounds),
        *notes,
    ]


class Runner:
    """One loop in its own processes, paused except while `run` is called."""

    def __init__(self, loop: str, data: Path) -> None:
        folder = Path(tempfile.mkdtemp(prefix="shoestring-bench-"))
        params = {"epochs": 1000, "batch_size": BATCH, "weight_average": "none", "eval_every_epochs": 10_000}
        task = {
            "format": 1, "job": "bench", "generation": 1, "recipe": "cifar10/airbench94", "params": params, "seed": 1,
            "precision": "auto", "data": {"train": str(data.resolve())},
        }  # fmt: skip
        (folder / "task.json").write_text(json.dumps(task))
        ours = ["shoestring_trainer", "train", str(folder / "task.json")]
        command = [sys.executable, "-m", *(ours if loop == "ours" else ["bench.cpu_loops", loop, str(folder)])]
        packages = os.pathsep.join(str(path) for path in (ROOT, ROOT / "core", ROOT / "trainer"))
        environment = os.environ | rank_environment(1, len(os.sched_getaffinity(0))) | {"PYTHONPATH": packages}
        self._loop, self._output = loop, folder / "output.txt"
        self._lines = folder / "metrics.jsonl" if loop == "ours" else self._output
        with self._output.open("wb") as output, (folder / "errors.txt").open("wb") as errors:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=errors, start_new_session=True
            )
        self._ps = psutil.Process(self._process.pid)

    def run(self, steps: int) -> Throughput:
        """Resume the loop for a few steps to settle and then `steps` more; return the throughput of the latter."""
        os.killpg(self._process.pid, signal.SIGCONT)
        first = len(self._step_times()) + SETTLE_STEPS
        used_s = -self._wait_for(first)
        used_s += self._wait_for(first + steps)
        os.killpg(self._process.pid, signal.SIGSTOP)
        times = self._step_times()
        images = steps * BATCH
        return Throughput(images / (times[first + steps - 1] - times[first - 1]), used_s / images)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _wait_for(self, steps: int) -> float:
        """Wait until the loop has made `steps` steps; return the CPU seconds that it and its loader used so far."""
        deadline = time.monotonic() + TIMEOUT_S
        while len(self._step_times()) < steps:
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the loop {self._loop!r} ended or hangs; see {self._output.parent}")
            time.sleep(0.02)
        processes = [self._ps, *self._ps.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def _step_times(self) -> list[float]:
        """Return the times at which steps ended so far."""
        if not self._lines.exists():
            return []
        lines = [line for line in self._lines.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line)["t"] if self._loop == "ours" else float(line) for line in lines]


def install_fastai() -> str | None:
    """Install fastai where only its loop finds it. Return why it can't be used, or None."""
    if not FASTAI.exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(FASTAI),
            "-r",
            str(FASTAI_PINS),
        ]
        result = subprocess.run(pip, capture_output=True, text=True, timeout=600)
        if result.returncode:
            return f"pip could not install it: {result.stderr.strip().splitlines()[-1]}"
    probe = (
        "import sys; from shoestring_trainer.training import vision_compat; sys.path.append(sys.argv[1]); "
        "import fastai.learner, fastai.vision.data"
    )
    packages = os.pathsep.join(str(ROOT / package) for package in ("core", "trainer"))
    result = subprocess.run(
        [sys.executable, "-c", probe, str(FASTAI)],
        env=os.environ | {"PYTHONPATH": packages}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return f"it does not import here: {result.stderr.strip().splitlines()[-1]}" if result.returncode else None


def describe(loop: str, throughputs: Sequence[Throughput]) -> str:
    images = [throughput.images_per_s for throughput in throughputs]
    cpu_ms = 1e3 * statistics.median(throughput.cpu_s_per_image for throughput in throughputs)
    return (
        f"{LOOP_TITLES[loop]}: {statistics.median(images):.0f} images/s ({min(images):.0f} to {max(images):.0f}), "
        f"{cpu_ms:.3f} ms of CPU an image"
    )


def compare(peer: str, rounds: Sequence[dict[str, Throughput]]) -> str:
    ratios = [round_["ours"].images_per_s / round_[peer].images_per_s for round_ in rounds]
    cpu_ratio = statistics.median(round_[peer].cpu_s_per_image / round_["ours"].cpu_s_per_image for round_ in rounds)
    mean, low, high = mean_and_interval([math.log(ratio) for ratio in ratios])
    verdict = "holds" if math.exp(mean) >= 1.0 else "MISSED"
    return (
        f"ours / {peer}: {math.exp(mean):.3f} times the images/s, 95 % interval {math.exp(low):.3f} to "
        f"{math.exp(high):.3f}, paired by round (bound ≥ 1.0: {verdict}); it takes {cpu_ratio:.3f} times our CPU time"
    )


def overhead(rounds: Sequence[dict[str, Throughput]]) -> str:
    overheads = [1 - round_["ours"].images_per_s / round_["bare"].images_per_s for round_ in rounds]
    mean, low, high = mean_and_interval(overheads)
    cpu = statistics.median(1 - round_["bare"].cpu_s_per_image / round_["ours"].cpu_s_per_image for round_ in rounds)
    verdict = "holds" if mean < MAX_OVERHEAD else "MISSED"
    return (
        f"overhead of our loop, 1 − t(step only) / t(whole loop): {mean:.1%}, 95 % interval {low:.1%} to {high:.1%}, "
        f"paired by round (bound < {MAX_OVERHEAD:.0%}: {verdict}); of CPU time: {cpu:.1%}"
    )


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % confidence interval (Student's t)."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def load() -> str:
    return " ".join(f"{average:.1f}" for average in os.getloadavg())
