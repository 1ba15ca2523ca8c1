# SPDX-License-Identifier: Apache-2.0
"""torch.distributed for the training loop: process group, DDP, and the few collectives it needs beside DDP's own."""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from shoestring_core.task import Device
from shoestring_core.wording.units import counted
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from shoestring_trainer.training.distributed.global_batch_layers import use_global_batch
from shoestring_trainer.training.errors import MissingGpuError
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.stop_listener import StopOrdered

PEER_POLL_S, NOTE_INTERVAL_S = 0.005, 60.0


@dataclass(frozen=True)
class PendingAllReduce:
    """A sum over the ranks that runs in the background."""

    values: Tensor
    work: dist.Work | None

    def sums(self) -> Tensor:
        """Return the sums. On a GPU its stream waits for them, not the host."""
        if self.work:
            self.work.wait()
        return self.values


@dataclass(frozen=True)
class DistributedContext:
    """This rank's place among the ranks. A single process has no process group: every collective is the identity.

    stop_requested  returns whether this rank was asked to stop
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    stop_requested: Callable[[], bool] = lambda: False

    def wrap_ddp(self, model: nn.Module, settings: Settings) -> nn.Module:
        """Return the model with a backward pass that averages gradients over all ranks.

        DDP doesn't broadcast buffers in training: rank 0's are the run's (`broadcast_buffers`), so saving rank 0's is
        enough.
        """
        use_global_batch(model, settings.batch_size, self.rank, self.world_size, norms=settings.sync_batch_norm)
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # newer releases deprecate broadcast_buffers, but its successor still broadcasts once at the start
            warnings.simplefilter("ignore", FutureWarning)
            ddp = DistributedDataParallel(
                model, devices, broadcast_buffers=False, gradient_as_bucket_view=True,
                bucket_cap_mb=settings.bucket_cap_mb, static_graph=settings.static_graph,
            )  # fmt: skip
        if settings.fp16_allreduce:
            ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return ddp

    def micro_batch_count(self, batch: int, largest: int) -> int:
        """Into how many micro-batches of at most `largest` images each rank splits its share of a batch; 0: no limit.

        The count is the same on all ranks, as norms over the global batch communicate in every micro-batch.
        """
        count = math.ceil(math.ceil(batch / self.world_size) / largest) if largest else 1
        return min(count, batch // self.world_size)

    def micro_batch_sizes(self, batch: int, largest: int) -> tuple[int, int]:
        """The smaller and the larger size of this rank's micro-batches of a batch, as `Samples.split` makes them."""
        share = batch * (self.rank + 1) // self.world_size - batch * self.rank // self.world_size
        count = self.micro_batch_count(batch, largest)
        return share // count, math.ceil(share / count)

    def sync_gradients(self, ddp: nn.Module, when: bool) -> AbstractContextManager[None]:
        """Context of a forward and backward pass: averages gradients over the ranks only `when`, else accumulates."""
        accumulate = isinstance(ddp, DistributedDataParallel) and not when
        return ddp.no_sync() if accumulate else nullcontext()  # type: ignore[operator]

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of rank 0 to every rank."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def all_reduce_async(self, values: Tensor) -> PendingAllReduce:
        """Begin to sum `values` over the ranks, in place."""
        return PendingAllReduce(values, dist.all_reduce(values, async_op=True) if self.world_size > 1 else None)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum `values` over the ranks, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Return when every rank has called this."""
        self.all_reduce(torch.zeros(1, device=self.device)).item()

    def wait_for_peers(self, what: str) -> None:
        """Return when every rank has called this with the same words, which are used once in the life of the group.

        By the store: in a collective, a rank that takes long would run into the backend's time limit.

        Raises StopOrdered, on all ranks alike, if one of them was asked to stop before it came here.
        """
        stops = self.is_stopping(what)
        if self.world_size == 1:
            if stops:
                raise StopOrdered
            return
        store = _store()
        began = time.monotonic()
        next_note_s = NOTE_INTERVAL_S
        # a vote counts that was cast before its rank came here: these all ranks see
        votes = f"{what}: stop"
        store.add(votes, int(stops))
        store.add(what, 1)
        while (arrived := store.add(what, 0)) < self.world_size:
            self.is_stopping(what)
            if (waited_s := time.monotonic() - began) > next_note_s:
                next_note_s += NOTE_INTERVAL_S
                others = counted(self.world_size - arrived, "other rank")
                sys.stdout.write(f"waiting for the input of {others} ({what}), for {waited_s:.0f} s\n")
                sys.stdout.flush()
            time.sleep(PEER_POLL_S)
        if store.add(votes, 0):
            raise StopOrdered

    def is_stopping(self, what: str) -> bool:
        """Return whether this rank was asked to stop, or another one that waits for it with these words.

        For work that takes long: what is left of it is then left out, and `wait_for_peers` raises StopOrdered.
        """
        requested = self.stop_requested()
        if self.world_size == 1:
            return requested
        store, word = _store(), f"{what}: asked to stop"
        if requested:
            store.set(word, "1")
        return requested or store.check([word])

    def shutdown(self) -> None:
        """End collective work, after every rank's last call.

        gloo's connections end with the process: its destructor joins threads under the interpreter's lock, which
        a thread that releases a tensor may be waiting for.
        """
        self.barrier()
        if self.world_size > 1 and self.device.type == "cuda":
            dist.destroy_process_group()


def _store() -> dist.distributed_c10d.Store:
    """Return what `init_process_group` was given; there is no public name for it."""
    return dist.distributed_c10d._get_default_store()


def find_place(device: Device = "auto", stop_requested: Callable[[], bool] = lambda: False) -> DistributedContext:
    """Return the place that torchrun's environment describes; without RANK, that of a single process.

    Raises MissingGpuError if `device` is cuda and there is none for this rank.
    """
    rank, world_size, local_rank = 0, 1, 0
    if "RANK" in os.environ:
        rank, world_size = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    elif "WORLD_SIZE" in os.environ:
        sys.stderr.write("WORLD_SIZE is set without RANK, so not by torchrun: training in a single process\n")
    return DistributedContext(rank, world_size, local_rank, _choose_device(device, local_rank), stop_requested)


def _choose_device(wanted: Device, local_rank: int) -> torch.device:
    found = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
    if wanted == "cuda" and local_rank >= found:
        raise MissingGpuError(
            f"PyTorch finds no GPU for rank {local_rank} of this machine, which is rented for its GPUs: it finds "
            f"{found} in all. Its driver, or PyTorch's build, may not fit them"
        )
    if found == 0:
        return torch.device("cpu")
    torch.cuda.set_device(device := torch.device("cuda", local_rank))
    return device


def join_process_group(place: DistributedContext) -> None:
    """Return when all ranks have joined. Threads run from here on, so nothing should be forked any more."""
    if place.world_size > 1:
        dist.init_process_group("nccl" if place.device.type == "cuda" else "gloo")
