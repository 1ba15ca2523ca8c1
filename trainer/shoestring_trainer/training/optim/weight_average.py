# SPDX-License-Identifier: Apache-2.0
"""A running average of the weights: kept aside until the end (EMA), or copied back as it goes (lookahead)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.settings import Settings

KINDS = ("none", "ema", "lookahead")


class Average:
    """The average of a model's weights and batch statistics. `tensors` is its whole state, by the model's names."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self._model, self._settings = model, settings
        self.tensors = {name: tensor.clone() for name, tensor in self._of_the_model().items()}

    @torch.no_grad()
    def follow(self, step: int, steps: int) -> None:
        """Take in the weights after step `step` of `steps`, if it is one of those that count."""
        every = self._settings.weight_average_every_steps
        if step % every:
            return
        decay = self._settings.weight_average_decay**every * (step / steps) ** self._settings.weight_average_power
        for name, tensor in self._of_the_model().items():
            self.tensors[name].lerp_(tensor, 1 - decay)
            if self._settings.weight_average == "lookahead":
                tensor.copy_(self.tensors[name])

    @torch.no_grad()
    def finish(self) -> None:
        """Make the average the model."""
        for name, tensor in self._of_the_model().items():
            tensor.copy_(self.tensors[name])

    def _of_the_model(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._model.state_dict().items() if tensor.is_floating_point()}


def build_average(model: nn.Module, settings: Settings) -> Average | None:
    """The average the settings ask for; None for none. Raises UserError for unknown kinds."""
    if settings.weight_average not in KINDS:
        raise UserError(f"there is no average {settings.weight_average!r}; known: {', '.join(KINDS)}")
    return None if settings.weight_average == "none" else Average(model, settings)
