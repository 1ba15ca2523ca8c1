# SPDX-License-Identifier: Apache-2.0
"""On this machine's GPU: steps profiled, CIFAR-10 to target by us and by reference code, ResNet-50, decoding.

    make bench ONLY=gpu DATA=folder of CIFAR-10 [IMAGES=folder of JPEGs] [REFERENCE=folder] [SEEDS=5] [ROUNDS=2]
        [PARTS="steps races resnet50 shards decoding"] [RECIPES="cifar10/airbench94 …"] [SIZES="128 224 288"]

The reference code is fetched into .peers/, or is in the folder REFERENCE (cifar10-airbench and cifar10-fast). Each
round runs our SEEDS and then the reference's, one process each, whose first run is a warm-up and doesn't count. Without
a GPU everything runs as a dry run on the CPU with tiny sizes, which shows that the command works and measures nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from shoestring_core import recipes
from shoestring_trainer.agent.launch_env import rank_environment

from bench.peers import REPOSITORIES, convert_cifar10, fetch_references, write_noise_cifar10
from bench.trainer_cpu import ROOT

GPU = torch.cuda.is_available()
SEEDS, ROUNDS = (int(os.environ.get(name, default)) for name, default in (("SEEDS", "5"), ("ROUNDS", "2")))
PARTS = os.environ.get("PARTS", "steps races resnet50 shards decoding").split()
RECIPES = os.environ.get("RECIPES", "").split()
RUN_TIMEOUT_S = 3600


class Comparison(NamedTuple):
    """A recipe and the reference code it reproduces.

    target   the accuracy to reach
    compile  mode of torch.compile in which the reference code runs
    """

    recipe: str
    target: float
    role: str
    reference: str
    compile: str = "none"


COMPARISONS = [
    Comparison("cifar10/airbench94", 0.94, "airbench", "cifar10-airbench/legacy/airbench94.py"),
    Comparison("cifar10/airbench94-muon", 0.94, "airbench", "cifar10-airbench/airbench94_muon.py", "max-autotune"),
    Comparison("cifar10/airbench95", 0.95, "airbench", "cifar10-airbench/legacy/airbench95.py"),
    Comparison("cifar10/airbench96", 0.96, "airbench", "cifar10-airbench/legacy/airbench96.py"),
    Comparison("cifar10/page-resnet9", 0.94, "page", "cifar10-fast"),
]


def main() -> list[str]:
    data_folder, images = os.environ.get("DATA"), os.environ.get("IMAGES")
    if GPU and not data_folder and "races" in PARTS:
        return ["skipped: the races need CIFAR-10; set DATA to the folder that holds cifar-10-batches-bin"]
    folder = Path(tempfile.mkdtemp(prefix="shoestring-gpu-"))
    jpegs = Path(images).resolve() if images else write_jpegs(folder / "jpegs")
    kind = "JPEG files" if images else "JPEG files, generated ones of 500 x 375"
    lines: list[str] = []
    notes: list[str] = []
    for part in PARTS:
        if part == "races":
            data = Path(data_folder).resolve() if GPU and data_folder else write_noise_cifar10(folder / "tiny")
            convert_cifar10(data, folder)
            references, notes = fetch_references(*REPOSITORIES)
            for comparison in COMPARISONS:
                if not RECIPES or comparison.recipe in RECIPES:
                    lines += run_comparison(comparison, data, folder, references)
                    print("\n".join(lines[-3:]), flush=True)
        else:
            lines += OTHER_PARTS[part](jpegs, kind, folder)
            print("\n".join(lines[-8:]), flush=True)
    return [describe_gpu(), *lines, *notes] if GPU else [summarize_dry_run(lines), *notes]


def summarize_dry_run(lines: Sequence[str]) -> str:
    """Return the result of a run without a GPU: that it ran, without figures."""
    missing = [line for line in lines if "is missing" in line]
    against = "" if missing else " against reference code"
    summary = (
        f"{' '.join(PARTS)} ran on the CPU{against} with sizes too small to measure; nvJPEG needs a GPU and did not run"
    )
    return "; ".join([f"no GPU: {summary}", *missing])


def describe_gpu() -> str:
    device = torch.cuda.get_device_properties(0)
    return f"{device.name}, {device.total_memory >> 30} GiB, torch {torch.__version__}, CUDA {torch.version.cuda}"


def run_comparison(comparison: Comparison, data: Path, folder: Path, references: Path) -> list[str]:
    """Return a recipe's lines: our results, the reference's, and their ratio."""
    rounds, seeds = (ROUNDS, SEEDS) if GPU else (1, 1)
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    reference = references / comparison.reference
    for number in range(rounds):
        numbers = [str(1 + number * seeds + seed) for seed in range(seeds)]
        ours += run("ours", write_task(comparison, data), numbers, folder)
        if reference.exists():
            theirs += run(comparison.role, reference, numbers, folder)
    lines = [describe(f"{comparison.recipe}, ours", ours, comparison.target)]
    if not theirs:
        return [*lines, f"{comparison.recipe}: the reference code is missing ({comparison.reference})"]
    ratio = statistics.median(run["seconds"] for run in theirs) / statistics.median(run["seconds"] for run in ours)
    return [
        *lines,
        describe(f"{comparison.recipe}, {comparison.reference}", theirs, comparison.target),
        f"{comparison.recipe}: the reference code takes {ratio:.2f} times our time for a run (medians, in turn)",
    ]


def describe(name: str, runs: Sequence[dict[str, float]], target: float) -> str:
    accuracies = [run["accuracy"] for run in runs]
    spread = f" ± {statistics.stdev(accuracies):.2%}" if len(runs) > 1 else ""
    seconds, total = (statistics.median(run[name] for run in runs) for name in ("seconds", "total_s"))
    reached = sum(accuracy >= target for accuracy in accuracies)
    return (
        f"{name}: {statistics.mean(accuracies):.2%}{spread}, {reached} of {len(runs)} reach {target:.0%}; "
        f"{seconds:.2f} s training with the final evaluation, {total:.2f} s with loading and saving (medians)"
    )


def write_task(comparison: Comparison, data: Path) -> Path:
    """Write the task file for one process of our runs."""
    recipe = comparison.recipe
    params: dict[str, Any] = {"epochs": recipes.resolve(recipe, {})["epochs"], "eval_every_epochs": 10_000}
    if GPU:
        params |= {"compile": comparison.compile}
    else:
        params |= {"epochs": 1, "batch_size": 64, "verify_checksums": False}
    folder = Path(tempfile.mkdtemp(prefix="shoestring-gpu-"))
    task = {
        "format": 1, "job": "bench", "generation": 1, "recipe": recipe, "params": params, "seed": 1,
        "precision": "auto", "data": {"train": str(data)},
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(task))
    return folder / "task.json"


def steps(_jpegs: Path, _kind: str, folder: Path) -> list[str]:
    """Return what a training step asks of the GPU, by torch's profiler, at the recipe's own batch size."""
    return [
        f"{row['recipe']}, a step of {row['batch']} images: {row['ms']:.2f} ms, {row['launches']:.0f} launches, "
        f"{row['waits']:.0f} waits, {row['pageable']:.0f} copies from pageable memory"
        for row in run("steps", folder, [], folder)
    ]


def shards(jpegs: Path, kind: str, folder: Path) -> list[str]:
    """Return the images/s of whole training runs of ResNet-50 from shards, decoded as it trains."""
    return [
        f"ResNet-50, {row['size']} px, fp16, {'eager' if row['compile'] == 'none' else 'compiled'}, a whole run from "
        f"shards of {row['images']:,} {kind}: {row['images_per_s']:.0f} images/s"
        + (f" ({row['mfu']:.1%} of the card's peak)" if "mfu" in row else "")
        + f"; the host waited for images in {row['data_wait_fraction']:.1%} of the time"
        for row in run("shards", jpegs, [], folder)
    ]


def resnet50(jpegs: Path, kind: str, folder: Path) -> list[str]:
    lines = []
    for row in run("resnet50", jpegs, [], folder):
        shares = row["mfu"]
        rates = [
            f"{rate:.1f} images/s from {kind if source == 'files' else source}"
            + (f" ({shares[source]:.1%} of the card's peak)" if source in shares else "")
            for source, rate in row["images_per_s"].items()
        ]
        lines.append(f"ResNet-50, {row['size']} px, {row['precision']}: {'; '.join(rates)}")
    return lines


def decoding(jpegs: Path, kind: str, folder: Path) -> list[str]:
    """Return the throughput of decoding before training, by each decoder that this machine has."""
    lines = []
    for row in run("decoding", jpegs, [], folder):
        rates = [f"{rate:.0f} images/s by {decoder}" for decoder, rate in row["images_per_s"].items()]
        lines.append(f"{kind} decoded to {row['size']} px: {'; '.join(rates)}{row['skipped']}")
    return lines


OTHER_PARTS: dict[str, Callable[[Path, str, Path], list[str]]] = {
    "steps": steps, "resnet50": resnet50, "shards": shards, "decoding": decoding,
}  # fmt: skip


def run(role: str, place: Path, seeds: Sequence[str], folder: Path) -> Any:
    packages = os.pathsep.join(str(path) for path in (ROOT, ROOT / "core", ROOT / "trainer"))
    environment = os.environ | rank_environment(1, len(os.sched_getaffinity(0))) | {"PYTHONPATH": packages}
    command = [sys.executable, "-m", "bench.gpu_runs", role, str(place), *seeds]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def write_jpegs(folder: Path, count: int = 64) -> Path:
    """Write JPEG files of the size and quality of ImageNet's median image."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    print("\n".join(main()))
