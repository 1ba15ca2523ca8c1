# SPDX-License-Identifier: Apache-2.0
"""The ranks that train together: joining, and the few collectives the loop needs beside DDP's own."""

from __future__ import annotations

import math
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from shoestring_trainer.training.distributed.shared_batch import share_batch
from shoestring_trainer.training.settings import Settings


@dataclass(frozen=True)
class Arriving:
    """A sum over the ranks that is being made while they do something else."""

    values: Tensor
    work: dist.Work | None

    def read(self) -> list[float]:
        """The sums, once they are there."""
        if self.work:
            self.work.wait()
        numbers: list[float] = self.values.tolist()
        return numbers


@dataclass(frozen=True)
class Gang:
    """This rank's place. A gang of one has no process group, and every collective is the identity."""

    rank: int
    world: int
    local_rank: int
    device: torch.device

    def distribute(self, model: nn.Module, settings: Settings) -> nn.Module:
        """The model whose backward pass averages gradients over all ranks.

        Buffers are not exchanged in training: rank 0's are the run's (`adopt_buffers`), so what it saves is enough."""
        share_batch(model, settings.batch_size, self.rank, self.world, norms=settings.sync_norm)
        if self.world == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        with (
            warnings.catch_warnings()
        ):  # the argument's successor, in newer releases, would still send buffers at first
            warnings.simplefilter("ignore", FutureWarning)
            spread = DistributedDataParallel(
                model, devices, broadcast_buffers=False, gradient_as_bucket_view=True,
                bucket_cap_mb=settings.bucket_mb, static_graph=settings.static_graph,
            )  # fmt: skip
        if settings.half_gradients:
            spread.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return spread

    def parts(self, batch: int, largest: int) -> int:
        """In how many parts of at most `largest` pictures each rank takes its share of a batch, all ranks alike.

        They must be: norms over the whole batch meet in every part. 0: at once.
        """
        parts = math.ceil(math.ceil(batch / self.world) / largest) if largest else 1
        return min(parts, batch // self.world)

    def exchange(self, distributed: nn.Module, when: bool) -> AbstractContextManager[None]:
        """Forward and backward passes inside average gradients over the ranks only `when`; else they add up here."""
        hold_back = isinstance(distributed, DistributedDataParallel) and not when
        return distributed.no_sync() if hold_back else nullcontext()  # type: ignore[operator]

    def adopt_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def start_sum(self, values: Tensor) -> Arriving:
        """Begin to sum `values` over the ranks, in place."""
        return Arriving(values, dist.all_reduce(values, async_op=True) if self.world > 1 else None)

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        self.sum(torch.zeros(1, device=self.device)).item()

    def leave(self) -> None:
        """End collective work, after every rank's last call.

        gloo's connections end with the process: its destructor joins threads under the interpreter's lock, which
        a thread that lets go of a tensor may be waiting for.
        """
        self.wait_for_all()
        if self.world > 1 and self.device.type == "cuda":
            dist.destroy_process_group()


def join_gang() -> Gang:
    """Meet the other ranks that torchrun started, by its environment; without torchrun, a gang of one."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = False  # it may choose another algorithm, and other last bits, after a resume
        torch.use_deterministic_algorithms(True, warn_only=True)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Gang(rank, world, local_rank, device)
