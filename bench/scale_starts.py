# SPDX-License-Identifier: Apache-2.0
"""Seconds to the first step of a run on shards, cold and resumed, and its memory, for `trainer_scale`."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from shoestring_trainer.agent.launch_env import rank_environment
from shoestring_trainer.training.data.shard_index import map_samples
from shoestring_trainer.training.data.shard_list import INDEX_FILE, SAMPLES_FILE, Shard, read_shard_index

from bench.scale_loaders import PACKAGES, WORKERS
from bench.trainer_cpu import load
from tests.trainer.data_sync.bucket_server import BUCKET, Bucket, Object, serving

SIZES, REPEATS, STEPS = (20_000, 200_000), 3, 3
MAX_START_S, MAX_BYTES, LATENCY_S = 10.0, 100.0, 0.03
START_TIMEOUT_S = 300.0
NETWORK = ("imagefolder/any", "model=resnet9", "width=4", "image_size=64", "batch_size=32", "epochs=1")
"""A network whose step takes little: its recipe has random crops, which need most memory."""


def measure_starts(folder: Path, shards: Path) -> tuple[list[str], list[float]]:
    """Return the lines of the report, and the median seconds to the first step for each of SIZES.

    shards  whose images are repeated until there are so many
    """
    lines, used, starts_s = [], [], []
    for images in SIZES:
        large = link_shards(shards, folder / str(images), images)
        measured = [measure_size(large, folder, f"run-{images}-{number}") for number in range(REPEATS)]
        cold, resumed, streamed, again, memory = zip(*measured, strict=True)
        used.append(statistics.median(memory))
        starts_s.append(statistics.median(cold))
        for place, first, later in [
            ("on the disk, out of the page cache", cold, resumed),
            ("streamed, with nothing on the disk before", streamed, again),
        ]:
            lines.append(
                f"{images:,} pictures, {len(list(large.glob('*.tar'))):,} shards {place}: first step {seconds(first)} "
                f"after the start of the process, {seconds(later)} when it resumes within an epoch (bound < "
                f"{MAX_START_S:.0f} s: {verdict(max(*first, *later) < MAX_START_S)}; {load()})"
            )
    growth = (used[1] - used[0]) / (SIZES[1] - SIZES[0])
    described = (
        f"memory of a rank and its workers (medians; libraries, which all processes share, don't count): "
        f"{used[0] / 1e6:.0f} MB and {used[1] / 1e6:.0f} MB, {growth:.0f} bytes a picture (bound ≤ {MAX_BYTES:.0f}: "
        f"{verdict(growth <= MAX_BYTES)})"
    )
    return [*lines, described], starts_s


def measure_size(shards: Path, folder: Path, name: str) -> tuple[float, float, float, float, int]:
    """Return seconds to the first step, from the disk and resumed, the same streamed, and the memory of the first."""
    run = folder / name
    cold_s, memory = start([*NETWORK, f"data.train={shards}", "--output-dir", str(run)], run, cold=shards)
    resumed_s, _ = start([str(run)], run, cold=shards)
    streamed_s, again_s = start_streamed(shards, folder, name)
    print(
        f"{name}: {cold_s:.1f} s, resumed {resumed_s:.1f} s, streamed {streamed_s:.1f} s, resumed {again_s:.1f} s, "
        f"{memory / 1e6:.1f} MB",
        flush=True,
    )
    return cold_s, resumed_s, streamed_s, again_s, memory


def seconds(measured: Sequence[float]) -> str:
    return f"{' '.join(f'{one:.1f}' for one in measured)} s"


def verdict(holds: bool) -> str:
    return "holds" if holds else "MISSED"


def start_streamed(shards: Path, folder: Path, name: str) -> tuple[float, float]:
    """Measure the start of a run whose shards are streamed, with nothing on the disk before, and of its resumption."""
    run, cache = folder / f"{name}-streamed", folder / f"{name}-cache"
    with serving() as bucket:
        bucket.delay_s = LATENCY_S
        put_mapped(bucket, shards, "set")
        environment = {**bucket.environment, "XDG_CACHE_HOME": str(cache)}
        place = [f"data.train=s3://{BUCKET}/set", "data.stream=true"]
        first_s, _ = start([*NETWORK, *place, "--output-dir", str(run)], run, environment)
        again_s, _ = start([str(run)], run, environment)
    shutil.rmtree(cache)
    return first_s, again_s


def put_mapped(bucket: Bucket, shards: Path, prefix: str) -> None:
    """Put files of shards into the bucket without reading them."""
    for path in shards.iterdir():
        if path.suffix in (".tar", ".json", ".npy"):
            with path.open("rb") as file:
                content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            stored = bucket.objects[f"{prefix}/{path.name}"] = Object(content)
            stored.etag = f'"{path.name}"'  # S3 knows it; the stand-in would compute it from gigabytes


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
            name, first = f"{shard.split}-{len(linked):06d}.tar", copy * len(rows) + shard.first
            linked.append(replace(shard, name=name, first=first))
            (folder / name).hardlink_to(shards / shard.name)
    np.save(folder / SAMPLES_FILE, np.concatenate(parts))
    digest = hashlib.sha256((folder / SAMPLES_FILE).read_bytes()).hexdigest()
    changed = index.model_copy(update={"shards": linked, "samples_sha256": digest})
    (folder / INDEX_FILE).write_text(changed.model_dump_json())
    return folder


def start(
    arguments: list[str], run: Path, variables: dict[str, str] | None = None, *, cold: Path | None = None
) -> tuple[float, int]:
    """Train until some steps are done; return the seconds to the first and the memory of all processes then.

    cold  a folder whose files are dropped from the page cache before
    """
    environment = os.environ | rank_environment(1, WORKERS) | {"PYTHONPATH": PACKAGES} | (variables or {})
    before, first_s = count_lines(run / "metrics.jsonl"), 0.0
    for path in cold.iterdir() if cold else ():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "shoestring_trainer", "train", *arguments], env=environment, stdout=subprocess.DEVNULL
    )
    while (steps := count_lines(run / "metrics.jsonl") - before) < STEPS:
        if process.poll() is not None or time.monotonic() - began > START_TIMEOUT_S:
            process.kill()
            sys.exit(f"a run has not come to step {STEPS} within {START_TIMEOUT_S:.0f} s: {' '.join(arguments)}")
        first_s = first_s or (time.monotonic() - began if steps else 0.0)
        time.sleep(0.02)
    first_s = first_s or time.monotonic() - began
    parent = psutil.Process(process.pid)
    memory = sum(map(memory_bytes, (parent, *parent.children(recursive=True))))
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    return first_s, memory


def memory_bytes(process: psutil.Process) -> int:
    """Return a process's share of its anonymous and shared memory, and of its map of the shards' index."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    kilobytes = sum(int(line.split()[1]) for line in rollup if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    index = sum(one.pss for one in process.memory_maps() if one.path.endswith(SAMPLES_FILE))
    return 1024 * kilobytes + index


def count_lines(file: Path) -> int:
    lines = file.read_text().splitlines() if file.exists() else []
    return sum("train/loss" in line for line in lines)
