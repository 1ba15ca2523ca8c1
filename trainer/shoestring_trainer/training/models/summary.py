# SPDX-License-Identifier: Apache-2.0
"""A recipe's network, layer by layer: shapes, parameters and FLOP, worked out without a byte of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from shoestring_core import recipes
from torch import Tensor, nn

from shoestring_trainer.training.cli.schedule_plot import Forecast
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.models.compiler import restore_compiler
from shoestring_trainer.training.models.networks import build_model
from shoestring_trainer.training.results.progress import duration
from shoestring_trainer.training.results.throughput import FORWARD_AND_BACKWARD, PEAK_TFLOPS
from shoestring_trainer.training.settings import Settings

CLASSES = {"digits/": 10, "cifar10/": 10, "imagenet/": 1000}
DEFAULT_CLASSES = 10
SHOWN_PEAKS = {"L4": "NVIDIA L4", "A100": "NVIDIA A100-SXM4-80GB", "H100": "NVIDIA H100 80GB HBM3"}


@dataclass(frozen=True)
class Layer:
    """A layer that has no others inside. shape: of its output for one image. flop: of its forward pass."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flop: int


@dataclass(frozen=True)
class Network:
    """The layers in the order in which they ran. flop also counts what runs between layers, as in attention."""

    name: str
    input: tuple[int, int, int]
    layers: tuple[Layer, ...]
    parameters: int
    flop: int

    @property
    def between(self) -> int:
        return self.flop - sum(layer.flop for layer in self.layers)


def describe(name: str, params: Mapping[str, Any], *, size: int | None, classes: int | None) -> Network:
    """The network that a recipe trains. Raises InvalidSpec or UserError for what is unknown, or images too small."""
    recipe = recipes.load(name)
    settings = Settings.from_params(recipes.resolve(name, params))
    channels = 1 if recipe.data.kind == "digits" else 3
    side = size or (8 if recipe.data.kind == "digits" else settings.image_size)
    known = next((count for start, count in CLASSES.items() if recipe.name.startswith(start)), DEFAULT_CLASSES)
    with torch.device("meta"):
        model = build_model(
            **recipe.model, settings=settings, classes=classes or known, mean=[0.5] * channels, std=[0.5] * channels
        )
    layers, flop = _run(model.eval(), (channels, side, side))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Network(recipe.reference, (channels, side, side), layers, parameters, flop)


def _run(model: nn.Module, shape: tuple[int, int, int]) -> tuple[tuple[Layer, ...], int]:
    restore_compiler()
    from torch.utils.flop_counter import FlopCounterMode

    layers: list[Layer] = []
    counter = FlopCounterMode(display=False)

    def watch(name: str, module: nn.Module) -> None:
        before = 0

        def enter(_module: nn.Module, _inputs: Any) -> None:
            nonlocal before
            before = counter.get_total_flops()

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            kind = type(module).__name__
            parameters = sum(parameter.numel() for parameter in module.parameters())
            found = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()
            layers.append(Layer(name, kind, found, parameters, counter.get_total_flops() - before))

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    for name, module in model.named_modules():
        if not any(module.children()):
            watch(name, module)
    try:
        with torch.no_grad(), counter:
            model(torch.zeros(1, *shape, device="meta"))
    except RuntimeError as error:
        raise UserError(
            f"the network can't take images of {shape[1]} x {shape[2]} ({str(error).splitlines()[0]}); "
            "give another --size"
        ) from error
    return tuple(layers), counter.get_total_flops()


def print_network(network: Network) -> str:
    """A table of the layers, 80 columns wide, without colour."""
    channels, height, width = network.input
    rows = [_row(layer.name, layer.kind, layer.shape, layer.parameters, layer.flop) for layer in network.layers]
    if network.between:
        rows.append(_row("", "between layers", (), 0, network.between))
    rows.append(_row("", "whole network", (), network.parameters, network.flop))
    title = f"{network.name}, images of {channels}×{height}×{width}; FLOP of one forward pass"
    return "\n".join([title, "", _line("LAYER", "KIND", "OUTPUT", "PARAMETERS", "FLOP"), *rows])


def training_flop(told: Forecast, flop_at: Callable[[int], int]) -> float:
    """FLOP of a whole run, each phase at its size. flop_at: of one image's forward pass, by size (0: the data's)."""
    return FORWARD_AND_BACKWARD * sum(
        float(flop_at(phase.size)) * phase.steps * phase.batch for phase in told.plan.phases
    )


def print_floor(told: Forecast, flop: float) -> str:
    """What training takes at least: its FLOP, and the time of that at the peak of some devices."""
    images = sum(phase.steps * phase.batch for phase in told.plan.phases)
    times = (f"{short} {_seconds(flop / PEAK_TFLOPS[name] / 1e12)}" for short, name in SHOWN_PEAKS.items())
    return (
        f"training: {images:,} images, forward and backward {_count(flop)}FLOP;\n"
        f"at a device's peak, so never faster: {', '.join(times)}"
    )


def as_json(network: Network) -> dict[str, Any]:
    return asdict(network)


def _row(name: str, kind: str, shape: tuple[int, ...], parameters: int, flop: int) -> str:
    return _line(
        _short(name, 26),
        _short(kind, 16),
        "×".join(map(str, shape)),
        f"{parameters:,}" if parameters else "",
        _count(flop),
    )


def _line(name: str, kind: str, shape: str, parameters: str, flop: str) -> str:
    return f"{name:26} {kind:16} {shape:>12} {parameters:>12} {flop:>7}"


def _count(number: float) -> str:
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:g}" if number else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]
