# SPDX-License-Identifier: Apache-2.0
"""Which algorithms a GPU may use, and which recipes ask for the fastest.

test_reading_late.py has what an interrupted run then shares with an unbroken one.
"""

from __future__ import annotations

import pytest
import torch
from shoestring_core import recipes
from shoestring_trainer.training.setup import choose_algorithms


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_gpu_takes_the_fastest_algorithms_unless_a_run_asks_for_the_same_bits(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
):
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, *, warn_only: asked.append(mode))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    choose_algorithms(torch.device("cuda"), deterministic=deterministic)
    assert asked == [deterministic]
    assert torch.backends.cudnn.benchmark is not deterministic
    assert not torch.utils.deterministic.fill_uninitialized_memory  # a fill for each new tensor


def test_recipes_that_claim_a_time_on_gpus_ask_for_the_fastest_algorithms():
    for recipe in recipes.all():
        claims_a_time = recipe.claim is not None and recipe.claim.hardware is not None
        on_gpus = recipe.data.kind != "digits"
        assert recipes.resolve(recipe.name, {})["deterministic"] is not (claims_a_time and on_gpus), recipe.name
