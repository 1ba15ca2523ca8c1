# SPDX-License-Identifier: Apache-2.0
"""A training step launches hardly more than the code that it reproduces.

Counted are the dispatched ops of one step on a CPU in fp32, without views and without what only allocates.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from shoestring_trainer.training.optim import fused_sgd, optimizers
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.step import Trainer
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.training.first_phase import first_phase

MOST = 1.25
SOURCES = {
    "cifar10/airbench94": 93,  # KellerJordan/cifar10-airbench f1c599c, legacy/airbench94.py, its optimizer by foreach
    "cifar10/airbench94-muon": 296,  # the same commit's airbench94_muon.py
    "cifar10/page-resnet9": 231,  # davidcpage/cifar10-fast f79e8b8, dawn.py, whose optimizer goes weight by weight
    "imagenet/imagenet18": 415,  # torchvision 0.28.0's resnet50 with torch.optim.SGD by foreach
}
"""The ops of a step of the source's own code, counted likewise, with images at hand and augmented before the step."""

NO_LAUNCH = {
    "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty",
    "new_empty_strided", "permute", "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unfold",
    "unsqueeze", "_unsafe_view", "view", "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in NO_LAUNCH:
            self.ops[name] += 1
        return func(*args, **kwargs or {})


def count_launches(name: str, precision: Precision) -> Counter[str]:
    batch = 4
    setup = first_phase(name, precision, torch.device("cpu"), batch_size=batch)
    trainer, schedule, sampler = Trainer(setup, frozenset(), lambda: False), setup.schedule, setup.build_sampler()

    def step(number: int) -> None:
        trainer.train_step(sampler.batch(number * batch, batch), batch, schedule.step_hyperparams(0))

    step(0)
    with Launches() as launches:
        step(1)
    return launches.ops


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, Precision.FP32) for name in SOURCES),
        ("cifar10/airbench94", Precision.FP16_TRUE),
        ("cifar10/airbench94-muon", Precision.FP16_TRUE),
    ],
)
def test_a_step_launches_at_most_a_quarter_more_than_the_source(
    name: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
):
    for module in (optimizers, fused_sgd):  # a GPU's optimizer: on a CPU its numbers are wrong, not their number
        monkeypatch.setattr(module, "is_half_on_cpu", lambda weights: False)
    launches = count_launches(name, precision)
    assert launches.total() <= MOST * SOURCES[name], launches.most_common()


def test_pure_half_precision_converts_images_and_logits_and_nothing_else():
    """Autocast converts each weight, and the loss scale has ops of its own. The optimizer's are a CPU's."""
    half, full = (
        count_launches("cifar10/airbench94", precision) for precision in (Precision.FP16_TRUE, Precision.FP32)
    )
    more = Counter({name: count for name, count in (half - full).items() if not name.startswith("_foreach")})
    assert more.total() <= 4, more.most_common()
