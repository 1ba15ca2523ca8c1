# SPDX-License-Identifier: Apache-2.0
"""Shards are streamed from a bucket while ranks train: as if they were on the disk, whatever the bucket does."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shoestring_core.task import CheckpointFiles, TaskData
from shoestring_trainer.data_sync.errors import DataUnavailable
from shoestring_trainer.data_sync.shard_streamer import ShardStream, ShardStreamer, open_stream
from shoestring_trainer.training.cli.prepare import index_source
from shoestring_trainer.training.cli.sample_audit import audit_samples
from shoestring_trainer.training.data.batch_loader import BatchLoader
from shoestring_trainer.training.data.prepare_shards import prepare_shards
from shoestring_trainer.training.data.shard_list import least_streaming_bytes, read_shard_index
from shoestring_trainer.training.data.shard_order import ShardOrder
from shoestring_trainer.training.data.shard_plan import PrepareOptions
from shoestring_trainer.training.data.sources import open_dataset, open_shards
from shoestring_trainer.training.errors import DataError
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule
from shoestring_trainer.training.randomness import DistributedSampler
from shoestring_trainer.training.results.sample_log import read_sample_log
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.task import LocalTask

from tests.servers import PATIENCE_S, until
from tests.trainer.data_sync.bucket_server import BUCKET, Bucket, Object, serving
from tests.trainer.training.data.sample_images import COLOURS, SINGLE_PROCESS
from tests.trainer.training.gangs import base_environment, gang

URL = f"s3://{BUCKET}/set"
CROPS = Settings(image_size=16, batch_size=16, crop_scale=0.1, flip=True, epochs=2)
TRAIN_IMAGES, VAL_IMAGES, PER_SHARD = 180, 12, 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("shards"))


def prepare(folder: Path) -> Path:
    """Make 45 shards to train on, which are three windows, and 3 to validate on."""
    for number in range(TRAIN_IMAGES + VAL_IMAGES):
        noise = np.random.default_rng(number)
        name, colour = sorted(COLOURS.items())[number % 3]
        pixels = np.clip(np.array(colour) + noise.integers(-30, 30, (24, 20 + number % 9, 3)), 0, 255)
        split = "train" if number < TRAIN_IMAGES else "val"
        path = folder / "source" / split / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)
    options = PrepareOptions(side=64, quality=90, images_per_shard=PER_SHARD, skip_damaged=False)
    prepare_shards(index_source(folder / "source", skip=False), folder / "prepared", options, 1, lambda _: None)
    return folder / "prepared"


@pytest.fixture
def bucket(prepared: Path) -> Iterator[Bucket]:
    with serving() as bucket:
        bucket.put_folder(prepared, "set/")
        yield bucket


@contextmanager
def streaming(bucket: Bucket, store: Path, cache_bytes: int | None = None) -> Iterator[ShardStream]:
    """Serve the requests for shards in a thread, as an agent does beside its ranks."""
    stream = asyncio.run(open_stream(URL, store, bucket.environment, ignore, cache_bytes=cache_bytes))
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = Future()

    async def serve() -> None:
        begun.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        with suppress(asyncio.CancelledError):
            await ShardStreamer(stream, ignore).run()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    loop, task = begun.result()
    try:
        yield stream
    finally:
        with suppress(RuntimeError):  # it has failed, and its loop has ended
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def ignore(message: str) -> None:
    """Discard a report."""


def task_data(folder: Path, requests: Path) -> dict:
    return {"train": str(folder), "format": "imagefolder", "source": URL, "stream": True, "requests": str(requests)}


def batches(
    folder: Path, requests: Path, first_step: int = 0, settings: Settings = CROPS
) -> list[tuple[torch.Tensor, ...]]:
    """Return the batches of a run from a step on, as the loop loads them, and then the validation images."""
    manifest = folder.with_name("step.json")
    manifest.write_text(json.dumps({"step": first_step}))
    task = LocalTask(
        format=1, folder=folder.parent, job="job", generation=1, recipe="imagefolder/any", seed=1,
        data=TaskData(**task_data(folder, requests)),
        resume=CheckpointFiles(manifest.with_suffix(".data"), manifest) if first_step else None,
    )  # fmt: skip
    opened = open_shards("imagefolder", task, settings, SINGLE_PROCESS)
    assert opened
    with closing(opened):
        loader = BatchLoader(
            open_dataset("imagefolder", task, 1, settings, SINGLE_PROCESS, opened), settings, SINGLE_PROCESS.device
        )
        data = loader.dataset
        assert data.feed
        (phase,) = HyperparamSchedule.from_settings(settings, len(data.train)).phases
        size = phase.batch_size
        sampler = DistributedSampler(1, len(data.train), 0, 1, draws=16, order=data.feed.order.epoch)
        loader.start_phase(phase, (sampler.peek(step * size, size) for step in range(first_step, phase.end_step)))
        loaded = []
        for step in range(first_step, phase.end_step):
            loader.await_input(step * size, size)
            loaded.append(loader.load_batch(sampler.batch(step * size, size)))
        data.feed.before_evaluation()
        return [*loaded, (data.val.images_NCHW[:], data.val.labels_N)]


OPEN_AND_FAIL = """
import sys
from pathlib import Path
from shoestring_trainer.training.data.shard_list import read_shard_index
from shoestring_trainer.training.data.sharded_dataset import ShardedDataset
from shoestring_trainer.training.settings import Settings

folder = Path(sys.argv[1])
shards = ShardedDataset(
    folder, read_shard_index(folder), Settings(), world_size=1, processes=1, is_on_gpu=False
)
sys.exit("something failed")
"""


def test_a_program_that_fails_ends_though_its_decoders_ignore_signals(prepared: Path):
    """multiprocessing would send them SIGTERM, and wait forever."""
    command = [sys.executable, "-c", OPEN_AND_FAIL, str(prepared)]
    ended = subprocess.run(command, env=base_environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert (ended.returncode, ended.stderr.strip()) == (1, "something failed")


def least_cache(prepared: Path) -> int:
    return least_streaming_bytes(read_shard_index(prepared).shards)


def test_batches_are_those_of_shards_on_the_disk_whatever_the_bucket_does_within_the_smallest_cache(
    bucket: Bucket, prepared: Path, tmp_path: Path
):
    """Two epochs of 48 shards, of which 32 fit, with slow replies, of which a tenth fail and some break off."""
    bucket.delay_s, bucket.fails_every, bucket.truncated = 0.005, 10, 3
    limit = least_cache(prepared)
    with streaming(bucket, tmp_path, limit) as stream:
        streamed = batches(stream.folder, stream.requests)
        kept = sum(path.stat().st_size for path in stream.folder.glob("*.tar"))
    assert kept <= limit
    again = len(bucket.requested_keys) - len(set(bucket.requested_keys))
    assert again > 25  # of which a dozen are retries: shards were deleted, and downloaded for the second epoch
    local = batches(prepared, tmp_path / "requests")
    assert len(streamed) == len(local) == math.ceil(2 * TRAIN_IMAGES / 16) + 1
    for ours, theirs in zip(streamed, local, strict=True):
        assert all(torch.equal(*columns) for columns in zip(ours, theirs, strict=True))
    assert not list(stream.requests.iterdir())


def test_a_run_resumed_within_an_epoch_downloads_nothing_of_what_went_before(bucket: Bucket, tmp_path: Path):
    with streaming(bucket, tmp_path) as stream:
        resumed = batches(stream.folder, stream.requests, 6, replace(CROPS, batch_size=20, epochs=1))
    order = ShardOrder(1, torch.full((TRAIN_IMAGES // PER_SHARD,), PER_SHARD), TRAIN_IMAGES)
    assert len(resumed) == 3 + 1
    downloaded = {stream.index.shards[number].name for number in order.upcoming(order.windows(6 * 20, 1)[0])}
    first, val = {"train-000000.tar"}, {f"val-{number:06d}.tar" for number in range(3)}
    read = {key.removeprefix("set/") for key in bucket.requested_keys} - {"shards.json", "shards.npy"}
    assert len(downloaded) == 15
    assert read == downloaded | first | val


def damage(content: bytes) -> bytes:
    return content[:900] + b"damaged" + content[907:]


def test_a_damaged_shard_ends_the_run_with_a_message(bucket: Bucket, tmp_path: Path):
    bucket.put("set/train-000000.tar", damage(bucket.objects["set/train-000000.tar"].content))
    with streaming(bucket, tmp_path) as stream:
        message = r"the shard train-000000\.tar in s3://images/set has another SHA-256 .* upload the prepared"
        with pytest.raises(DataError, match=message):
            batches(stream.folder, stream.requests)


def test_a_disk_that_fills_up_while_shards_are_streamed_ends_the_run_with_a_message(bucket: Bucket, tmp_path: Path):
    opened = asyncio.run(open_stream(URL, tmp_path, bucket.environment, ignore, cache_bytes=None))
    drafts = opened.folder.with_suffix(".drafts")
    (drafts / "left").touch()
    with streaming(bucket, tmp_path) as stream:
        until(lambda: not (drafts / "left").exists())  # what an earlier run has left has been deleted
        for shard in stream.index.shards:
            (drafts / shard.name).symlink_to("/dev/full")
        with pytest.raises(DataError, match=r"can't be written to .* \(No space left on device\); lower data\.cache"):
            batches(stream.folder, stream.requests)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop("set/shards.npy"), "holds no shards.json and shards.npy, so it can't be streamed"),
        (lambda files: files.pop("set/train-000003.tar"), r"the shard train-000003\.tar is missing in s3://images/set"),
        (lambda files: files.update({"set/val-000001.tar": Object(b"short")}), "has 5 bytes instead of .* truncated"),
        (lambda files: files.update({"set/shards.json": Object(b"{}")}), r"shards\.json is damaged, or no index"),
    ],
)
def test_a_bucket_that_cant_be_streamed_is_refused_before_training(bucket: Bucket, tmp_path: Path, change, message):
    change(bucket.objects)
    with pytest.raises(DataUnavailable, match=message), streaming(bucket, tmp_path):
        pass


def test_a_cache_that_is_too_small_is_refused(bucket: Bucket, prepared: Path, tmp_path: Path):
    with (
        pytest.raises(DataUnavailable, match=r"evaluated in parts of up to .*raise data\.cache"),
        streaming(bucket, tmp_path, least_cache(prepared) - 1),
    ):
        pass


def test_four_ranks_of_which_one_is_killed_go_on_and_train_on_each_sample_once(bucket: Bucket, tmp_path: Path):
    params = {"epochs": 2, "width": 4, "batch_size": 12, "image_size": 16, "crop_padding": 2, "cutout": 0}
    options = {"recipe": "imagefolder/resnet9", "params": params, "checkpoint": {"every_steps": 3}}
    bucket.fails_every = 10
    with streaming(bucket, tmp_path) as stream:
        data = task_data(stream.folder, stream.requests)
        with gang(tmp_path / "first", procs=4, data=data, **options) as first:
            first.until_step(6)
            os.kill(first.rank_pids()[2], signal.SIGKILL)
        with gang(
            tmp_path / "second", procs=3, data=data, resume=first.checkpoint(), generation=2, **options
        ) as second:
            assert second.wait() == [0, 0, 0], second.logs()
    logs = [read_sample_log(path) for path in sorted(tmp_path.glob("*/node-0/samples-rank*.bin"))]
    found = audit_samples(logs)
    assert found.passed
    assert [epoch.problems for epoch in found.epochs] == [[], []]
    assert [generation.world_size for generation in found.generations] == [4, 3]
    last = second.metrics()[-1]
    assert last["step"] == 2 * TRAIN_IMAGES // 12
    assert last["v"].keys() >= {"stall/download_s", "stall/decode_s", "stall/upload_s"}
    result = second.events("checkpoint")[-1]["result"]
    assert result["stall/decode_s"] >= last["v"]["stall/decode_s"]
