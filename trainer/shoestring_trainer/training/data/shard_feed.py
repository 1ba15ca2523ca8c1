# SPDX-License-Identifier: Apache-2.0
"""Streamed shards as the training loop sees them: asked for in the order of their use, and there before a step.

Ranks wait here, for files and then for each other by the store, without a deadline. In a collective the patience of
the backend would end the job while one machine's download takes long.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import monotonic

from shoestring_trainer.data_sync.shard_requests import ShardRequests, ShardsUnavailable
from shoestring_trainer.training.data.shard_order import ShardOrder, Window
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.errors import DataError


class ShardFeed:
    """Asks for the shards of a run.

    samples     of the whole run, epoch after epoch
    val_shards  that evaluations use
    peers       the ranks, which wait for each other

    What waits raises StopOrdered if a rank is asked to stop meanwhile.
    """

    def __init__(
        self, requests: ShardRequests, order: ShardOrder, val_shards: Sequence[int], samples: int,
        peers: DistributedContext,
    ) -> None:  # fmt: skip
        self.order = order
        self._requests, self._val_shards, self._peers = requests, list(val_shards), peers
        self._samples, self._last_epoch = samples, (samples - 1) // order.samples_per_epoch
        self._announced: Window | None = None
        self._ready: Window | None = None
        self._waits = 0

    def begin(self, start: int) -> float:
        """Wait for the shard whose images set up the run; return the seconds.

        What training needs from sample `start` of the stream on is asked for too, to come while the run is set up.
        """
        first = [self.order.first_shard]
        if start < self._samples:
            self._announced = self.order.windows(start, 1)[0]
        self._announce(first)
        return self._wait(first)

    def before_batch(self, start: int, size: int) -> float:
        """Wait for the shards of a global batch, samples `start` to `start + size` of the stream; return the seconds.

        All ranks wait in the same steps: the first that reach a window of shards.
        """
        windows = self.order.windows(start, size)
        if windows[0] != self._announced:
            self._announced = windows[0]
            self._announce([])
        new = [window for window in windows[:2] if self._ready is None or window > self._ready]
        if not new:
            return 0.0
        self._ready = new[-1]
        return self._wait([shard for window in new for shard in self.order.window_shards(window)])

    def before_evaluation(self) -> float:
        """Wait for the shards of the validation images; return the seconds."""
        self._announce(self._val_shards)
        return self._wait(self._val_shards)

    def after_evaluation(self) -> None:
        """Ask for what training goes on with."""
        self._announce([])

    def _announce(self, first: Sequence[int]) -> None:
        if self._announced is None:  # an evaluation before any step
            return self._requests.announce(first)
        epoch = self._announced.epoch
        following = self.order.shards(epoch + 1).tolist() if epoch < self._last_epoch else []
        upcoming = [*first, *self.order.upcoming(self._announced), *self._val_shards, *following]
        self._requests.announce(list(dict.fromkeys(upcoming)))

    def _wait(self, shards: Sequence[int]) -> float:
        began = monotonic()
        self._waits += 1
        what = f"shards/{self._waits}"
        try:
            self._requests.wait_for(shards, partial(self._peers.is_stopping, what))
        except ShardsUnavailable as error:
            raise DataError(str(error)) from error
        for shard in shards:
            self._requests.received(shard)
        self._peers.wait_for_peers(what)
        return monotonic() - began
