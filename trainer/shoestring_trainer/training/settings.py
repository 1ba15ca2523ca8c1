# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of recipe parameters: every name a recipe may use, what it means, and its neutral value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from shoestring_trainer.training.faults import UserError

_FROM_THE_TASK = {"seed", "precision"}


@dataclass(frozen=True)
class Settings:
    """How to train. A recipe that leaves a name out gets the value here, which is "off" where there is such a thing."""

    epochs: int = 1
    batch_size: int = 32  # pictures per step, over all ranks
    lr: float = 0.1  # highest rate of the schedule
    warmup: float = 0.2  # share of the steps in which the rate rises
    momentum: float = 0.9
    weight_decay: float = 0.0  # of weights; norms and biases never decay
    label_smoothing: float = 0.0
    dropout: float = 0.0
    width: int = 32  # channels of the first convolution
    size: int = 32  # pixels a side
    holdout: float = 0.2  # share of each class kept for measuring, where the data brings no split
    on_corrupt: str = "error"
    check_files: bool = True  # refuse files that aren't the published ones, where the data has such
    rotate: float = 0.0  # degrees
    shift: float = 0.0  # pixels
    crop: int = 0  # pixels of padding
    flip: bool = False
    cutout: int = 0  # pixels a side
    eval_every: int = 1  # epochs

    @staticmethod
    def of(params: Mapping[str, Any]) -> Settings:
        """Settings from a recipe's resolved parameters. Raises UserError for a name outside the vocabulary."""
        known = {field.name for field in fields(Settings)}
        given = {name: value for name, value in params.items() if name not in _FROM_THE_TASK}
        if unknown := sorted(set(given) - known):
            names = ", ".join(sorted(known))
            raise UserError(f"the trainer has no use for the recipe's parameter {unknown[0]}; it knows {names}")
        return Settings(**given)
