# SPDX-License-Identifier: Apache-2.0
"""Throughput of a run, and its model FLOPs utilization (MFU): the share of the devices' peak that it reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from shoestring_trainer.training.precision import Precision

FORWARD_AND_BACKWARD = 3
"""FLOP of a training step per FLOP of its forward pass: one pass for the inputs' gradients, one for the weights'."""

PEAK_TFLOPS = {
    "Tesla T4": 65,
    "Tesla V100-SXM2-16GB": 125,
    "Tesla V100-SXM2-32GB": 125,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA L4": 121,
    "NVIDIA L40S": 362,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H200": 989,
}
"""fp16 and bf16 on tensor cores, dense, by the name that CUDA gives the device. Source: NVIDIA's data sheets of these
products, as of 2026-11; they print twice as much for sparse matrices from the A100 on."""


def measure_throughput(
    model: nn.Module, shapes: Mapping[tuple[int, ...], int], precision: Precision, device: torch.device, *,
    devices: int, images: int, seconds: float, data_wait_s: float, total_images: int,
) -> dict[str, float]:  # fmt: skip
    """Return a run's throughput for its result: images/s, and MFU where the device's peak is known.

    shapes        image shapes, C x H x W, and the run's number of images of each
    images        trained on in `seconds`, by all devices
    data_wait_s   of these seconds, those in which this process waited for images
    total_images  of the whole run, from its first step; `min_train_s` is the time their FLOP take at the peak
    """
    flops = sum(count * flop_per_image(model, shape, device) for shape, count in shapes.items())
    flop = round(FORWARD_AND_BACKWARD * flops / max(1, sum(shapes.values())))
    figures = {"flop_per_image": float(flop)}
    if images and seconds > 0:
        figures["images_per_s"] = images / seconds
        figures["data_wait_fraction"] = data_wait_s / seconds
        if peak := peak_flops(device, precision):
            figures["mfu"] = flop * images / seconds / (peak * devices)
            figures["min_train_s"] = flop * total_images / (peak * devices)
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def measure_clocks(train_s: float, around_s: float) -> dict[str, float]:
    """Return the two clocks by which sources state their times, for the result of a run that one process made whole.

    train_s   the steps alone: DAWNBench's rule, D. Page's
    around_s  initialization from images and the final evaluation, which count too by K. Jordan's rule (airbench)

    Neither counts compilation ahead of the first step, nor evaluations during the run.
    """
    clocks = {"train_s": train_s, "train_and_score_s": train_s + around_s}
    return {name: float(f"{value:.6g}") for name, value in clocks.items()}


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """FLOP/s of the device in half precision, if the table has it; None for other devices, and in fp32."""
    if device.type != "cuda" or precision is Precision.FP32:
        return None
    tera = PEAK_TFLOPS.get(torch.cuda.get_device_name(device))
    return None if tera is None else tera * 1e12


@torch.no_grad()
def flop_per_image(model: nn.Module, shape: Sequence[int], device: torch.device) -> int:
    """FLOP of one image's forward pass: convolutions and linear layers, two for each multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    learning = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape, device=device))
    model.train(learning)
    total: int = counter.get_total_flops()
    return total
