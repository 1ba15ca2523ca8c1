# SPDX-License-Identifier: Apache-2.0
"""Images per second and core from shards beside torchvision's, timm's and WebDataset's loaders; start and memory.

Shards lie on the disk, and in a stand-in for S3 that replies 30 ms late, from which they are streamed.

    make bench ONLY=trainer_scale SAMPLE=folder of class folders with ImageNet's pictures [COPIES=16] [ROUNDS=3]

The set is the sample's pictures, repeated; the large ones for start and memory are hard links to its shards. What is
compared is CPU time of all processes of a loader over one epoch, so that other load on the machine hardly matters.
WebDataset is installed into `.peers/`, which git ignores.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import mmap
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from shoestring_core.task import TaskData
from shoestring_trainer.agent.launch_env import rank_environment
from shoestring_trainer.data_sync.shard_streamer import open_stream
from shoestring_trainer.training.cli.prepare import index_source
from shoestring_trainer.training.data.augment import RandomResizedCrop, crop_boxes
from shoestring_trainer.training.data.batch_loader import BatchLoader
from shoestring_trainer.training.data.decoding import decode_crop
from shoestring_trainer.training.data.image_files import open_image_file
from shoestring_trainer.training.data.prepare_shards import PrepareOptions, prepare_shards
from shoestring_trainer.training.data.shard_index import map_samples
from shoestring_trainer.training.data.shard_list import INDEX_FILE, SAMPLES_FILE, Shard, read_shard_index
from shoestring_trainer.training.data.sources import open_dataset, open_shards
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.randomness import DistributedSampler
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.task import LocalTask

from bench.trainer_cpu import load
from tests.trainer.data_sync.bucket_server import BUCKET, Bucket, Object, serving

ROOT = Path(__file__).parents[1]
PEERS, WEBDATASET = ROOT / ".peers" / "webdataset", "webdataset==1.0.2"
COPIES, ROUNDS = int(os.environ.get("COPIES", "16")), int(os.environ.get("ROUNDS", "3"))
BATCH, WORKERS, MIN_SCALE = 64, 2, 0.08
BOUNDS = {128: 1.3, 224: 1.2}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES, MAX_START_S, MAX_BYTES = (20_000, 200_000), 10.0, 100.0
LATENCY_S = 0.03
MEASURE_TIMEOUT_S = 1200
IMAGENET_IMAGES, GPUS, CORES_PER_GPU, NETWORK_GBIT_S = 1_281_167, 8, 12, 25
PACKAGES = os.pathsep.join(str(path) for path in (ROOT / "core", ROOT / "trainer"))


def main() -> list[str]:
    if not (sample := os.environ.get("SAMPLE")):
        return ["skipped: it needs pictures of ImageNet's sizes; set SAMPLE to a folder of class folders with some"]
    folder = Path(tempfile.mkdtemp(prefix="shoestring-bench-"))
    try:
        source = repeat_pictures(Path(sample), folder / "pictures")
        began = time.process_time() + children_cpu_s()
        options = PrepareOptions(side=400, quality=90, images_per_shard=100, skip_damaged=False)
        index = prepare_shards(index_source(source, skip=False), folder / "shards", options, WORKERS, lambda _: None)
        images = sum(shard.images for shard in index.shards)
        train_images = sum(index.class_images["train"])
        rate = images / (time.process_time() + children_cpu_s() - began)
        size = sum(shard.bytes for shard in index.shards) / images
        made = (
            f"{train_images:,} pictures ({COPIES} copies of {train_images // COPIES} of ImageNet's, "
            f"{size / 1000:.0f} kB each) and {images - train_images:,} to validate on, "
            f"prepared at {rate:.0f} images/s of one core"
        )
        lines, rates = [made], {}
        for side in BOUNDS:
            compared, rates[side] = compare_loaders(source / "train", folder / "shards", side)
            lines += compared
        # after them: these threads of OpenMP would be missing in the processes that are forked to be measured
        lines += [describe_errors(Path(sample), side) for side in BOUNDS]
        started, starts_s = measure_starts(folder)
        return [*lines, *started, *extrapolate(rates, starts_s, size)]
    finally:
        shutil.rmtree(folder)


def repeat_pictures(sample: Path, folder: Path) -> Path:
    """Make an image folder of hard links: COPIES of each picture to train on, one to validate on."""
    for picture in sorted(path for path in sample.rglob("*") if path.is_file()):
        val, place = (folder / split / picture.parent.name for split in ("val", "train"))
        for needed in (val, place):
            needed.mkdir(parents=True, exist_ok=True)
        first = Path(shutil.copy(picture, val / picture.name))
        for copy in range(COPIES):
            (place / f"{copy}-{picture.name}").hardlink_to(first)
    return folder


# Throughput


def compare_loaders(source: Path, shards: Path, side: int) -> tuple[list[str], float]:
    """Return the lines of the report, and our images/s of one core from the disk."""
    with serving() as bucket:
        bucket.delay_s = LATENCY_S
        put_mapped(bucket, shards, "set")
        return compare_with_bucket(source, shards, side, bucket)


def compare_with_bucket(source: Path, shards: Path, side: int, bucket: Bucket) -> tuple[list[str], float]:
    loaders: dict[str, Callable[[], Iterator[Any]]] = {
        "ours, from shards": partial(our_batches, shards, side),
        "ours, streamed": partial(streamed_batches, bucket.environment, shards.parent, side),
        "torchvision's ImageFolder and DataLoader": partial(torchvision_batches, source, side, "PIL"),
        "torchvision's v2 transforms on tensors": partial(torchvision_batches, source, side, "tensors"),
        "timm's loader": partial(timm_batches, source, side),
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
            rates[name].append(measure(loaders[name]))
            print(f"{side} px, round {number + 1}: {name}: {rates[name][-1]:.0f} images/s of one core", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ours, streamed = medians.pop(names[0]), medians.pop(names[1])
    lines = [
        f"{side} px, random resized crop and flip: ours {ours:.0f} images/s of one core (median of {ROUNDS}; {load()})",
        f"streamed from an S3 stand-in, {LATENCY_S * 1000:.0f} ms away: {streamed:.0f}, {streamed / ours:.2f}×",
        *(judge(name, ours / rate, rate, 1.1 if "v2" in name else BOUNDS[side]) for name, rate in medians.items()),
        *notes,
    ]
    return lines, ours


def judge(name: str, ratio: float, rate: float, bound: float) -> str:
    return f"{name}: {rate:.0f}; ours {ratio:.2f}× (bound ≥ {bound}: {'holds' if ratio >= bound else 'MISSED'})"


def measure(batches: Callable[[], Iterator[Any]]) -> float:
    """Return images a second of one core: of the CPU time of a process of its own and its workers, after set-up."""
    receiver, sender = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=_measure, args=(batches, sender))
    process.start()
    sender.close()
    if not receiver.poll(MEASURE_TIMEOUT_S):
        process.kill()
        sys.exit(f"an epoch has not ended within {MEASURE_TIMEOUT_S} s")
    rate: float = receiver.recv()
    process.join()
    return rate


def _measure(batches: Callable[[], Iterator[Any]], sender: Any) -> None:
    torch.set_num_threads(1)
    iterator = batches()
    next(iterator)  # set-up
    began, images = time.process_time() + children_cpu_s(), 0
    for images_NCHW in iterator:
        images += len(images_NCHW)
    sender.send(images / (time.process_time() + children_cpu_s() - began))


def children_cpu_s() -> float:
    """Return CPU seconds of children that have ended, and of those that run."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return ended.ru_utime + ended.ru_stime + sum(times.user + times.system for times in running)


def our_batches(shards: Path, side: int, data: TaskData | None = None) -> Iterator[Any]:
    """Yield None when set up, then an epoch's batches as the training loop loads them, normalized as the model does.

    data  says that the shards are streamed
    """
    torch.set_num_threads(WORKERS)
    with open_loader(shards, side, data) as (loader, settings):
        torch.set_num_threads(1)
        feed, images = loader.dataset.feed, len(loader.dataset.train)
        (phase,) = HyperparamSchedule.from_settings(settings, images).phases
        sampler = DistributedSampler(1, images, 0, 1, draws=16, order=feed.order.epoch if feed else None)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        yield None
        loader.start_phase(phase, (sampler.peek(step * BATCH, BATCH) for step in range(phase.steps)))
        for step in range(phase.steps):
            loader.await_input(step * BATCH, BATCH)
            images_NCHW, _ = loader.load_batch(sampler.batch(step * BATCH, BATCH))
            yield images_NCHW.sub_(mean).div_(std)


def put_mapped(bucket: Bucket, shards: Path, prefix: str) -> None:
    """Put files of shards into the bucket without reading them."""
    for path in shards.iterdir():
        if path.suffix in (".tar", ".json", ".npy"):
            with path.open("rb") as file:
                content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            stored = bucket.objects[f"{prefix}/{path.name}"] = Object(content)
            stored.etag = f'"{path.name}"'  # S3 knows it; the stand-in would compute it from gigabytes


def streamed_batches(environment: dict[str, str], folder: Path, side: int) -> Iterator[Any]:
    """As `our_batches`, of shards in the bucket; the process that streams them counts, and nothing is here before."""
    url, store = f"s3://{BUCKET}/set", Path(tempfile.mkdtemp(dir=folder))
    stream = asyncio.run(open_stream(url, store, environment, lambda _: None, cache_bytes=None))
    process = subprocess.Popen(
        [sys.executable, "-m", "shoestring_trainer", "stream", url, str(store), "", str(os.getpid())],
        env=os.environ | environment | {"PYTHONPATH": PACKAGES}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    data = TaskData(train=str(stream.folder), source=url, stream=True, requests=str(stream.requests))
    try:
        yield from our_batches(stream.folder, side, data)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(store)


@contextmanager
def open_loader(shards: Path, side: int, data: TaskData | None) -> Iterator[tuple[BatchLoader, Settings]]:
    settings = Settings(image_size=side, batch_size=BATCH, crop_scale=MIN_SCALE, flip=True)
    task = LocalTask(
        format=1, folder=shards.parent, job="bench", generation=1, recipe="imagefolder/any", seed=1,
        data=data or TaskData(train=str(shards), format="imagefolder"),
    )  # fmt: skip
    place = DistributedContext(0, 1, 0, torch.device("cpu"))
    opened = open_shards("imagefolder", task, settings, place)
    assert opened
    with closing(opened):  # a process of multiprocessing never ends while its own processes ignore SIGTERM
        source = open_dataset("imagefolder", task, 1, settings, place, opened)
        yield BatchLoader(source, settings, place.device), settings


def torchvision_transform(side: int, kind: str) -> Any:
    from shoestring_trainer.training import vision_compat  # noqa: F401 - makes torchvision importable
    from torchvision import transforms
    from torchvision.transforms import v2

    if kind == "tensors":
        return v2.Compose(
            [
                v2.PILToTensor(), v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
            ]
        )  # fmt: skip
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )  # fmt: skip


def torchvision_batches(source: Path, side: int, kind: str) -> Iterator[Any]:
    """As in pytorch/examples, imagenet/main.py."""
    transform = torchvision_transform(side, kind)
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(source), transform)
    yield None
    for images_NCHW, _ in torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS):
        yield images_NCHW


def timm_batches(source: Path, side: int) -> Iterator[Any]:
    """As timm's train.py, without its color jitter, which none of the others does."""
    from shoestring_trainer.training import vision_compat  # noqa: F401 - makes torchvision importable
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    loader = create_loader(
        create_dataset("", str(source)), (3, side, side), BATCH, is_training=True, use_prefetcher=False,
        color_jitter=0.0, num_workers=WORKERS, persistent_workers=False, device=torch.device("cpu"),
    )  # fmt: skip
    yield None
    for images_NCHW, _ in loader:
        yield images_NCHW


def webdataset_batches(shards: Path, side: int) -> Iterator[Any]:
    """As in WebDataset's README."""
    sys.path.insert(0, str(PEERS))
    import webdataset

    transform = torchvision_transform(side, "PIL")
    urls = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=100).shuffle(1000).decode("pil").to_tuple("jpg", "cls")
        .map_tuple(transform, lambda label: label).batched(BATCH)
    )  # fmt: skip
    yield None
    for images_NCHW, _ in webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS):
        yield images_NCHW


def install_webdataset() -> str:
    """Install WebDataset into `.peers/`; return why that failed, empty if it didn't."""
    if PEERS.exists():
        return ""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(PEERS),
        WEBDATASET,
        "braceexpand",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


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
        f"{median:.1f} dB, 5th percentile {fifth:.1f} dB (bound ≥ 30: {'holds' if fifth >= 30 else 'MISSED'})"
    )


def triangle_weights(pixels: int, start: float, length: float, count: int) -> torch.Tensor:
    """Return the weight of each of a line's pixels in each of `count` outputs over a part of it, given as fractions."""
    step = length * pixels / count
    output_S = start * pixels + (torch.arange(count, dtype=torch.float64) + 0.5) * step
    pixel_P = torch.arange(pixels, dtype=torch.float64) + 0.5
    weights_SP = (1 - (pixel_P - output_S[:, None]).abs() / max(step, 1.0)).clamp_(min=0)
    return weights_SP / weights_SP.sum(1, keepdim=True)


# Start and memory


def measure_starts(folder: Path) -> tuple[list[str], list[float]]:
    """Return the lines of the report, and the seconds to the first step for each of SIZES."""
    lines, used, starts_s = [], [], []
    for images in SIZES:
        large = link_shards(folder / "shards", folder / str(images), images)
        run = folder / f"run-{images}"
        params = ["epochs=1", "batch_size=32", "width=4", "image_size=64", "crop_padding=0", f"data.train={large}"]
        first_s, memory = start(["imagefolder/resnet9", *params, "--output-dir", str(run)], run)
        used.append(memory)
        starts_s.append(first_s)
        again_s, _ = start([str(run)], run)
        lines.append(
            f"{images:,} pictures: first step {first_s:.1f} s after the start of the process, {again_s:.1f} s when it "
            f"resumes within an epoch (bound < {MAX_START_S:.0f} s: {judge_start(first_s, again_s)}; {load()})"
        )
        lines.append(start_streamed(large, folder, images, params))
    growth = (used[1] - used[0]) / (SIZES[1] - SIZES[0])
    verdict = "holds" if growth <= MAX_BYTES else "MISSED"
    described = (
        f"memory of a rank and its workers, by PSS: {used[0] / 1e6:.0f} MB and {used[1] / 1e6:.0f} MB, {growth:.0f} "
        f"bytes a picture (bound ≤ {MAX_BYTES:.0f}: {verdict})"
    )
    return [*lines, described], starts_s


def start_streamed(shards: Path, folder: Path, images: int, params: list[str]) -> str:
    """Measure the start of a run whose shards are streamed, with nothing on the disk before, and of its resumption."""
    run = folder / f"run-{images}-streamed"
    with serving() as bucket:
        bucket.delay_s = LATENCY_S
        put_mapped(bucket, shards, "set")
        environment = {**bucket.environment, "XDG_CACHE_HOME": str(folder / f"cache-{images}")}
        place = [f"data.train=s3://{BUCKET}/set", "data.stream=true"]
        given = [param for param in params if not param.startswith("data.")]
        first_s, _ = start(["imagefolder/resnet9", *given, *place, "--output-dir", str(run)], run, environment)
        again_s, _ = start([str(run)], run, environment)
    return (
        f"{images:,} pictures streamed: first step {first_s:.1f} s, {again_s:.1f} s when it resumes within an epoch "
        f"(bound < {MAX_START_S:.0f} s: {judge_start(first_s, again_s)}; {load()})"
    )


def extrapolate(rates: dict[int, float], starts_s: list[float], image_bytes: float) -> list[str]:
    """Say what the figures mean for ImageNet on a machine with eight GPUs; every assumption is in the lines.

    rates        images/s of one core, by pixels a side
    starts_s     seconds to the first step, for each of SIZES
    image_bytes  of a picture in a shard
    """
    per_image_s = max(0.0, starts_s[1] - starts_s[0]) / (SIZES[1] - SIZES[0])
    first_s = starts_s[1] + per_image_s * (IMAGENET_IMAGES - SIZES[1])
    gigabytes = IMAGENET_IMAGES * image_bytes / 1e9
    decoded = ", ".join(
        f"{rate * GPUS * CORES_PER_GPU:,.0f} images/s at {side} px, an epoch in "
        f"{IMAGENET_IMAGES / (rate * GPUS * CORES_PER_GPU):.0f} s"
        for side, rate in rates.items()
    )
    rates_line = (
        f"extrapolated to {IMAGENET_IMAGES:,} pictures and {GPUS} GPUs with {CORES_PER_GPU} cores each, if rates grow "
        f"with the cores, and cores are like these: {decoded}"
    )
    start_line = (
        f"extrapolated first step: {first_s:.0f} s from the disk, if the start grows with the pictures as from "
        f"{SIZES[0]:,} to {SIZES[1]:,}; {gigabytes:.0f} GB stream in {gigabytes * 8 / NETWORK_GBIT_S:.0f} s an epoch, "
        f"if the machine gets {NETWORK_GBIT_S} Gbit/s from S3"
    )
    return [rates_line, start_line]


def judge_start(*seconds: float) -> str:
    return "holds" if max(seconds) < MAX_START_S else "MISSED"


def link_shards(shards: Path, folder: Path, images: int) -> Path:
    """Make a folder of at least so many images, whose shards are hard links to others."""
    index, rows = read_shard_index(shards), map_samples(shards, read_shard_index(shards))
    copies = math.ceil(images / len(rows))
    folder.mkdir()
    linked: list[Shard] = []
    parts = []
    for copy in range(copies):
        part = np.array(rows)
        part["shard"] += len(linked)
        parts.append(part)
        for shard in index.shards:
            number = len(linked)
            linked.append(
                shard.model_copy(
                    update={"name": f"{shard.split}-{number:06d}.tar", "first": copy * len(rows) + shard.first}
                )
            )
            (folder / linked[-1].name).hardlink_to(shards / shard.name)
    np.save(folder / SAMPLES_FILE, np.concatenate(parts))
    digest = hashlib.sha256((folder / SAMPLES_FILE).read_bytes()).hexdigest()
    changed = index.model_copy(update={"shards": linked, "samples_sha256": digest})
    (folder / INDEX_FILE).write_text(changed.model_dump_json())
    return folder


def start(arguments: list[str], run: Path, variables: dict[str, str] | None = None) -> tuple[float, float]:
    """Train until the third step; return the seconds to the first step and the memory of all processes, by PSS."""
    environment = os.environ | rank_environment(1, WORKERS) | {"PYTHONPATH": PACKAGES} | (variables or {})
    before = count_lines(run / "metrics.jsonl")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "shoestring_trainer", "train", *arguments], env=environment, stdout=subprocess.DEVNULL
    )
    first_s = 0.0
    while (steps := count_lines(run / "metrics.jsonl") - before) < 3 and process.poll() is None:
        first_s = first_s or (time.monotonic() - began if steps else 0.0)
        time.sleep(0.02)
    first_s = first_s or time.monotonic() - began
    parent = psutil.Process(process.pid)
    memory = sum(one.memory_full_info().pss for one in (parent, *parent.children(recursive=True)))
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    return first_s, memory


def count_lines(file: Path) -> int:
    lines = file.read_text().splitlines() if file.exists() else []
    return sum("train/loss" in line for line in lines)
