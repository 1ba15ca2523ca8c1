# SPDX-License-Identifier: Apache-2.0
"""What a rank has before its first step: process group, settings, data, training schedule and initialized model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from shoestring_core import recipes
from torch import nn
from torch.utils import deterministic as deterministic_memory

from shoestring_trainer.terminal import say
from shoestring_trainer.training.data.augment import draws_per_sample, draws_used
from shoestring_trainer.training.data.batch_loader import BatchLoader
from shoestring_trainer.training.data.sharded_dataset import ShardedDataset
from shoestring_trainer.training.data.sources import open_dataset, open_shards
from shoestring_trainer.training.distributed.context import DistributedContext, find_place, join_process_group
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.hyperparam_schedule import HyperparamSchedule, Phase
from shoestring_trainer.training.lazy_dynamo import defer_dynamo
from shoestring_trainer.training.models.input_errors import name_input_errors
from shoestring_trainer.training.models.registry import build_model, init_from_data
from shoestring_trainer.training.optim.weight_average import advise_average
from shoestring_trainer.training.precision import Precision, choose_precision
from shoestring_trainer.training.randomness import DistributedSampler, derive_seed
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.task import LocalTask


@dataclass(frozen=True)
class Setup:
    """A run before its first step, on one rank. `model` is on the rank's device, initialized by the seed.

    shards  the images, if they are in shards
    init_s  seconds in which the network was initialized from images
    """

    distributed: DistributedContext
    recipe: recipes.Recipe
    params: dict[str, Any]
    settings: Settings
    seed: int
    precision: Precision
    loader: BatchLoader
    schedule: HyperparamSchedule
    model: nn.Module
    shards: ShardedDataset | None = None
    init_s: float = 0.0

    def close(self) -> None:
        """End what was started beside this process."""
        if self.shards:
            self.shards.close()

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies the run; its checkpoints hold it."""
        data = self.loader.dataset.fingerprint
        return {"recipe": self.recipe.reference, "params": self.params, "seed": self.seed, "data": data}

    def build_sampler(self) -> DistributedSampler:
        """Return the sampler of this rank."""
        return DistributedSampler(
            self.seed, len(self.loader.dataset.train), self.distributed.rank, self.distributed.world_size,
            samples_per_epoch=self.schedule.samples_per_epoch, alternating_flip=self.settings.alternating_flip,
            draws=draws_per_sample(self.settings), kept_draws=draws_used(self.settings) if self.shards else None,
            device=self.distributed.device, order=feed.order.epoch if (feed := self.loader.dataset.feed) else None,
        )  # fmt: skip


def set_up(task: LocalTask, stop_requested: Callable[[], bool] = lambda: False) -> Setup:
    """Join the process group, open the data and build the network that `task` names.

    stop_requested  returns whether this rank was asked to stop

    Raises TrainerError for what its recipe, parameters or data lack, with the remedy.
    """
    defer_dynamo()
    recipe = recipes.load(task.recipe)
    params = recipes.resolve(task.recipe, task.params)
    settings = Settings.from_params(params)
    distributed = find_place(task.device, stop_requested)
    shards = open_shards(recipe.data.kind, task, settings, distributed)
    join_process_group(distributed)
    seed = int(params["seed"] or 0) if task.seed is None else task.seed
    choose_algorithms(distributed.device, deterministic=settings.deterministic)
    precision = choose_precision(task.precision or str(params["precision"]), distributed.device)

    loader = BatchLoader(
        open_dataset(recipe.data.kind, task, seed, settings, distributed, shards), settings, distributed.device
    )
    data = loader.dataset
    schedule = HyperparamSchedule.from_settings(settings, len(data.train))
    check_batch_sizes(schedule, distributed)
    if distributed.rank == 0:
        for advice in (schedule.advise(settings.batch_size), advise_average(settings, schedule.total_steps)):
            if advice:
                say(advice)

    torch.manual_seed(derive_seed(seed, "weights"))
    model = build_model(**recipe.model, settings=settings, classes=len(data.classes), mean=data.mean, std=data.std)
    began = monotonic()
    init_from_data(model, data.train.images_NCHW, data.max_value)
    init_s = monotonic() - began
    check_batch_norms(model, schedule, distributed, settings, tuple(data.train.images_NCHW.shape[1:]))
    model.to(distributed.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Setup(distributed, recipe, params, settings, seed, precision, loader, schedule, model, shards, init_s)


def check_batch_norms(
    model: nn.Module,
    schedule: HyperparamSchedule,
    distributed: DistributedContext,
    settings: Settings,
    image_CHW: tuple[int, ...],
) -> None:
    """Raise UserError if a batch norm would get a single value a channel, in whatever phase of the run.

    Only an image by itself can be too few. The network runs on one without data, as PyTorch's meta tensors allow.
    """
    if settings.sync_batch_norm and distributed.world_size > 1:
        return
    alone = [phase for phase in schedule.phases if _smallest_micro_batch(phase, distributed, settings) == 1]
    for side in sorted({phase.image_size for phase in alone}):
        channels, height, width = image_CHW if side == 0 else (image_CHW[0], side, side)
        image_NCHW = torch.empty(1, channels, height, width, device="meta")
        network = copy.deepcopy(model).to("meta").train()
        with torch.no_grad(), name_input_errors(image_NCHW), suppress(NotImplementedError, RuntimeError):
            # PyTorch raises these two where an operation has no meta kernel; then the first step is the check.
            network(image_NCHW)


def _smallest_micro_batch(phase: Phase, distributed: DistributedContext, settings: Settings) -> int:
    share = phase.batch_size // distributed.world_size
    count = distributed.micro_batch_count(phase.batch_size, settings.micro_batch_size)
    if settings.noise_scale_every_steps and share >= 2:  # which compares two halves
        count = max(count, 2)
    return share // count


def choose_algorithms(device: torch.device, *, deterministic: bool) -> None:
    """Let a GPU use only algorithms that always give the same bits, or else the fastest. A CPU's always do."""
    if device.type == "cuda":
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        memory: Any = deterministic_memory
        memory.fill_uninitialized_memory = False  # no kernel here reads memory before it is written
        torch.backends.cudnn.benchmark = not deterministic  # it may choose another algorithm after a resume


def check_batch_sizes(schedule: HyperparamSchedule, distributed: DistributedContext) -> None:
    """Raise UserError if a batch has fewer images than there are ranks."""
    smallest = min(phase.batch_size for phase in schedule.phases)
    if smallest < distributed.world_size:
        raise UserError(
            f"batch_size is {smallest}, less than the {distributed.world_size} processes that share it; raise it"
        )
