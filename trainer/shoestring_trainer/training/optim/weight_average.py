# SPDX-License-Identifier: Apache-2.0
"""A running average of the weights: what is scored and saved at the end (EMA), or copied back meanwhile (lookahead).

As in the sources: D. Page's new_dawn.py scores its EMA after each epoch, airbench94.py the weights that are trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from shoestring_core.wording.units import counted
from torch import nn

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.settings import Settings

AVERAGES = ("none", "ema", "lookahead")


class WeightAverage:
    """The average of a model's weights and batch norm statistics. `tensors` is its state, by the model's names."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self._settings = settings
        own = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self.tensors = {name: tensor.clone() for name, tensor in own.items()}
        self._model_tensors, self._averages = list(own.values()), list(self.tensors.values())

    @torch.no_grad()
    def update(self, step: int, total_steps: int) -> None:
        """Add the weights after step `step` of `total_steps` to the average, if it is due at this step."""
        every = self._settings.weight_average_every_steps
        if step % every:
            return
        decay = self._settings.weight_average_decay**every * (step / total_steps) ** self._settings.weight_average_power
        torch._foreach_lerp_(self._averages, self._model_tensors, 1 - decay)
        if self._settings.weight_average == "lookahead":
            self.copy_to_model()

    @contextmanager
    def scored(self) -> Iterator[None]:
        """Give the model the weights meanwhile that are scored during a run, and then its own back, to the bit."""
        is_average = self._settings.weight_average == "ema"
        if is_average:
            self._exchange()
        try:
            yield
        finally:
            if is_average:
                self._exchange()

    @torch.no_grad()
    def finish(self, *, completed: bool) -> None:
        """Give the model the weights that the run ends with; `completed`: after all steps, not before at its goal."""
        if completed or self._settings.weight_average == "ema":
            self.copy_to_model()

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Replace the model's weights by the average."""
        torch._foreach_copy_(self._model_tensors, self._averages)

    @torch.no_grad()
    def _exchange(self) -> None:
        own = [tensor.clone() for tensor in self._model_tensors]
        self.copy_to_model()
        torch._foreach_copy_(self._averages, own)


def advise_average(settings: Settings, total_steps: int) -> str | None:
    """Return what to do about an average that a run is too short for; else None."""
    every = settings.weight_average_every_steps
    if settings.weight_average == "none" or every <= total_steps:
        return None
    return (
        f"The average of the weights is updated every {counted(every, 'step')}, and the run has "
        f"{counted(total_steps, 'step')}: it ends with its initial weights. Lower weight_average_every_steps."
    )


def build_weight_average(model: nn.Module, settings: Settings) -> WeightAverage | None:
    """Return the average that the settings name, if any. Raises UserError for unknown names."""
    if settings.weight_average not in AVERAGES:
        raise UserError(f"there is no average {settings.weight_average!r}; known: {', '.join(AVERAGES)}")
    return None if settings.weight_average == "none" else WeightAverage(model, settings)
