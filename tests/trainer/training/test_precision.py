# SPDX-License-Identifier: Apache-2.0
"""fp16 with a loss scale is really executed, on the CPU too, and an overflow costs one step on all ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shoestring_trainer.training.data.batch_loader import BatchLoader
from shoestring_trainer.training.data.dataset import LabeledImages
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.models.registry import build_model, init_from_data
from shoestring_trainer.training.precision import Precision, choose_precision
from shoestring_trainer.training.step import Trainer

from tests.trainer.training.first_phase import first_phase
from tests.trainer.training.gangs import DIGITS, finished

CPU = torch.device("cpu")
OVERFLOW_ON_RANK_1 = """
import os, sys
from shoestring_trainer.training.models import registry
from shoestring_trainer.training import rank

STEP, convnet, seen = 20, registry.MODELS["convnet"], 0

def poisoned(*arguments):
    network = convnet(*arguments)
    def overflow(gradient):
        global seen
        seen += 1
        # the first backward pass is the throwaway one that settles DDP's buckets
        return gradient * float("inf") if seen == STEP + 1 and os.environ["RANK"] == "1" else gradient
    next(network.parameters()).register_hook(overflow)
    return network

registry.MODELS["convnet"] = poisoned
rank.main(sys.argv[1:])
"""


def test_fp16_follows_fp32_for_fifty_steps(tmp_path: Path):
    params = DIGITS | {"batch_size": 28, "epochs": 1, "lr": 0.005}
    losses = {}
    for precision in ("fp16", "bf16", "fp32"):
        run = finished(tmp_path / precision, params=params, precision=precision, bare=True)
        assert run.events("started")[0]["precision"] == precision
        assert run.events("gradient_overflow") == []
        losses[precision] = torch.tensor([line["v"]["train/loss"] for line in run.metrics()])
    assert len(losses["fp32"]) >= 50
    away = {precision: (losses[precision] - losses["fp32"]).abs() for precision in ("fp16", "bf16")}
    assert 0 < away["fp16"].mean() < 0.02  # of losses around 2
    assert away["fp16"].max() < 0.06
    assert away["fp16"].mean() < away["bf16"].mean() < 0.1  # three more bits of mantissa


def first_losses(precision: Precision, steps: int) -> list[float]:
    """Return the losses of first steps of a narrow airbench94 on images whose class is their colour."""
    setup = first_phase("cifar10/airbench94", precision, CPU, batch_size=20, width=8)
    random = torch.Generator().manual_seed(1)
    labels_N = torch.arange(40) % 10
    colours_KCHW = torch.randint(40, 215, (10, 3, 1, 1), generator=random)
    noise_NCHW = torch.randint(-40, 40, (40, 3, 32, 32), generator=random)
    images = LabeledImages((colours_KCHW[labels_N] + noise_NCHW).clamp(0, 255).byte(), labels_N)
    data = replace(setup.loader.dataset, train=images, val=images)
    loader = BatchLoader(lambda *_: data, setup.settings, CPU)
    loader.start_phase(setup.schedule.phases[0], ())
    torch.manual_seed(0)
    model = build_model(
        **setup.recipe.model, settings=setup.settings, classes=10, mean=data.mean, std=data.std
    )  # fmt: skip
    init_from_data(model, images.images_NCHW, data.max_value)
    setup = replace(setup, loader=loader, model=model)
    trainer, sampler = Trainer(setup, frozenset(), lambda: False), setup.build_sampler()
    hyperparams = [setup.schedule.step_hyperparams(step) for step in range(steps)]
    queued = [trainer.train_step(sampler.batch(20 * step, 20), 20, hyperparams[step]) for step in range(steps)]
    return [step.numbers.read()[0] / 20 for step in queued]


def test_pure_half_precision_follows_fp32_where_the_loss_is_a_sum():
    """Also on a CPU, where PyTorch's fused SGD leaves half weights as they are."""
    half, full = (torch.tensor(first_losses(precision, 8)) for precision in (Precision.FP16_TRUE, Precision.FP32))
    assert 0 < (half - full).abs().max() < 0.002
    assert full[-1] < full[0] - 0.05


def test_pure_half_precision_keeps_norms_in_fp32_and_refuses_what_it_is_too_coarse_for():
    setup = first_phase("cifar10/airbench94", Precision.FP16_TRUE, CPU)
    setup.precision.convert(setup.model, setup.settings)
    for module in setup.model.modules():
        kept = torch.float32 if isinstance(module, torch.nn.BatchNorm2d) else torch.float16
        assert all(parameter.dtype == kept for parameter in module.parameters(recurse=False))
    for changed, message in (({"sum_loss": False}, "gradients of a mean loss"), ({"optimizer": "kfac"}, "kfac")):
        with pytest.raises(UserError, match=message):
            setup.precision.convert(setup.model, replace(setup.settings, **changed))


def test_an_overflow_on_one_rank_skips_one_step_on_all(tmp_path: Path):
    script = tmp_path / "overflow.py"
    script.write_text(OVERFLOW_ON_RANK_1)
    every = {"every_s": None, "every_steps": 1}
    params = DIGITS | {"epochs": 1, "batch_size": 64, "rotate": 0, "translate": 0}
    run = finished(
        tmp_path / "run", procs=2, script=script, bare=True, params=params, precision="fp16", checkpoint=every
    )  # fmt: skip
    (overflow,) = run.events("gradient_overflow")
    assert (overflow["step"], overflow["scale"]) == (20, 32768.0)
    lines = run.metrics()
    assert [line["step"] for line in lines] == list(range(1, run.events("started")[0]["steps_total"] + 1))
    assert lines[-1]["v"]["train/loss"] < lines[0]["v"]["train/loss"]
    assert [word["outcome"] for word in run.exits()] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("flags", "chosen"), [("fpu avx512_bf16", "bf16"), ("amx_bf16 sse", "bf16"), ("fpu avx2", "fp32")]
)
def test_auto_is_bf16_where_the_cpu_is_fast_at_it(tmp_path: Path, flags: str, chosen: str):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor: 0\nflags\t\t: {flags}\n")
    assert choose_precision("auto", CPU, info).value == chosen
    assert choose_precision("fp16", CPU, info) is Precision.FP16


def test_auto_is_fp16_on_a_gpu():
    assert choose_precision("auto", torch.device("cuda")) is Precision.FP16
