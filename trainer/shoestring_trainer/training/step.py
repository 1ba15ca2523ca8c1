# SPDX-License-Identifier: Apache-2.0
"""One training step: gradients accumulated over micro-batches and averaged over ranks, then the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.checkpoint.state import TrainingState
from shoestring_trainer.training.data.dataset import ImageDataset
from shoestring_trainer.training.distributed.context import DistributedContext, PendingAllReduce
from shoestring_trainer.training.distributed.global_batch_layers import use_global_batch
from shoestring_trainer.training.hooks import HookContext, load_hooks
from shoestring_trainer.training.hyperparam_schedule import Phase, StepHyperparams
from shoestring_trainer.training.models.compiler import compiled
from shoestring_trainer.training.models.input_errors import name_input_errors
from shoestring_trainer.training.optim.muon import Muon
from shoestring_trainer.training.optim.noise_scale import GradientNoiseScale
from shoestring_trainer.training.optim.optimizers import build_optimizer, set_hyperparams
from shoestring_trainer.training.optim.preconditioners import KFAC
from shoestring_trainer.training.optim.weight_average import build_weight_average
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.randomness import Samples, derive_seed, seed_dropout
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.setup import Setup
from shoestring_trainer.training.upload import Download

COMPILING_PASSES = 3


class QueuedStep(NamedTuple):
    """A step that the device has been given.

    numbers      `step_results.CompletedStep` says which
    noise_scale  gradient noise scale in images, if it was measured and there is an estimate
    """

    numbers: Download
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
        self.precision.convert(self.model, self.settings)
        self.optimizer = build_optimizer(self.model, self.settings)
        self._ddp = build_ddp(self.model, self.distributed, self._loader.dataset, self.settings, self.precision)
        self._forward = compiled(self._ddp, self.settings.compile)
        self.optimizer.zero_grad()
        self.average = build_weight_average(self.model, self.settings)
        self.state = TrainingState(
            self.model, self.optimizer, self.scaler, setup.identity, self.average, set(skip), self._loader.dataset.files
        )
        self._noise = GradientNoiseScale(self.model, self.distributed)
        self.hooks = load_hooks(
            self.settings.hooks_file,
            classes=len(self._loader.dataset.classes),
            has_peers=self.distributed.world_size > 1,
        )
        self.hook_context = HookContext(self.model, self.optimizer, self.settings, self.distributed.rank, step=0)
        self._one = torch.ones((), device=self.distributed.device)
        self._stop = torch.zeros((), dtype=torch.float64, device=self.distributed.device)

    def compile_ahead(self, phases: Sequence[Phase]) -> None:
        """Compile the network for every size of image and batch in `phases`, so that no step does; change nothing else.

        Also what Muon computes. The first pass of a size compiles it; CUDA graphs are recorded in the second one and
        replayed from the third.
        """
        if self.settings.compile == "none":
            return
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        channels, side = self._loader.dataset.train.images_NCHW.shape[1:3]
        place, device = self.distributed, self.distributed.device
        sizes = {(phase.batch_size, phase.image_size or side) for phase in phases}
        for batch, size in sorted(sizes):
            use_global_batch(self.model, batch, place.rank, place.world_size, norms=self.settings.sync_batch_norm)
            for images in place.micro_batch_sizes(batch, self.settings.micro_batch_size):
                for _ in range(COMPILING_PASSES):
                    images_NCHW = torch.zeros(images, channels, size, size, device=device)
                    self._loss(images_NCHW, torch.zeros(images, dtype=torch.long, device=device)).backward()
                    self.optimizer.zero_grad()  # K-FAC's covariances too
        self.model.load_state_dict(before)
        if isinstance(self.optimizer, Muon):
            self.optimizer.compile_ahead()

    def train_step(self, samples: Samples, batch: int, hyperparams: StepHyperparams) -> QueuedStep:
        """Train step `hook_context.step` with this rank's share of a batch of `batch` images.

        Nothing here waits for the device, except for hooks, a noise scale, and Shampoo where it updates its roots.
        An overflow counts as a step: its samples are not seen again.
        """
        set_hyperparams(self.optimizer, hyperparams)
        seed_dropout(self._seed, self.hook_context.step, self.distributed.device)
        world_size = self.distributed.world_size
        every = self.settings.noise_scale_every_steps
        measure_noise = every > 0 and self.hook_context.step % every == 0 and batch >= 2 * world_size
        count = self.distributed.micro_batch_count(batch, self.settings.micro_batch_size)
        micro_batches = samples.split(max(count, 2 if measure_noise else 1))
        scale = self._loss_scale()
        # DDP averages over ranks; × world_size makes it the global batch's sum, however ranks share it
        factor = world_size / (1 if self.settings.sum_loss else batch)
        batch_loss: Tensor | None = None
        for micro_batch in micro_batches:
            last = micro_batch is micro_batches[-1]
            images_NCHW, labels_N = self.hooks.on_batch(self.hook_context, *self._loader.load_batch(micro_batch))
            with self.distributed.sync_gradients(self._ddp, when=last):
                loss = self._loss(images_NCHW, labels_N)
                share = loss.detach().double()
                batch_loss = share if batch_loss is None else batch_loss + share
                if last:
                    pending = self._all_reduce_async(batch_loss)  # overlaps with the backward pass
                self.scaler.scale(loss if factor == 1 else loss * factor).backward()
            if measure_noise and micro_batch is micro_batches[0]:
                count = len(micro_batch.ids_N)
                self._noise.add_micro_batch(count, self._gradient_factor(batch) * world_size * count / batch)
        noise_scale = self._noise.update(batch, self._gradient_factor(batch)) if measure_noise else None
        self._step_optimizer()
        numbers = pending.sums()
        if self.scaler.is_enabled():
            numbers = torch.cat([numbers, torch.stack([scale, self._loss_scale()])])
        return QueuedStep(Download(numbers), noise_scale)

    def skip_step(self) -> QueuedStep:
        """Count a step without training on its batch, which made the loss non-finite in an earlier generation."""
        no_loss = torch.full((), math.nan, dtype=torch.float64, device=self.distributed.device)
        return QueuedStep(Download(self._all_reduce_async(no_loss).sums()))

    def _loss_scale(self) -> Tensor:
        """Return the loss scale, on the device; 1 without one."""
        scaled: Tensor = self.scaler.scale(self._one)
        return scaled

    def _gradient_factor(self, batch: int) -> float:
        """Return what the gradients of the mean loss are multiplied by."""
        return self.scaler.get_scale() * (batch if self.settings.sum_loss else 1)

    def _loss(self, images_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        """Return the loss, summed over the images."""
        with self.precision.autocast(self.distributed.device), name_input_errors(images_NCHW):
            images_NCHW = self.precision.cast(images_NCHW).contiguous(memory_format=torch.channels_last)
            logits_NK = self._forward(images_NCHW)
        logits_NK, smoothing = logits_NK.float(), self.settings.label_smoothing
        if isinstance(self.optimizer, KFAC):
            names = "fisher", self.hook_context.step, self.distributed.rank
            self.optimizer.add_sampled_gradients(logits_NK, derive_seed(self._seed, *names))
        return F.cross_entropy(logits_NK, labels_N, label_smoothing=smoothing, reduction="sum")

    def _all_reduce_async(self, loss: Tensor) -> PendingAllReduce:
        """Begin to sum over the ranks: the loss, and how many were asked to stop."""
        return self.distributed.all_reduce_async(torch.stack([loss, self._stop.fill_(self._stop_requested())]))

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


def build_ddp(
    model: nn.Module, distributed: DistributedContext, data: ImageDataset, settings: Settings, precision: Precision
) -> nn.Module:  # fmt: skip
    """Return the model in DDP, with gradient buckets in their final layout.

    DDP rebuilds its buckets after the first backward pass, and with more than two ranks the layout decides in which
    order gradients are summed. One throwaway pass here gives a resumed run the final layout from its first step on.
    It is also the pass by which DDP learns a static graph: in one without communication, as of a step that accumulates
    gradients, that fails (PyTorch 2.13).
    """
    ddp = distributed.wrap_ddp(model, settings)
    if distributed.world_size > 1:
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        sample = data.train.images_NCHW[:2].to(distributed.device).float()
        ddp(precision.cast(sample)).sum().backward()
        model.load_state_dict(weights)
        model.zero_grad()
    return ddp
