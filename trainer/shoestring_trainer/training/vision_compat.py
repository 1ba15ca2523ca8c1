# SPDX-License-Identifier: Apache-2.0
"""The only module that imports torchvision and timm. Importing it takes seconds, so it is imported only where needed.

torchvision's C++ extension does not load with a CPU build of torch from another source, and importing torchvision then
fails on two missing operators. They are not used here, so declaring them first makes the import succeed.
"""

from __future__ import annotations

import sys

import torch

from shoestring_trainer.training.lazy_dynamo import restore_dynamo

try:
    restore_dynamo()  # torchvision registers operators with it
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _operators = torch.library.Library("torchvision", "DEF")  # lives as long as this module
    for _operator in ("nms", "qnms"):
        _operators.define(_operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

import timm
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.blur_pool import BlurPool2d
from torchvision import datasets, io, models

__all__ = ["BlurPool2d", "SelectAdaptivePool2d", "datasets", "io", "models", "timm"]
