# SPDX-License-Identifier: Apache-2.0
"""Each training technique does what its source says, measured on tensors."""

from __future__ import annotations

import copy
import math
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from shoestring_trainer.training.data.dataset import ImageDataset, LabeledImages
from shoestring_trainer.training.distributed.context import DistributedContext
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.hyperparam_schedule import StepHyperparams
from shoestring_trainer.training.models.airbench import airbench
from shoestring_trainer.training.models.layers import GlobalConcatPool, PatchWhitening
from shoestring_trainer.training.models.registry import build_model, init_from_data
from shoestring_trainer.training.models.resnets import preact_resnet18
from shoestring_trainer.training.optim.muon import NEWTON_SCHULZ_COEFFICIENTS, newton_schulz, orthogonalized
from shoestring_trainer.training.optim.optimizers import OPTIMIZERS, build_optimizer, set_hyperparams
from shoestring_trainer.training.optim.weight_average import build_weight_average
from shoestring_trainer.training.precision import Precision
from shoestring_trainer.training.results.evaluation import evaluate, tta_logits
from shoestring_trainer.training.settings import Settings
from torch import nn

SINGLE_PROCESS = DistributedContext(0, 1, 0, torch.device("cpu"))
WIDTHS = [1, 2, 2]
SMALL = Settings(width=4)


def small_airbench(settings: Settings = SMALL, **shape) -> nn.Module:
    torch.manual_seed(0)
    return build_model("airbench", settings, classes=10, mean=[0.5] * 3, std=[0.2] * 3, widths=WIDTHS, **shape)


def smooth_images(count: int) -> torch.Tensor:
    """Return uint8 images whose neighbouring pixels are strongly correlated, as in photographs."""
    torch.manual_seed(1)
    return (F.interpolate(torch.rand(count, 3, 8, 8), 32, mode="bilinear") * 255).byte()


def test_whitened_patches_are_uncorrelated_with_unit_variance():
    layer, images = PatchWhitening(3, epsilon=0.0), smooth_images(600).float() / 255 - 0.5
    layer.init_from_data(images)
    out = F.conv2d(images, layer.weight).transpose(0, 1).flatten(1)[:12]
    assert torch.allclose(out @ out.T / out.shape[1], torch.eye(12), atol=1e-2)
    assert torch.equal(layer.weight[12:], -layer.weight[:12])
    assert not layer.weight.requires_grad
    assert layer.bias is not None
    assert layer.bias.requires_grad


def test_only_the_whitening_layer_is_initialized_from_data():
    model = small_airbench()
    before = copy.deepcopy(model.state_dict())
    init_from_data(model, smooth_images(50), 255.0)
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == [
        "1.0.weight"
    ]


def test_convolutions_are_initialized_to_the_identity_and_norms_have_a_fixed_scale():
    model = airbench(3, 10, Settings(width=32), widths=WIDTHS, convs_per_group=3)
    convs = [
        layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and not isinstance(layer, PatchWhitening)
    ]
    assert len(convs) == 9
    images = torch.rand(1, 32, 5, 5)
    assert torch.allclose(convs[1](images), images, atol=1e-6)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert not any(norm.weight.requires_grad for norm in norms)
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-12, 0.4)}


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (airbench(3, 10, Settings(width=64), widths=[1, 4, 4]), 1_972_792),
        # kuangliu's PreActResNet18, plus the stem's norm and a classifier of twice the width
        (preact_resnet18(3, 10, Settings(width=64)), 11_171_146 + 2 * 64 + 512 * 10),
    ],
    ids=["airbench94", "bkj-resnet18"],
)
def test_models_have_as_many_parameters_as_their_sources(model: nn.Module, parameters: int):
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_concat_pooling_is_average_and_maximum():
    pooled = GlobalConcatPool()(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
    assert pooled.tolist() == [[3.0, 6.0]]


def test_lookahead_copies_the_average_back_and_ema_is_scored_and_becomes_the_model_at_the_end():
    for kind in ("lookahead", "ema"):
        model = nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(0.0)
        settings = Settings(
            weight_average=kind, weight_average_every_steps=2, weight_average_decay=0.9, weight_average_power=1.0
        )
        average = build_weight_average(model, settings)
        assert average
        slow = 0.0
        for step in range(1, 7):
            model.weight.data.add_(1.0)
            fast = model.weight.item()
            average.update(step, 6)
            if step % 2 == 0:
                decay = 0.9**2 * step / 6
                slow = decay * slow + (1 - decay) * fast
                assert average.tensors["weight"].item() == pytest.approx(slow)
                assert model.weight.item() == pytest.approx(slow if kind == "lookahead" else fast)
        model.weight.data.add_(1.0)
        before = model.weight.item(), average.tensors["weight"].item()
        with suppress(ZeroDivisionError), average.scored():
            assert model.weight.item() == before[kind == "ema"]
            raise ZeroDivisionError
        assert (model.weight.item(), average.tensors["weight"].item()) == before
        average.finish(completed=False)  # at the goal: the model is what was scored
        assert model.weight.item() == before[kind == "ema"]
        average.finish(completed=True)
        assert model.weight.item() == pytest.approx(slow)


def test_unknown_names_are_rejected_with_the_known_ones():
    with pytest.raises(UserError, match="lookahead"):
        build_weight_average(nn.Linear(1, 1), Settings(weight_average="mean"))
    with pytest.raises(UserError, match="muon"):
        build_optimizer(nn.Linear(1, 1), Settings(optimizer="adam"))


def test_a_learning_rate_of_zero_leaves_the_whitening_bias_bit_identical():
    settings = Settings(width=4, weight_decay=0.01, decay_norms_and_biases=True, decoupled_weight_decay=True)
    model = small_airbench(settings)
    optimizer = build_optimizer(model, settings)
    bias = dict(model.named_parameters())["1.0.bias"]
    for whitening_lr_factor in (1.0, 0.0, 0.0):
        before = bias.detach().clone()
        set_hyperparams(optimizer, StepHyperparams(1.0, whitening_lr_factor, 0.9))
        model(torch.rand(8, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(bias, before) == (whitening_lr_factor == 0.0)


def test_muon_updates_have_singular_values_near_one_and_weights_of_fixed_norm():
    settings = Settings(width=8, optimizer="muon", lr=0.1, bias_lr=0.2, muon_lr=1e-9)
    model = small_airbench(settings, unit_std_head=True)
    optimizer = build_optimizer(model, settings)
    weight = next(p for p in model.parameters() if p.ndim == 4 and p.requires_grad)
    set_hyperparams(optimizer, StepHyperparams(1.0, 1.0, 0.85))
    model(torch.rand(8, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert weight.norm().item() == pytest.approx(len(weight) ** 0.5, rel=1e-4)
    before = weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    optimizer.step()
    update = torch.linalg.svdvals((weight - before).detach().flatten(1))
    assert update.min() > 0.2
    assert update.max() < 1.6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizerlowers_the_loss(name: str):
    settings = Settings(width=4, optimizer=name, lr=1.0 if name == "lars" else 0.05, muon_lr=0.05, momentum=0.9)
    model = small_airbench(settings)
    optimizer = build_optimizer(model, settings)
    images, labels = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1, losses


@pytest.mark.parametrize("name", ["shampoo", "kfac"])
def test_preconditioners_beat_sgd_on_an_ill_conditioned_problem(name: str):
    """Inputs of very different scale make a linear layer's loss ill-conditioned."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 6) * torch.logspace(0, -1, 6)
    targets = inputs @ (torch.randn(6, 3) / torch.logspace(0, -1, 6)[:, None])

    def loss_after(name: str) -> float:
        torch.manual_seed(1)
        model = nn.Linear(6, 3, bias=False)
        settings = Settings(optimizer=name, lr=0.2, momentum=0.9)
        optimizer = build_optimizer(model, settings)
        for step in range(100):
            set_hyperparams(optimizer, StepHyperparams(1 - step / 100, 1.0, 0.9))
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
        return loss.item()

    assert loss_after(name) < 0.7 * loss_after("sgd")


@pytest.mark.parametrize("name", ["shampoo", "kfac"])
def test_a_preconditioned_update_has_the_gradients_norm(name: str):
    settings = Settings(width=4, optimizer=name, lr=1.0, momentum=0.0)
    model = small_airbench(settings)
    optimizer = build_optimizer(model, settings)
    weight = next(p for p in model.parameters() if p.ndim == 4 and p.requires_grad)
    before = weight.detach().clone()
    model(torch.rand(8, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert weight.grad is not None
    assert (weight - before).norm().item() == pytest.approx(weight.grad.norm().item(), rel=1e-3)
    assert F.cosine_similarity((before - weight).flatten(), weight.grad.flatten(), dim=0) < 0.999


@pytest.mark.parametrize("name", ["shampoo", "kfac"])
def test_a_layer_without_a_gradient_stays_as_it_is(name: str):
    """As those before a norm whose scale begins at zero."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[1].weight)
    before = model[0].weight.detach().clone()
    optimizer = build_optimizer(model, Settings(optimizer=name, lr=0.1))
    model(torch.rand(5, 4)).square().sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert model[1].weight.isfinite().all()


def test_six_views_weigh_the_unshifted_image_one_quarter():
    def first_pixel(images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 1, 1:2]

    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    plain = first_pixel(images)  # row 1 is 4 5 6 7
    assert tta_logits(first_pixel, images, plain, 1).item() == 5
    assert tta_logits(first_pixel, images, plain, 2).item() == (5 + 6) / 2
    six = tta_logits(first_pixel, images, plain, 6).item()
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    views = [padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]]
    shifted = [(first_pixel(view) + first_pixel(view.flip(3))).item() / 2 for view in views]
    assert six == pytest.approx(0.5 * 5.5 + 0.25 * shifted[0] + 0.25 * shifted[1])
    assert first_pixel(views[0]).item() == 0.0
    assert first_pixel(views[1]).item() == 10.0


def test_test_time_augmentation_changes_only_its_own_metric():
    images = LabeledImages(smooth_images(40), torch.arange(40) % 10)
    data = ImageDataset(images, images, [str(n) for n in range(10)], 255.0, [0.5] * 3, [0.2] * 3, {})
    model = small_airbench()
    one, six = (evaluate(model, data, SINGLE_PROCESS, Precision.FP32, views) for views in (1, 6))
    assert one.metrics.items() <= six.metrics.items()
    assert six.metrics.keys() - one.metrics.keys() == {"val/acc_tta"}
    with pytest.raises(UserError, match="1, 2, 6"):
        evaluate(model, data, SINGLE_PROCESS, Precision.FP32, 3)


@pytest.mark.parametrize("overflow", [math.inf, math.nan])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_overflows_leaves_weights_and_state_bit_identical(name: str, overflow: float):
    """Whether it is the first step or a later one; and the steps after it are what they would have been."""
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)

    def stepped(overflows: set[int]) -> list[torch.Tensor]:
        settings = Settings(width=4, optimizer=name, lr=0.1, muon_lr=0.05, weight_decay=1e-3)
        model = small_airbench(settings, unit_std_head=True).to(memory_format=torch.channels_last)
        optimizer, scaler = build_optimizer(model, settings), torch.amp.GradScaler("cpu", init_scale=256.0)
        for step in range(2 + len(overflows)):
            set_hyperparams(optimizer, StepHyperparams(1.0, 1.0, 0.9))
            before = bits(model, optimizer)
            scaler.scale(F.cross_entropy(model(images), labels)).backward()
            if step in overflows:
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad[0] = overflow
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            same = [torch.equal(old, new) for old, new in zip(before, bits(model, optimizer), strict=True)]
            assert all(same) == (step in overflows)
        return [parameter.detach() for parameter in model.parameters()]

    plain = stepped(set())
    for overflows in ({0}, {1}):
        for skipped, expected in zip(stepped(overflows), plain, strict=True):
            assert torch.allclose(skipped, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("broken", [math.inf, math.nan])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_that_are_not_finite_are_seen_in_the_loss_and_raise_nothing(name: str, broken: float):
    """Without a loss scale, in a step that updates preconditioners: recovery begins with the loss."""
    settings = Settings(width=4, optimizer=name, lr=0.1, muon_lr=0.05)
    model = small_airbench(settings)
    optimizer, images = build_optimizer(model, settings), torch.rand(8, 3, 32, 32)
    model(images).square().sum().backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.view(-1)[0] = broken
    optimizer.step()
    assert not model(images).isfinite().any()


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the bits of all weights and optimizer state; -0 and 0 differ, NaN equals itself."""
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    return [tensor.detach().clone().view(torch.int32) for tensor in (*model.parameters(), *states)]


def test_an_overflow_keeps_the_sign_of_zeros_in_muon():
    settings = Settings(width=4, optimizer="muon", muon_lr=0.05)
    model = small_airbench(settings)
    optimizer = build_optimizer(model, settings)
    weight = next(p for p in model.parameters() if p.ndim == 4 and p.requires_grad)
    for tensor in (weight.data, optimizer.state[weight]["momentum_buffer"]):
        tensor[0, 0, 0, :2] = torch.tensor([0.0, -0.0])
    weight.grad = torch.full_like(weight, math.inf)
    before = bits(model, optimizer)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, bits(model, optimizer), strict=True))


def test_lars_steps_as_timms():
    from shoestring_trainer.training import vision_compat  # noqa: F401 - makes timm importable
    from timm.optim.lars import Lars

    settings = Settings(width=4, optimizer="lars", lr=1.0, weight_decay=1e-3)
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    ours, theirs = small_airbench(settings), small_airbench(settings)
    optimizer = build_optimizer(ours, settings)
    timms = Lars(
        [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in
         build_optimizer(theirs, settings).param_groups],
        lr=1.0, momentum=0.9, nesterov=True,
    )  # fmt: skip
    for _ in range(3):
        for model, stepping in ((ours, optimizer), (theirs, timms)):
            stepping.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            stepping.step()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(own, other, rtol=1e-5, atol=1e-7)


def test_muon_orthogonalizes_a_stack_as_it_does_each_matrix():
    """Up to what bf16, in which it computes, rounds; matrices of other shapes between them keep their places."""
    torch.manual_seed(0)
    gradients = [torch.randn(*shape) for shape in ((8, 4, 3, 3), (40, 4, 3, 3), (8, 4, 3, 3), (40, 4, 3, 3))]
    for gradient, update in zip(gradients, orthogonalized(gradients, newton_schulz), strict=True):
        (alone,) = orthogonalized([gradient], newton_schulz)
        assert update.shape == gradient.shape
        assert (update - alone).norm() < 0.01 * alone.norm()


@pytest.mark.parametrize("shape", [(2, 8, 36), (3, 40, 36)])
def test_muon_orthogonalizes_as_timms(shape: tuple[int, int, int]):
    from shoestring_trainer.training import vision_compat  # noqa: F401 - makes timm importable
    from timm.optim.muon import zeropower_via_newtonschulz

    torch.manual_seed(0)
    matrices = torch.randn(shape)
    theirs = zeropower_via_newtonschulz(matrices, len(NEWTON_SCHULZ_COEFFICIENTS), NEWTON_SCHULZ_COEFFICIENTS)
    assert torch.equal(newton_schulz(matrices), theirs)


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_kfac_uses_the_fisher_matrix_that_is_chosen(fisher: str):
    """Of the outputs of a softmax whose labels are all 0: of one direction, or the covariance of drawn labels."""
    model = nn.Linear(2, 3, bias=False)
    optimizer = build_optimizer(model, Settings(optimizer="kfac", kfac_fisher=fisher, lr=0.0))
    logits = model(torch.ones(20_000, 2))
    optimizer.add_sampled_gradients(logits, seed=0)
    F.cross_entropy(logits, torch.zeros(20_000, dtype=torch.long), reduction="sum").backward()
    optimizer.step()
    p = logits[0].detach().softmax(0)
    off = p - torch.eye(3)[0]
    expected = torch.outer(off, off) if fisher == "empirical" else torch.diag(p) - torch.outer(p, p)
    found = optimizer.state[model.weight]["outputs"]
    assert torch.allclose(found / found.trace(), expected / expected.trace(), atol=0.02)


@pytest.mark.parametrize("name", ["shampoo", "kfac"])
def test_preconditioners_are_updated_as_often_and_damped_as_strongly_as_chosen(name: str):
    """Strong damping leaves the direction of the gradient; a preconditioner stays until its next update."""
    cosines = []
    for damping in (1e-4, 10.0):
        torch.manual_seed(0)
        model = nn.Linear(6, 3, bias=False)
        settings = Settings(
            optimizer=name, preconditioner_damping=damping, preconditioner_every_steps=3, lr=1e-9, momentum=0.0
        )
        optimizer = build_optimizer(model, settings)
        preconditioners = []
        for step in range(4):
            set_hyperparams(optimizer, StepHyperparams(1.0, 1.0, 0.0, step))
            optimizer.zero_grad()
            (model(torch.randn(32, 6)) - 1).square().sum().backward()
            state = optimizer.state[model.weight]
            update = optimizer.precondition(model.weight, model.weight.grad, None)
            preconditioners.append(state["root1" if name == "shampoo" else "inputs_inverse"].clone())
        cosines.append(F.cosine_similarity(update.flatten(), model.weight.grad.flatten(), dim=0).item())
        assert torch.equal(preconditioners[0], preconditioners[2])
        assert not torch.equal(preconditioners[2], preconditioners[3])
    assert cosines[0] < cosines[1]
