# SPDX-License-Identifier: Apache-2.0
"""Errors of a network about images or batches that are too small for it, in words about the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shoestring_core.wording.units import counted
from torch import Tensor

from shoestring_trainer.training.errors import UserError, first_line

_WRONG_SIZE = (
    "Output size is too small",  # of PyTorch's pooling
    "can't be greater than actual input size",  # of its convolutions
    "Wrong image height", "Wrong image width",  # of torchvision's vision transformers
    "doesn't match model",  # of timm's
)  # fmt: skip


@contextmanager
def name_input_errors(images_NCHW: Tensor) -> Iterator[None]:
    """Raise UserError, with the parameters to change, where a network can't take these images, or so few of them."""
    try:
        yield
    except (ValueError, RuntimeError, AssertionError) as error:
        count, _, height, width = images_NCHW.shape
        if "more than 1 value per channel" in str(error):
            raise UserError(
                f"a batch norm of this network needs two values a channel, and gets one from {counted(count, 'image')} "
                f"of {height} x {width} pixels; raise batch_size (a process gets its share of it, or micro_batch_size) "
                "or image_size"
            ) from error
        if any(words in str(error) for words in _WRONG_SIZE):
            raise UserError(
                f"this network can't take images of {height} x {width} pixels ({first_line(error)}); change image_size "
                "or eval_image_size, or choose another model"
            ) from error
        raise
