# SPDX-License-Identifier: Apache-2.0
"""One training step: gradients accumulated over micro-batches and averaged over ranks, then the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.checkpoint.state import TrainingState
from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.distributed.context import DistributedContext, PendingAllReduce
from shoestring_trainer.training.hooks import HookContext, load_hooks
from shoestring_trainer.training.hyperparam_schedule import StepHyperparams
from shoestring_trainer.training.models.batch_norm_error import name_batch_norm_error
from shoestring_trainer.training.models.compiler import compiled
from shoestring_trainer.training.optim.noise_scale import GradientNoiseScale
from shoestring_trainer.training.optim.optimizers import build_optimizer, set_hyperparams
from shoestring_trainer.training.optim.weight_average import build_weight_average
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.randomness import RankSamples, seed_dropout
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.setup import Setup

MIN_LOSS_SCALE = 2.0**-14
"""A loss scale below this has been halved thirty times without one finite gradient: the loss itself is not finite."""


@dataclass(frozen=True)
class StepResult:
    """The result of one step, the same on all ranks.

    loss            mean over the batch; NaN if the step was skipped
    stop_requested  some rank was asked to stop
    overflowed      in fp16: some gradient was not finite, and the optimizer step was skipped
    diverged        the loss is not finite; in fp16: gradients still overflow at the lowest loss scale
    noise_scale     gradient noise scale in images, if it was measured and there is an estimate
    """

    loss: float
    stop_requested: bool
    overflowed: bool = False
    diverged: bool = False
    noise_scale: float | None = None


class Trainer:
    """The model and everything that changes it; `state` is all of that together, for checkpoints.

    skip            steps whose batches are skipped
    stop_requested  returns whether this rank was asked to stop
    """

    def __init__(self, setup: Setup, skip: Set[int], stop_requested: Callable[[], bool]) -> None:
        self.distributed, self.settings, self.precision = setup.distributed, setup.settings, setup.precision
        self.model, self._seed, self._loader = setup.model, setup.seed, setup.loader
        self._stop_requested = stop_requested
        self.scaler = build_grad_scaler(self.distributed, self.precision, self.settings)
        self.optimizer = build_optimizer(self.model, self.settings, uses_grad_scaler=self.scaler.is_enabled())
        self._ddp = build_ddp(self.model, self.distributed, self._loader.dataset, self.settings)
        self._forward = compiled(self._ddp, self.settings.compile)
        self.optimizer.zero_grad()
        self.average = build_weight_average(self.model, self.settings)
        self.state = TrainingState(self.model, self.optimizer, self.scaler, setup.identity, self.average, set(skip))
        self._noise = GradientNoiseScale(self.model, self.distributed)
        self.hooks = load_hooks(
            self.settings.hooks_file,
            classes=len(self._loader.dataset.classes),
            has_peers=self.distributed.world_size > 1,
        )
        self.hook_context = HookContext(self.model, self.optimizer, self.settings, self.distributed.rank, step=0)

    def train_step(self, samples: RankSamples, batch: int, hyperparams: StepHyperparams) -> StepResult:
        """Train step `hook_context.step` with this rank's share of a batch of `batch` images.

        An overflow counts as a step: its samples are not seen again.
        """
        set_hyperparams(self.optimizer, hyperparams)
        seed_dropout(self._seed, self.hook_context.step, self.distributed.device)
        world_size = self.distributed.world_size
        every = self.settings.noise_scale_every_steps
        measure_noise = every > 0 and self.hook_context.step % every == 0 and batch >= 2 * world_size
        count = self.distributed.micro_batch_count(batch, self.settings.micro_batch_size)
        micro_batches = samples.split(max(count, 2 if measure_noise else 1))
        scale = self.scaler.get_scale()
        # what the gradients of the mean loss are multiplied by
        gradient_factor = scale * (batch if self.settings.sum_loss else 1)

        batch_loss = torch.zeros((), dtype=torch.float64, device=self.distributed.device)
        for micro_batch in micro_batches:
            last = micro_batch is micro_batches[-1]
            images_NCHW, labels_N = self.hooks.on_batch(self.hook_context, *self._loader.load_batch(*micro_batch))
            with self.distributed.sync_gradients(self._ddp, when=last):
                loss = self._loss(images_NCHW, labels_N)
                batch_loss += loss.detach().double() / batch
                if last:
                    pending = self._all_reduce_async(batch_loss)  # overlaps with the backward pass
                # DDP averages over ranks; × world_size makes it the global batch's sum, however ranks share it
                self.scaler.scale(loss * (world_size / (1 if self.settings.sum_loss else batch))).backward()
            if measure_noise and micro_batch is micro_batches[0]:
                share = len(micro_batch[0])
                self._noise.add_micro_batch(share, gradient_factor * world_size * share / batch)
        noise_scale = self._noise.update(batch, gradient_factor) if measure_noise else None
        self._step_optimizer()
        mean_loss, stop_requests = pending.wait()
        new_scale = self.scaler.get_scale()
        diverged = new_scale < MIN_LOSS_SCALE if self.scaler.is_enabled() else not math.isfinite(mean_loss)
        return StepResult(mean_loss, bool(stop_requests), new_scale < scale, diverged, noise_scale)

    def skip_step(self) -> StepResult:
        """Count a step without training on its batch, which made the loss non-finite in an earlier generation."""
        no_loss = torch.full((), math.nan, dtype=torch.float64, device=self.distributed.device)
        loss, stop_requests = self._all_reduce_async(no_loss).wait()
        return StepResult(loss, bool(stop_requests))

    def _loss(self, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        """Return the loss, summed over the images."""
        with self.precision.autocast(self.distributed.device), name_batch_norm_error(images_NCHW):
            logits_NK = self._forward(images_NCHW.contiguous(memory_format=torch.channels_last))
        smoothing = self.settings.label_smoothing
        return F.cross_entropy(logits_NK.float(), labels_N, label_smoothing=smoothing, reduction="sum")

    def _all_reduce_async(self, loss: Tensor) -> PendingAllReduce:
        """Begin to sum over the ranks: the loss, and how many were asked to stop."""
        return self.distributed.all_reduce_async(torch.stack([loss, loss.new_tensor(self._stop_requested())]))

    def _step_optimizer(self) -> None:
        if "on_pre_optimizer_step" in self.hooks:
            self.scaler.unscale_(self.optimizer)
            self.hooks.call("on_pre_optimizer_step", self.hook_context)
        self.scaler.step(self.optimizer)  # skipped on overflow, by all ranks alike: DDP has averaged the infinities
        self.scaler.update()
        self.optimizer.zero_grad()


def build_grad_scaler(
    distributed: DistributedContext, precision: Precision, settings: Settings
) -> torch.amp.GradScaler:  # fmt: skip
    """Return the loss scaler of fp16. It starts at PyTorch's scale for a mean loss, lower by the batch for a sum."""
    lower_by = round(math.log2(settings.batch_size)) if settings.sum_loss else 0
    return torch.amp.GradScaler(
        distributed.device.type, init_scale=2.0 ** (16 - lower_by), enabled=precision is Precision.FP16
    )


def build_ddp(model: nn.Module, distributed: DistributedContext, data: ImageDataset, settings: Settings) -> nn.Module:
    """Return the model in DDP, with gradient buckets in their final layout.

    DDP rebuilds its buckets after the first backward pass, and with more than two ranks the layout decides in which
    order gradients are summed. One throwaway pass here gives a resumed run the final layout from its first step on.
    """
    ddp = distributed.wrap_ddp(model, settings)
    if distributed.world_size > 1:
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        sample = data.train.images_NCHW[:2].to(distributed.device).float()
        ddp(sample).sum().backward()
        model.load_state_dict(weights)
        model.zero_grad()
    return ddp
