# SPDX-License-Identifier: Apache-2.0
"""Summary of a recipe's model, layer by layer: shapes, parameters and FLOP, on the meta device, without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from shoestring_core import recipes
from shoestring_core.durations import format_duration
from shoestring_core.wording.units import counted
from torch import Tensor, nn

from shoestring_trainer.training.cli.schedule_plot import SchedulePreview
from shoestring_trainer.training.errors import UserError
from shoestring_trainer.training.models.registry import build_model
from shoestring_trainer.training.results.throughput import FORWARD_AND_BACKWARD, PEAK_TFLOPS
from shoestring_trainer.training.settings import Settings

CLASSES = {"digits/": 10, "cifar10/": 10, "imagenet/": 1000}
DEFAULT_CLASSES = 10
SHOWN_DEVICES = {"L4": "NVIDIA L4", "A100": "NVIDIA A100-SXM4-80GB", "H100": "NVIDIA H100 80GB HBM3"}


@dataclass(frozen=True)
class LayerSummary:
    """A layer without sublayers. shape: of its output for one image. flop: of its forward pass."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flop: int


@dataclass(frozen=True)
class ModelSummary:
    """The layers in execution order. flop includes operations outside layers, as in attention."""

    name: str
    input: tuple[int, int, int]
    layers: tuple[LayerSummary, ...]
    parameters: int
    flop: int

    @property
    def flop_outside_layers(self) -> int:
        return self.flop - sum(layer.flop for layer in self.layers)


def summarize_model(
    name: str, params: Mapping[str, Any], *, size: int | None, classes: int | None
) -> ModelSummary:  # fmt: skip
    """Summarize the model that a recipe trains.

    Raises InvalidSpec or UserError for unknown names, or images too small for the model.
    """
    recipe = recipes.load(name)
    settings = Settings.from_params(recipes.resolve(name, params))
    channels = 1 if recipe.data.kind == "digits" else 3
    side = size or (8 if recipe.data.kind == "digits" else settings.image_size)
    default_classes = next(
        (count for start, count in CLASSES.items() if recipe.name.startswith(start)), DEFAULT_CLASSES
    )
    with torch.device("meta"):
        model = build_model(
            **recipe.model,
            settings=settings,
            classes=classes or default_classes,
            mean=[0.5] * channels,
            std=[0.5] * channels,
        )
    layers, flop = _trace_layers(model.eval(), (channels, side, side))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelSummary(recipe.reference, (channels, side, side), layers, parameters, flop)


def _trace_layers(model: nn.Module, shape: tuple[int, int, int]) -> tuple[tuple[LayerSummary, ...], int]:
    """Run a forward pass on the meta device; return the layers and the total FLOP."""
    from torch.utils.flop_counter import FlopCounterMode

    layers: list[LayerSummary] = []
    counter = FlopCounterMode(display=False)

    def add_hooks(name: str, module: nn.Module) -> None:
        flop_before = 0

        def before_forward(_module: nn.Module, _inputs: Any) -> None:
            nonlocal flop_before
            flop_before = counter.get_total_flops()

        def after_forward(_module: nn.Module, _inputs: Any, output: Any) -> None:
            kind = type(module).__name__
            parameters = sum(parameter.numel() for parameter in module.parameters())
            output_shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()
            layers.append(LayerSummary(name, kind, output_shape, parameters, counter.get_total_flops() - flop_before))

        module.register_forward_pre_hook(before_forward)
        module.register_forward_hook(after_forward)

    for name, module in model.named_modules():
        if not any(module.children()):
            add_hooks(name, module)
    try:
        with torch.no_grad(), counter:
            model(torch.zeros(1, *shape, device="meta"))
    except RuntimeError as error:
        raise UserError(
            f"the model doesn't accept images of {shape[1]} x {shape[2]} ({str(error).splitlines()[0]}); "
            "give another --image-size"
        ) from error
    return tuple(layers), counter.get_total_flops()


def format_summary(summary: ModelSummary) -> str:
    """Return a table of the layers as text, 80 columns wide."""
    channels, height, width = summary.input
    rows = [_format_row(layer.name, layer.kind, layer.shape, layer.parameters, layer.flop) for layer in summary.layers]
    if summary.flop_outside_layers:
        rows.append(_format_row("", "outside layers", (), 0, summary.flop_outside_layers))
    rows.append(_format_row("", "total", (), summary.parameters, summary.flop))
    title = f"{summary.name}, images of {channels}×{height}×{width}; FLOP of one forward pass"
    return "\n".join([title, "", _format_columns("LAYER", "KIND", "OUTPUT", "PARAMETERS", "FLOP"), *rows])


def training_flop(preview_schedule: SchedulePreview, flop_at: Callable[[int], int]) -> float:
    """Return the FLOP of a whole run, each phase at its size.

    flop_at  FLOP of one image's forward pass, by image size (0: the data's own)
    """
    return FORWARD_AND_BACKWARD * sum(
        float(flop_at(phase.image_size)) * phase.steps * phase.batch_size for phase in preview_schedule.schedule.phases
    )


def format_min_training_time(preview_schedule: SchedulePreview, flop: float) -> str:
    """Return a run's FLOP, and the least time they take: at the peak throughput of some devices."""
    images = sum(phase.steps * phase.batch_size for phase in preview_schedule.schedule.phases)
    times = (f"{short} {_format_seconds(flop / PEAK_TFLOPS[name] / 1e12)}" for short, name in SHOWN_DEVICES.items())
    return (
        f"training: {counted(images, 'image')}, forward and backward {_format_count(flop)}FLOP;\n"
        f"minimum time, at peak throughput: {', '.join(times)}"
    )


def to_json(summary: ModelSummary) -> dict[str, Any]:
    return asdict(summary)


def _format_row(name: str, kind: str, shape: tuple[int, ...], parameters: int, flop: int) -> str:
    return _format_columns(
        _shorten(name, 26),
        _shorten(kind, 16),
        "×".join(map(str, shape)),
        f"{parameters:,}" if parameters else "",
        _format_count(flop),
    )


def _format_columns(name: str, kind: str, shape: str, parameters: str, flop: str) -> str:
    return f"{name:26} {kind:16} {shape:>12} {parameters:>12} {flop:>7}"


def _format_count(number: float) -> str:
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:g}" if number else ""


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2g}s" if seconds < 10 else format_duration(seconds)


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]
