# SPDX-License-Identifier: Apache-2.0
"""Images per second and core from shards beside torchvision's, timm's and WebDataset's loaders; start and memory.

Shards lie on the disk, and in a stand-in for S3 that replies 30 ms late, from which they are streamed.

    make bench ONLY=trainer_scale SAMPLE=folder of class folders with ImageNet's pictures [ROUNDS=3]

The set is the sample's pictures, repeated until there are 20,000; the one of 200,000 for start and memory is hard links
to its shards. What is compared is CPU time of all processes of a loader over some batches in the middle of an epoch, so
that other load on the machine hardly matters. WebDataset is installed into `.peers/`, which git ignores.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from shoestring_trainer.agent.launch_env import rank_environment
from shoestring_trainer.training.cli.prepare import index_source
from shoestring_trainer.training.data.augment import RandomResizedCrop, crop_boxes
from shoestring_trainer.training.data.decoding import decode_crop
from shoestring_trainer.training.data.image_files import open_image_file
from shoestring_trainer.training.data.prepare_shards import prepare_shards
from shoestring_trainer.training.data.shard_list import SHUFFLED_TOGETHER
from shoestring_trainer.training.data.shard_plan import PrepareOptions

from bench.scale_loaders import (
    BATCH,
    MIN_SCALE,
    WORKERS,
    install_webdataset,
    our_batches,
    streamed_batches,
    timm_batches,
    torchvision_batches,
    webdataset_batches,
)
from bench.scale_starts import LATENCY_S, SIZES, measure_starts, put_mapped, verdict
from bench.trainer_cpu import load
from tests.trainer.data_sync.bucket_server import Bucket, serving

ROUNDS = int(os.environ.get("ROUNDS", "3"))
WARM_UP, MEASURED = 25, 50
"""Batches before the clock starts, more than any loader decodes ahead, and batches that are measured: of shards of
IMAGES_PER_SHARD, one and two of the windows that are shuffled together, so as much is streamed as is used."""
IMAGES_PER_SHARD = WARM_UP * BATCH // SHUFFLED_TOGETHER
BOUNDS, BOUND_BESIDE_TENSORS = {128: 1.3, 224: 1.2}, 1.1
MEASURE_TIMEOUT_S = 600
IMAGENET_IMAGES, GPUS, CORES_PER_GPU, NETWORK_GBIT_S, DEFAULT_PER_SHARD = 1_281_167, 8, 12, 25, 2000


def main() -> list[str]:
    if not (sample := os.environ.get("SAMPLE")):
        return ["skipped: it needs pictures of ImageNet's sizes; set SAMPLE to a folder of class folders with some"]
    folder = Path(tempfile.mkdtemp(prefix="shoestring-bench-"))
    try:
        source, different = repeat_pictures(Path(sample), folder / "pictures")
        began, began_s = children_cpu_s(), time.monotonic()
        options = PrepareOptions(side=400, quality=90, images_per_shard=IMAGES_PER_SHARD, skip_damaged=False)
        index = prepare_shards(index_source(source, skip=False), folder / "shards", options, WORKERS, lambda _: None)
        images, train_images = sum(shard.images for shard in index.shards), sum(index.class_images["train"])
        rate = images / (children_cpu_s() - began)
        size = sum(shard.bytes for shard in index.shards) / images
        made = (
            f"{train_images:,} pictures ({different} of ImageNet's, repeated; {size / 1000:.0f} kB each) and "
            f"{images - train_images:,} to validate on, prepared in {time.monotonic() - began_s:.0f} s, at {rate:.0f} "
            "images/s of one core"
        )
        print(made, flush=True)
        lines, rates = [made], {}
        for side in BOUNDS:
            compared, rates[side] = compare_loaders(source / "train", folder / "shards", side)
            lines += compared
        lines += [describe_errors(Path(sample), side) for side in BOUNDS]
        started, starts_s = measure_starts(folder, folder / "shards")
        return [*lines, *started, *extrapolate(rates, starts_s, size)]
    finally:
        shutil.rmtree(folder)


def repeat_pictures(sample: Path, folder: Path) -> tuple[Path, int]:
    """Make an image folder of hard links, and return it and the number of pictures that differ.

    So many copies of each are trained on that there are 20,000 at least; one is validated on.
    """
    pictures = sorted(path for path in sample.rglob("*") if path.is_file())
    for picture in pictures:
        val, place = (folder / split / picture.parent.name for split in ("val", "train"))
        for needed in (val, place):
            needed.mkdir(parents=True, exist_ok=True)
        first = Path(shutil.copy(picture, val / picture.name))
        for copy in range(math.ceil(SIZES[0] / len(pictures))):
            (place / f"{copy}-{picture.name}").hardlink_to(first)
    return folder, len(pictures)


# Throughput


def compare_loaders(source: Path, shards: Path, side: int) -> tuple[list[str], float]:
    """Return the lines of the report, and our images/s of one core from the disk."""
    with serving() as bucket:
        bucket.delay_s = LATENCY_S
        put_mapped(bucket, shards, "set")
        return _compare_with_bucket(source, shards, side, bucket)


def _compare_with_bucket(source: Path, shards: Path, side: int, bucket: Bucket) -> tuple[list[str], float]:
    loaders: dict[str, Callable[[], Iterator[Any]]] = {
        "ours, from shards": partial(our_batches, shards, side),
        "ours, streamed": partial(streamed_batches, bucket.environment, shards.parent, side),
        "torchvision's ImageFolder and DataLoader": partial(torchvision_batches, source, side, "PIL"),
        "torchvision's v2 transforms on tensors": partial(torchvision_batches, source, side, "tensors"),
        "timm's loader, without its color jitter": partial(timm_batches, source, side),
    }
    notes = []
    if reason := install_webdataset():
        notes.append(f"WebDataset skipped: {reason}")
    else:
        loaders["WebDataset"] = partial(webdataset_batches, shards, side)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    names = list(loaders)
    for number in range(ROUNDS):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            rates[name].append(measure(loaders[name], as_rank=name.startswith("ours")))
            print(f"{side} px, round {number + 1}: {name}: {rates[name][-1]:.0f} images/s of one core", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ours, streamed = medians.pop(names[0]), medians.pop(names[1])
    lines = [
        f"{side} px, random resized crop and flip: ours {ours:.0f} images/s of one core (median of {ROUNDS}; {load()})",
        f"streamed from an S3 stand-in, {LATENCY_S * 1000:.0f} ms away: {streamed:.0f}, {streamed / ours:.2f}×",
        *(
            judge(name, ours / rate, rate, BOUND_BESIDE_TENSORS if "v2" in name else BOUNDS[side])
            for name, rate in medians.items()
        ),
        *notes,
    ]
    return lines, ours


def judge(name: str, ratio: float, rate: float, bound: float) -> str:
    return f"{name}: {rate:.0f}; ours {ratio:.2f}× (bound ≥ {bound}: {verdict(ratio >= bound)})"


def measure(batches: Callable[[], Iterator[Any]], *, as_rank: bool) -> float:
    """Return images a second of one core, of a process of its own and of its workers.

    as_rank  in the environment of a rank, which glibc reads at the start of a process
    """
    receiver, sender = get_context("spawn").Pipe(duplex=False)
    process = get_context("spawn").Process(target=_measure, args=(batches, sender))
    with patch.dict(os.environ, rank_environment(1, WORKERS) if as_rank else {}):
        process.start()
    sender.close()
    if not receiver.poll(MEASURE_TIMEOUT_S):
        process.kill()
        sys.exit(f"{WARM_UP + MEASURED} batches have not been loaded within {MEASURE_TIMEOUT_S} s")
    try:
        rate: float = receiver.recv()
    except EOFError:
        sys.exit("a loader has failed; its error is above")
    process.join()
    return rate


def _measure(batches: Callable[[], Iterator[Any]], sender: Any) -> None:
    """Measure in the middle of an epoch: as much has been decoded ahead at the end as at the beginning."""
    set_start_method("fork", force=True)  # the default, of the loaders' own processes
    torch.set_num_threads(1)
    iterator = batches()
    next(iterator)  # set-up
    for _ in islice(iterator, WARM_UP):
        pass
    began = time.process_time() + children_cpu_s()
    images = sum(len(images_NCHW) for images_NCHW in islice(iterator, MEASURED))
    sender.send(images / (time.process_time() + children_cpu_s() - began))
    iterator.close()  # type: ignore[attr-defined]


def children_cpu_s() -> float:
    """Return CPU seconds of children that have ended, and of those that run."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return ended.ru_utime + ended.ru_stime + sum(times.user + times.system for times in running)


# Pixels


def describe_errors(sample: Path, side: int) -> str:
    """Say how far crops are from a full decode with a float64 resize of the same crop."""
    pictures = sorted(path for path in sample.rglob("*") if path.is_file())
    decibels = []
    for number, picture in enumerate(pictures):
        with open_image_file(picture) as opened:
            pixels_CHW = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1).double()
        ratio_N = torch.tensor([pixels_CHW.shape[2] / pixels_CHW.shape[1]])
        draws_N4 = torch.rand(1, 4, generator=torch.Generator().manual_seed(number))
        sides_N2, centers_N2 = crop_boxes(draws_N4, RandomResizedCrop(side, MIN_SCALE, ratio_N))
        left, top, width, height = torch.cat([(1 + centers_N2 - sides_N2) / 2, sides_N2], dim=1)[0].tolist()
        crop_HWC = decode_crop(partial(open_image_file, picture), picture, (left, top, width, height), side)
        rows_SH = triangle_weights(pixels_CHW.shape[1], top, height, side)
        columns_SW = triangle_weights(pixels_CHW.shape[2], left, width, side)
        exact_HWC = (rows_SH @ pixels_CHW @ columns_SW.T).permute(1, 2, 0)
        error = ((crop_HWC.double() - exact_HWC) ** 2).mean().item()
        decibels.append(10 * math.log10(255**2 / max(error, 1e-9)))
    fifth, median = np.percentile(decibels, [5, 50])
    return (
        f"{side} px, pixels beside a full decode and an antialiased float64 resize of the same crop: median "
        f"{median:.1f} dB, 5th percentile {fifth:.1f} dB (bound ≥ 30: {verdict(fifth >= 30)})"
    )


def triangle_weights(pixels: int, start: float, length: float, count: int) -> torch.Tensor:
    """Return the weight of each of a line's pixels in each of `count` outputs over a part of it, given as fractions."""
    step = length * pixels / count
    output_S = start * pixels + (torch.arange(count, dtype=torch.float64) + 0.5) * step
    pixel_P = torch.arange(pixels, dtype=torch.float64) + 0.5
    weights_SP = (1 - (pixel_P - output_S[:, None]).abs() / max(step, 1.0)).clamp_(min=0)
    return weights_SP / weights_SP.sum(1, keepdim=True)


# At ImageNet's size


def extrapolate(rates: dict[int, float], starts_s: list[float], image_bytes: float) -> list[str]:
    """Say what the figures mean for ImageNet on a machine with eight GPUs; every assumption is in the lines.

    rates        images/s of one core, by pixels a side
    starts_s     seconds to the first step, for each of SIZES
    image_bytes  of a picture in a shard
    """
    per_image_s = max(0.0, starts_s[1] - starts_s[0]) / (SIZES[1] - SIZES[0])
    first_s = starts_s[1] + per_image_s * (IMAGENET_IMAGES - SIZES[1])
    gigabytes = IMAGENET_IMAGES * image_bytes / 1e9
    window = SHUFFLED_TOGETHER * DEFAULT_PER_SHARD * image_bytes / 1e9
    decoded = ", ".join(
        f"{rate * GPUS * CORES_PER_GPU:,.0f} images/s at {side} px, an epoch in "
        f"{IMAGENET_IMAGES / (rate * GPUS * CORES_PER_GPU):.0f} s"
        for side, rate in rates.items()
    )
    decoding = (
        f"extrapolated to {IMAGENET_IMAGES:,} pictures and {GPUS} GPUs with {CORES_PER_GPU} cores each, if rates grow "
        f"with the cores, and cores are like these: {decoded}"
    )
    starting = (
        f"extrapolated first step: {first_s:.0f} s from the disk, if the start grows with the pictures as from "
        f"{SIZES[0]:,} to {SIZES[1]:,} and all ranks have their own cores"
    )
    streaming = (
        f"extrapolated streaming, if the machine gets {NETWORK_GBIT_S} Gbit/s from S3: {gigabytes:.0f} GB in "
        f"{gigabytes * 8 / NETWORK_GBIT_S:.0f} s an epoch; the first step waits for {SHUFFLED_TOGETHER} shards, at "
        f"{DEFAULT_PER_SHARD:,} pictures each {window:.1f} GB, {window * 8 / NETWORK_GBIT_S:.1f} s"
    )
    return [decoding, starting, streaming]
