# SPDX-License-Identifier: Apache-2.0
"""CPU time of the input pipeline (ours, torchvision's DataLoader, timm's), of a training step and of telemetry.

    make bench ONLY=inputs DATA=folder of CIFAR-10

CPU time of one thread, in one process, in turn: other load on the machine hardly affects it, so this can be measured
where `trainer_cpu`, which measures wall time, can't. The loaders run without worker processes.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from shoestring_trainer.training.data.augment import augment
from shoestring_trainer.training.randomness import DistributedSampler
from shoestring_trainer.training.results.jsonl_writer import JsonlWriter
from shoestring_trainer.training.results.progress import ProgressPrinter

from bench import cpu_loops
from bench.trainer_cpu import load

ROUNDS, BATCH, LINES = 7, 256, 5000


def main() -> list[str]:
    if not (data := os.environ.get("DATA")):
        return ["skipped: it needs CIFAR-10; set DATA to the folder that holds cifar-10-batches-bin"]
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="shoestring-bench-"))
    params = {"batch_size": BATCH, "weight_average": "none"}
    task = {"recipe": "cifar10/airbench94", "params": params, "precision": "auto", "data": {"train": data}}
    (folder / "task.json").write_text(json.dumps(task))
    workload = cpu_loops.Workload(folder)
    cpu_loops.WORKERS = 0
    pipelines = {
        "ours": our_batches(workload),
        "torchvision": cpu_loops.with_torchvision(workload),
        "timm": cpu_loops.with_timm(workload),
    }
    cpu_us: dict[str, list[float]] = {name: [] for name in (*pipelines, "step")}
    for number in range(1 + ROUNDS):
        for name, batches in pipelines.items():
            start = time.thread_time()
            images_NCHW, labels_N = next(batches)
            images_NCHW = images_NCHW.contiguous(memory_format=torch.channels_last)
            cpu_us[name].append(1e6 * (time.thread_time() - start) / BATCH)
        start = time.thread_time()
        workload.train_step(number, images_NCHW, labels_N)
        cpu_us["step"].append(1e6 * (time.thread_time() - start) / BATCH)
    medians = {name: statistics.median(values[1:]) for name, values in cpu_us.items()}  # the first round is a warm-up
    step = medians.pop("step")
    training = (
        f"a training step of airbench94's network, {workload.precision.value}, batch {BATCH}: {step:.0f} µs of CPU "
        f"an image (one thread, median of {ROUNDS}; load {load()})"
    )
    return [
        training,
        *(
            f"input pipeline of {name}, crop and flip: {cost:.1f} µs of CPU an image, "
            f"{cost / (cost + step):.2%} of input and step"
            for name, cost in medians.items()
        ),
        f"telemetry: {telemetry_cpu_us(folder):.1f} µs of CPU a step in the training process, metrics and progress",
    ]


def our_batches(workload: cpu_loops.Workload) -> Iterator[cpu_loops.Batch]:
    """Yield batches as the training loop computes them."""
    settings, data = workload.settings, workload.data
    sampler = DistributedSampler(1, len(data.train), 0, 1, alternating_flip=settings.alternating_flip)
    position, mean_C = 0, torch.tensor(data.mean)
    while True:
        indices = sampler.batch(position, settings.batch_size)
        raw_NCHW = data.train.images_NCHW[indices.ids_N]
        yield (
            augment(raw_NCHW, indices.draws_NK, settings, mean_C, data.max_value),
            data.train.labels_N[indices.ids_N],
        )
        position += settings.batch_size


def telemetry_cpu_us(folder: Path) -> float:
    report, progress = JsonlWriter(folder), ProgressPrinter(10**6)
    values = {"train/loss": 0.4623123, "train/lr": 0.0926612, "train/momentum": 0.9}
    start = time.thread_time()
    for step in range(LINES):
        report.write_metrics(step, step / 45, values, at=time.time())
        progress.show(step, step / 45, values)
    return 1e6 * (time.thread_time() - start) / LINES
