# SPDX-License-Identifier: Apache-2.0
"""torch.compile: off by default, and compiling once per input size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from shoestring_trainer.training import step as step_module
from shoestring_trainer.training.models.compiler import compiled
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.optim import optimizers
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.settings import Settings
from shoestring_trainer.training.step import Trainer
from torch import nn

from tests.trainer.training.first_phase import first_phase


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return build_model("convnet", Settings(width=4), classes=3, mean=[0.5], std=[0.2])


def test_a_model_is_compiled_once_for_each_input_size():
    met: list[tuple[int, int]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        met.append(
            next((len(tensor), tensor.shape[-1]) for tensor in inputs if tensor.ndim == 4 and tensor.shape[-1] > 3)
        )
        return graph.forward

    plain, net = small_net(), compiled(small_net(), "default", backend)
    sizes = [(6, 8), (6, 12), (4, 12), *((batch, 8) for batch in range(7, 14))]
    for size in (*sizes, (6, 8), (6, 12)):
        images = torch.rand(size[0], 1, size[1], size[1])
        assert torch.equal(net(images), plain(images))
    assert met == sizes  # more than PyTorch's own limit
    assert list(net.state_dict()) == [f"_orig_mod.{name}" for name in plain.state_dict()]


def test_nothing_is_compiled_by_default():
    model = small_net()
    assert compiled(model, Settings().compile) is model


@pytest.mark.parametrize(
    ("recipe", "optimizer"),
    [("cifar10/airbench94", "sgd"), ("cifar10/airbench94-muon", "muon"), ("cifar10/airbench94", "kfac")],
)
def test_what_a_step_needs_is_compiled_before_the_first_which_then_is_the_step_of_a_run_without(
    recipe: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
):
    """The network and the iteration of Muon; K-FAC's covariances are of steps alone."""
    met: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable:
        met.append(graph)
        return graph.forward

    for module in (step_module, optimizers):
        monkeypatch.setattr(module, "compiled", lambda model, mode: compiled(model, mode, backend))
    after = []
    for mode in ("default", "none"):
        torch.manual_seed(0)
        setup = first_phase(recipe, Precision.BF16, torch.device("cpu"), width=4)
        setup.loader.dataset.train.images_NCHW.random_(0, 256)
        setup = replace(setup, settings=replace(setup.settings, compile=mode, optimizer=optimizer))
        trainer, schedule, sampler = Trainer(setup, frozenset(), lambda: False), setup.schedule, setup.build_sampler()
        before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
        trainer.compile_ahead(schedule.phases)
        assert bool(met) == (mode != "none")
        assert all(torch.equal(tensor, before[name]) for name, tensor in setup.model.state_dict().items())
        assert all(weight.grad is None for weight in setup.model.parameters())
        met.clear()
        samples = sampler.batch(0, schedule.phases[0].batch_size)
        trainer.train_step(samples, schedule.phases[0].batch_size, schedule.step_hyperparams(0))
        assert not met
        after.append(setup.model.state_dict())
    assert all(torch.equal(tensor, after[1][name]) for name, tensor in after[0].items())
