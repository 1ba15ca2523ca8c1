# SPDX-License-Identifier: Apache-2.0
"""CPU time: of an image's input by us, by torchvision's DataLoader and by timm's, of a training step, of telemetry.

    make bench ONLY=inputs DATA=folder of CIFAR-10

CPU time of one thread, in one process, in turn: what else runs on the machine hardly touches it, so this is what can be
measured where `trainer_cpu`, which takes the time on the wall, cannot. The loaders run without worker processes.
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
        return ["left out: it needs CIFAR-10; set DATA to the folder that holds cifar-10-batches-bin"]
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="shoestring-bench-"))
    params = {"batch_size": BATCH, "weight_average": "none"}
    task = {"recipe": "cifar10/airbench94", "params": params, "precision": "auto", "data": {"train": data}}
    (folder / "task.json").write_text(json.dumps(task))
    course = cpu_loops.Course(folder)
    cpu_loops.WORKERS = 0
    inputs = {
        "ours": ours(course),
        "torchvision": cpu_loops.with_torchvision(course),
        "timm": cpu_loops.with_timm(course),
    }
    spent_us: dict[str, list[float]] = {name: [] for name in (*inputs, "step")}
    for number in range(1 + ROUNDS):
        for name, batches in inputs.items():
            began = time.thread_time()
            images_NCHW, labels_N = next(batches)
            images_NCHW = images_NCHW.contiguous(memory_format=torch.channels_last)
            spent_us[name].append(1e6 * (time.thread_time() - began) / BATCH)
        began = time.thread_time()
        course.step(number, images_NCHW, labels_N)
        spent_us["step"].append(1e6 * (time.thread_time() - began) / BATCH)
    medians = {name: statistics.median(spent[1:]) for name, spent in spent_us.items()}  # the first warms up
    step = medians.pop("step")
    training = (
        f"a training step of airbench94's network, {course.precision.value}, batch {BATCH}: {step:.0f} µs of CPU a "
        f"image (one thread, median of {ROUNDS}; load {load()})"
    )
    return [
        training,
        *(
            f"input by {name}, crop and flip: {cost:.1f} µs of CPU an image, {cost / (cost + step):.2%} of both"
            for name, cost in medians.items()
        ),
        f"telemetry: {telemetry_us(folder):.1f} µs of CPU a step, one line and the progress, in the training process",
    ]


def ours(course: cpu_loops.Course) -> Iterator[cpu_loops.Batch]:
    """Batches as the training loop makes them."""
    settings, data = course.settings, course.data
    sampler = DistributedSampler(1, len(data.train), 0, 1, alternating_flip=settings.alternating_flip)
    start = 0
    while True:
        picked = sampler.batch(start, settings.batch_size)
        some_NCHW = data.train.images_NCHW[picked.samples_N]
        yield (
            augment(some_NCHW, picked.draws_NK, settings, data.mean, data.white),
            data.train.labels_N[picked.samples_N],
        )
        start += settings.batch_size


def telemetry_us(folder: Path) -> float:
    report, progress = JsonlWriter(folder), ProgressPrinter(10**6)
    values = {"train/loss": 0.4623123, "train/lr": 0.0926612, "train/momentum": 0.9}
    began = time.thread_time()
    for step in range(LINES):
        report.metrics(step, step / 45, values)
        progress.show(step, step / 45, values)
    return 1e6 * (time.thread_time() - began) / LINES
