# SPDX-License-Identifier: Apache-2.0
"""Loaders of images from shards and from files, for `trainer_scale`: ours, torchvision's, timm's and WebDataset.

Each yields None when it is set up, and then an epoch's batches of normalized float32 images, as its documentation says:
a random resized crop and a flip, decoded by WORKERS processes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from shoestring_core.task import TaskData
from shoestring_trainer.data_sync.shard_streamer import open_stream
from shoestring_trainer.training.data.augment import draws_used
from shoestring_trainer.training.data.batch_loader import BatchLoader
from shoestring_trainer.training.data.shard_list import least_streaming_bytes
from shoestring_trainer.training.data.sources import open_dataset, open_shards
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.randomness import DistributedSampler
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.task import LocalTask

from tests.trainer.data_sync.bucket_server import BUCKET

ROOT = Path(__file__).parents[1]
PEERS, WEBDATASET = ROOT / ".peers" / "webdataset", "webdataset==1.0.2"
PACKAGES = os.pathsep.join(str(path) for path in (ROOT / "core", ROOT / "trainer"))
BATCH, WORKERS, MIN_SCALE = 64, 2, 0.08
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INSTALL_TIMEOUT_S = 120


def our_batches(shards: Path, side: int, data: TaskData | None = None) -> Iterator[Any]:
    """Batches as the training loop loads them, then normalized. `data`: says that the shards are streamed."""
    torch.set_num_threads(WORKERS)
    with _open_loader(shards, side, data) as (loader, settings):
        torch.set_num_threads(1)
        feed, images = loader.dataset.feed, len(loader.dataset.train)
        (phase,) = HyperparamSchedule.from_settings(settings, images).phases
        sampler = DistributedSampler(
            1, images, 0, 1, draws=16, kept_draws=draws_used(settings), order=feed.order.epoch if feed else None
        )
        # of a whole row: in NHWC the inner loop of what is broadcast by channel has three elements
        mean, std = (torch.tensor(values * side).view(1, 1, side, 3).permute(0, 3, 1, 2) for values in (MEAN, STD))
        yield None
        loader.start_phase(phase, (sampler.peek(step * BATCH, BATCH) for step in range(phase.steps)))
        for step in range(phase.steps):
            loader.await_input(step * BATCH, BATCH)
            images_NCHW, _ = loader.load_batch(sampler.batch(step * BATCH, BATCH))
            yield images_NCHW.sub_(mean).div_(std)


def streamed_batches(environment: dict[str, str], folder: Path, side: int) -> Iterator[Any]:
    """As `our_batches`, of shards in the bucket. The process that streams them counts, and nothing is here before; the
    cache is as small as may be, so that no more is downloaded than is used meanwhile."""
    url, store = f"s3://{BUCKET}/set", Path(tempfile.mkdtemp(dir=folder))
    stream = asyncio.run(open_stream(url, store, environment, lambda _: None, cache_bytes=None))
    cache = str(least_streaming_bytes(stream.index.shards))
    process = subprocess.Popen(
        [sys.executable, "-m", "shoestring_trainer", "stream", url, str(store), cache, str(os.getpid())],
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
def _open_loader(shards: Path, side: int, data: TaskData | None) -> Iterator[tuple[BatchLoader, Settings]]:
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


def torchvision_batches(source: Path, side: int, kind: str) -> Iterator[Any]:
    """As in pytorch/examples, imagenet/main.py; `kind`: with transforms of "PIL" images, or v2's of "tensors"."""
    transform = _torchvision_transform(side, kind)
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(source), transform)
    yield None
    for images_NCHW, _ in torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS):
        yield images_NCHW


def _torchvision_transform(side: int, kind: str) -> Any:
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


def timm_batches(source: Path, side: int) -> Iterator[Any]:
    """With the defaults of `create_loader`, but for its color jitter: none of the others has any, and it takes long."""
    from shoestring_trainer.training import vision_compat  # noqa: F401 - makes torchvision importable
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    loader = create_loader(
        create_dataset("", str(source)), (3, side, side), BATCH, is_training=True, color_jitter=0.0,
        num_workers=WORKERS, device=torch.device("cpu"),
    )  # fmt: skip
    yield None
    for images_NCHW, _ in loader:
        yield images_NCHW


def webdataset_batches(shards: Path, side: int) -> Iterator[Any]:
    """As in WebDataset's README."""
    sys.path.insert(0, str(PEERS))
    import webdataset

    transform = _torchvision_transform(side, "PIL")
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
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEERS), WEBDATASET]
    try:
        done = subprocess.run(
            [*command, "braceexpand"], capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"pip has not installed it within {INSTALL_TIMEOUT_S} s"
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
