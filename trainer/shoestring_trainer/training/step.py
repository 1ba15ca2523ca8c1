# SPDX-License-Identifier: Apache-2.0
"""One step: a batch's gradients, summed over parts and ranks, and what the optimizer makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring_trainer.training.checkpoint.state import State
from shoestring_trainer.training.data.images import DataSet
from shoestring_trainer.training.distributed.context import Arriving, Gang
from shoestring_trainer.training.hooks import Run, load_hooks
from shoestring_trainer.training.models.compiler import compiled
from shoestring_trainer.training.optim.noise_scale import NoiseScale
from shoestring_trainer.training.optim.optimizers import build_optimizer, set_pace
from shoestring_trainer.training.optim.schedules import Pace
from shoestring_trainer.training.optim.weight_average import build_average
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.randomness import Picked, seed_dropout
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.setup import Setup

LOWEST_SCALE = 2.0**-14
"""A loss scale below this has been halved thirty times without one finite gradient: the loss itself is broken."""


@dataclass(frozen=True)
class Lesson:
    """What a step came to, the same on all ranks.

    loss         mean over the batch; NaN if it was passed over
    told         some rank has been told to stop
    overflowed   in fp16: some gradient was not finite, and the weights are as before
    broken       the numbers are not worth going on with
    noise_scale  in pictures, if it was measured and there is an estimate
    """

    loss: float
    told: bool
    overflowed: bool = False
    broken: bool = False
    noise_scale: float | None = None


class Learner:
    """The network and everything that changes it; `state` is all of that together, for checkpoints.

    skip        steps that are passed over
    stop_asked  whether this rank has been told to stop
    """

    def __init__(self, setup: Setup, skip: Set[int], stop_asked: Callable[[], bool]) -> None:
        self.gang, self.settings, self.precision = setup.gang, setup.settings, setup.precision
        self.model, self._seed, self._feed, self._stop_asked = setup.model, setup.seed, setup.feed, stop_asked
        self.scaler = build_scaler(self.gang, self.precision, self.settings)
        self.optimizer = build_optimizer(self.model, self.settings, scaled=self.scaler.is_enabled())
        self._distributed = spread(self.model, self.gang, self._feed.data, self.settings)
        self._forward = compiled(self._distributed, self.settings.compile)
        self.optimizer.zero_grad()
        self.average = build_average(self.model, self.settings)
        self.state = State(self.model, self.optimizer, self.scaler, setup.identity, self.average, set(skip))
        self._noise = NoiseScale(self.model, self.gang)
        self.hooks = load_hooks(self.settings.hooks)
        self.run = Run(self.model, self.optimizer, self.settings, self.gang.rank, step=0)

    def learn(self, picked: Picked, batch: int, pace: Pace) -> Lesson:
        """Take the step after `run.step` with this rank's share of a batch of `batch` pictures.

        A step skipped for overflow counts as a step: its samples are not shown again.
        """
        set_pace(self.optimizer, pace)
        seed_dropout(self._seed, self.run.step, self.gang.device)
        every = self.settings.noise_every
        measuring = every > 0 and self.run.step % every == 0 and batch >= 2 * self.gang.world
        parts = picked.split(max(self.gang.parts(batch, self.settings.micro_batch), 2 if measuring else 1))
        scale = self.scaler.get_scale()
        # what a mean gradient is multiplied by
        unit = scale * (batch if self.settings.sum_loss else 1)

        batch_loss = torch.zeros((), dtype=torch.float64, device=self.gang.device)
        for part in parts:
            last = part is parts[-1]
            pictures_NCHW, labels_N = self.hooks.batch(self.run, *self._feed.batch(*part))
            with self.gang.exchange(self._distributed, when=last):
                loss = self._loss(pictures_NCHW, labels_N)
                batch_loss += loss.detach().double() / batch
                if last:
                    arriving = self._tell(batch_loss)  # it travels beside the backward pass
                # DDP takes the mean over ranks; × world makes it the batch's sum, however the batch was shared out.
                self.scaler.scale(loss * (self.gang.world / (1 if self.settings.sum_loss else batch))).backward()
            if measuring and part is parts[0]:
                count = len(part[0])
                self._noise.see_part(count, unit * self.gang.world * count / batch)
        noise_scale = self._noise.see_batch(batch, unit) if measuring else None
        self._update_weights()
        mean_loss, told = arriving.read()
        lowered = self.scaler.get_scale()
        broken = lowered < LOWEST_SCALE if self.scaler.is_enabled() else not math.isfinite(mean_loss)
        return Lesson(mean_loss, bool(told), lowered < scale, broken, noise_scale)

    def pass_over(self) -> Lesson:
        """Learn nothing in this step: its batch broke the numbers before."""
        loss, told = self._tell(torch.full((), math.nan, dtype=torch.float64, device=self.gang.device)).read()
        return Lesson(loss, bool(told))

    def _loss(self, pictures_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        """Summed over the pictures."""
        with self.precision.autocast(self.gang.device):
            logits_NK = self._forward(pictures_NCHW.contiguous(memory_format=torch.channels_last))
        smoothing = self.settings.label_smoothing
        return F.cross_entropy(logits_NK.float(), labels_N, label_smoothing=smoothing, reduction="sum")

    def _tell(self, loss: Tensor) -> Arriving:
        """Begin to sum over the gang: the loss, and how many were told to stop."""
        return self.gang.start_sum(torch.stack([loss, loss.new_tensor(self._stop_asked())]))

    def _update_weights(self) -> None:
        if "on_gradients" in self.hooks:
            self.scaler.unscale_(self.optimizer)
            self.hooks.call("on_gradients", self.run)
        self.scaler.step(self.optimizer)  # skipped on overflow, by all ranks alike: DDP has spread the infinities
        self.scaler.update()
        self.optimizer.zero_grad()


def build_scaler(gang: Gang, precision: Precision, settings: Settings) -> torch.amp.GradScaler:
    """The loss scale of fp16. It starts where PyTorch's does for a mean loss, lower by the batch for a sum."""
    head_start = round(math.log2(settings.batch_size)) if settings.sum_loss else 0
    return torch.amp.GradScaler(
        gang.device.type, init_scale=2.0 ** (16 - head_start), enabled=precision is Precision.FP16
    )


def spread(model: nn.Module, gang: Gang, data: DataSet, settings: Settings) -> nn.Module:
    """The model spread over the gang, with gradient buckets in their last layout.

    DDP lays its buckets out anew after the first backward pass, and with more than two ranks the layout decides
    in which order gradients are summed. One throwaway pass here gives a resumed run the layout from its first step on.
    """
    distributed = gang.distribute(model, settings)
    if gang.world > 1:
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        sample = data.train.bytes_NCHW[:2].to(gang.device).float()
        distributed(sample).sum().backward()
        model.load_state_dict(kept)
        model.zero_grad()
    return distributed
