# SPDX-License-Identifier: Apache-2.0
"""What a store does changes how long a gang takes that streams from it, and not what it learns.

    python -m tests.soak.streaming --seed N

Four gloo processes train on streamed shards twice: from a store that replies at once, undisturbed; and from one that
takes two seconds for each reply and refuses every tenth request, while one of the processes, which the seed draws, is
killed within an epoch, and they go on from the newest checkpoint. Both must end with the same bits, and train on each
sample of each epoch once.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from shoestring_trainer.training.cli.sample_audit import audit_samples
from shoestring_trainer.training.results.sample_log import read_sample_log

from tests.trainer.data_sync.bucket_server import serving
from tests.trainer.training.data.test_streamed_shards import TRAIN_IMAGES, prepare, streaming, task_data
from tests.trainer.training.gangs import Gang, gang

LATENCY_S, FAILS_EVERY, PATIENCE_S = 2.0, 10, 900.0
EPOCHS, BATCH, RANKS = 3, 12, 4
TASK = {
    "recipe": "imagefolder/resnet9", "checkpoint": {"every_steps": 3},
    "params": {"epochs": EPOCHS, "width": 4, "batch_size": BATCH, "image_size": 16, "crop_padding": 2, "cutout": 0},
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    seed = parser.parse_args().seed
    folder = Path(tempfile.mkdtemp(prefix="shoestring-streaming-"))
    prove(random.Random(seed), folder)
    shutil.rmtree(folder)  # a broken run's is left to look at
    return 0


def prove(draw: random.Random, folder: Path) -> None:
    """Run both gangs and compare them. Raises AssertionError."""
    shards = prepare(folder)
    began = time.monotonic()
    calm = train(shards, folder / "calm", latency_s=0.0, fails_every=0, kill=None)
    calm_s, began = time.monotonic() - began, time.monotonic()
    step = draw.randrange(4, EPOCHS * TRAIN_IMAGES // BATCH - 4)
    disturbed = train(
        shards, folder / "disturbed", latency_s=LATENCY_S, fails_every=FAILS_EVERY, kill=(step, draw.randrange(RANKS))
    )
    for run in ("calm", "disturbed"):
        audit = audit_samples([read_sample_log(path) for path in folder.glob(f"{run}/*/node-0/samples-rank*.bin")])
        assert audit.passed, audit
        assert [epoch.problems for epoch in audit.epochs] == [[]] * EPOCHS, audit.epochs
    assert disturbed.state_hashes() == calm.state_hashes()
    print(
        f"{calm_s:.0f} s undisturbed, {time.monotonic() - began:.0f} s disturbed, a kill in step {step}: the same bits"
    )


def train(shards: Path, folder: Path, *, latency_s: float, fails_every: int, kill: tuple[int, int] | None) -> Gang:
    """Train to the end; `kill`: once this step is done, and this rank."""
    with serving() as bucket:
        bucket.put_folder(shards, "set/")
        bucket.delay_s, bucket.fails_every = latency_s, fails_every
        with streaming(bucket, folder) as stream:
            task = {**TASK, "data": task_data(stream.folder, stream.requests)}
            resume = None
            if kill:
                step, rank = kill
                with gang(folder / "first", procs=RANKS, **task) as first:
                    first.until_step(step, PATIENCE_S)
                    os.kill(first.rank_pids()[rank], signal.SIGKILL)
                resume = first.checkpoint()
            with gang(folder / "last", procs=RANKS, resume=resume, generation=2, **task) as last:
                codes = last.wait(PATIENCE_S)
                assert not any(codes), last.logs()
    return last


if __name__ == "__main__":
    sys.exit(main())
