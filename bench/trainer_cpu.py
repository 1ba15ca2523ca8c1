# SPDX-License-Identifier: Apache-2.0
"""Our training loop against a plain PyTorch loop, timm's loader and fastai's Learner, on this machine's CPU.

Same network, images, batch, optimizer, precision, augmentation, threads and allocator. Each loop lives in processes
of its own from beginning to end; all stand still (SIGSTOP) but the one whose turn it is, and every round begins with
another. Ours is the trainer as a rented machine starts it, its reports included.

    make bench ONLY=trainer_cpu DATA=folder of CIFAR-10 [ROUNDS=7] [STEPS=12]
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

ROOT = Path(__file__).parents[1]
FASTAI, FASTAI_PINS = ROOT / ".peers" / "fastai", Path(__file__).with_name("fastai.txt")
LOOPS = ["ours", "torchvision", "timm", "fastai", "bare"]
ROUNDS, STEPS = int(os.environ.get("ROUNDS", "7")), int(os.environ.get("STEPS", "12"))
WARM_UP, SETTLE, PATIENCE_S = 4, 2, 1200
BATCH = int(os.environ.get("BATCH", "512"))
NAMES = {
    "ours": "ours",
    "torchvision": "plain PyTorch loop with torchvision's transforms and DataLoader, 2 workers",
    "timm": "the same loop with timm's loader, 2 workers",
    "fastai": "fastai's Learner, 0 workers",
    "bare": "forward, backward and step alone, on batches made beforehand",
}
MOST_OVERHEAD = 0.05


class Speed(NamedTuple):
    """Of one loop in one round."""

    images_per_s: float
    cpu_s_per_image: float


def main() -> list[str]:
    data = os.environ.get("DATA")
    if not data:
        return ["left out: it needs CIFAR-10; set DATA to the folder that holds cifar-10-batches-bin"]
    loops, notes = list(LOOPS), []
    if why := install_fastai():
        loops.remove("fastai")
        notes.append(f"fastai left out: {why}")
    runners: dict[str, Runner] = {}
    rounds: list[dict[str, Speed]] = []
    try:
        for loop in loops:
            runners[loop] = Runner(loop, Path(data))
            runners[loop].turn(WARM_UP)
        for number in range(ROUNDS):
            order = loops[number % len(loops) :] + loops[: number % len(loops)]
            rounds.append({loop: runners[loop].turn(STEPS) for loop in order})
            told = ", ".join(f"{loop} {rounds[-1][loop].images_per_s:.0f}" for loop in loops)
            print(f"round {number + 1}: {told} images/s (load {os.getloadavg()[0]:.1f})", flush=True)
    finally:
        for runner in runners.values():
            runner.end()
    setting = (
        f"airbench94's network on CIFAR-10, batch {BATCH}, crop and flip, {len(os.sched_getaffinity(0))} threads, "
        f"bf16 where the processor has it; {ROUNDS} rounds of {STEPS} steps a loop, medians; load {load()}"
    )
    return [
        setting,
        *(describe(loop, [each[loop] for each in rounds]) for loop in loops),
        *(compare(loop, rounds) for loop in loops if loop not in ("ours", "bare")),
        overhead(rounds),
        *notes,
    ]


class Runner:
    """A loop in processes of its own. It moves only in its turns."""

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
        rooms = os.pathsep.join(str(path) for path in (ROOT, ROOT / "core", ROOT / "trainer"))
        environment = os.environ | rank_environment(1, len(os.sched_getaffinity(0))) | {"PYTHONPATH": rooms}
        self._loop, self._said = loop, folder / "said.txt"
        self._lines = folder / "metrics.jsonl" if loop == "ours" else self._said
        with self._said.open("wb") as said, (folder / "errors.txt").open("wb") as errors:
            self._process = subprocess.Popen(
                command, env=environment, stdout=said, stderr=errors, start_new_session=True
            )
        self._family = psutil.Process(self._process.pid)

    def turn(self, steps: int) -> Speed:
        """Let the loop run until it has made `steps` steps after a few that settle it, and tell how fast they were."""
        os.killpg(self._process.pid, signal.SIGCONT)
        first = len(self._ticks()) + SETTLE
        used_s = -self._until(first)
        used_s += self._until(first + steps)
        os.killpg(self._process.pid, signal.SIGSTOP)
        ticks = self._ticks()
        images = steps * BATCH
        return Speed(images / (ticks[first + steps - 1] - ticks[first - 1]), used_s / images)

    def end(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _until(self, steps: int) -> float:
        """CPU seconds that the loop and its loader have used when it has made so many steps."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self._ticks()) < steps:
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the loop {self._loop!r} ended or stands still; see {self._said.parent}")
            time.sleep(0.02)
        everybody = [self._family, *self._family.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in everybody)

    def _ticks(self) -> list[float]:
        """When each step so far ended."""
        if not self._lines.exists():
            return []
        lines = [line for line in self._lines.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line)["t"] if self._loop == "ours" else float(line) for line in lines]


def install_fastai() -> str | None:
    """Put fastai where only its loop finds it; why it can't be used, if it can't."""
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
        done = subprocess.run(pip, capture_output=True, text=True, timeout=600)
        if done.returncode:
            return f"pip could not install it: {done.stderr.strip().splitlines()[-1]}"
    probe = (
        "import sys; from shoestring_trainer.training import vision_compat; sys.path.append(sys.argv[1]); "
        "import fastai.learner, fastai.vision.data"
    )
    rooms = os.pathsep.join(str(ROOT / room) for room in ("core", "trainer"))
    done = subprocess.run(
        [sys.executable, "-c", probe, str(FASTAI)],
        env=os.environ | {"PYTHONPATH": rooms}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return f"it does not import here: {done.stderr.strip().splitlines()[-1]}" if done.returncode else None


def describe(loop: str, speeds: Sequence[Speed]) -> str:
    images = [speed.images_per_s for speed in speeds]
    cpu_ms = 1e3 * statistics.median(speed.cpu_s_per_image for speed in speeds)
    return (
        f"{NAMES[loop]}: {statistics.median(images):.0f} images/s ({min(images):.0f} to {max(images):.0f}), "
        f"{cpu_ms:.3f} ms of CPU an image"
    )


def compare(peer: str, rounds: Sequence[dict[str, Speed]]) -> str:
    ratios = [each["ours"].images_per_s / each[peer].images_per_s for each in rounds]
    work = statistics.median(each[peer].cpu_s_per_image / each["ours"].cpu_s_per_image for each in rounds)
    mean, low, high = mean_and_interval([math.log(ratio) for ratio in ratios])
    verdict = "holds" if math.exp(mean) >= 1.0 else "MISSED"
    return (
        f"ours / {peer}: {math.exp(mean):.3f} times the images/s, 95 % interval {math.exp(low):.3f} to "
        f"{math.exp(high):.3f}, paired by round (bound ≥ 1.0: {verdict}); it takes {work:.3f} times our CPU time"
    )


def overhead(rounds: Sequence[dict[str, Speed]]) -> str:
    lost = [1 - each["ours"].images_per_s / each["bare"].images_per_s for each in rounds]
    mean, low, high = mean_and_interval(lost)
    cpu = statistics.median(1 - each["bare"].cpu_s_per_image / each["ours"].cpu_s_per_image for each in rounds)
    verdict = "holds" if mean < MOST_OVERHEAD else "MISSED"
    return (
        f"overhead of our loop, 1 − t(step alone) / t(whole loop): {mean:.1%}, 95 % interval {low:.1%} to {high:.1%}, "
        f"paired by round (bound < {MOST_OVERHEAD:.0%}: {verdict}); of CPU time: {cpu:.1%}"
    )


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval (Student's t)."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def load() -> str:
    return " ".join(f"{average:.1f}" for average in os.getloadavg())
