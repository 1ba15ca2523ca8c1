# SPDX-License-Identifier: Apache-2.0
"""PyTorch's error about a batch norm that has nothing to normalize, in words about the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shoestring_core.wording.units import counted
from torch import Tensor

from shoestring_trainer.training.errors import UserError


@contextmanager
def name_batch_norm_error(images_NCHW: Tensor) -> Iterator[None]:
    """Say of PyTorch's error about a batch norm over a single value which parameters are too small."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        count, _, height, width = images_NCHW.shape
        raise UserError(
            f"a batch norm of this network needs two values a channel, and gets one from {counted(count, 'image')} of "
            f"{height} x {width} pixels; raise batch_size (a process gets its share of it, or micro_batch_size) or "
            "image_size"
        ) from error
