# SPDX-License-Identifier: Apache-2.0
"""The two ways between host and device in a training step. Neither makes the host wait for the device."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def upload(host: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device; on a CPU the tensor itself.

    A stream of its own makes the copy, while that of the steps is still at work on an earlier one; what the latter does
    from now on waits for it. Memory that isn't pinned is copied to pinned memory first.
    """
    if device.type == "cpu":
        return host
    pinned, stream, steps = host.pin_memory(), upload_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        copy = pinned.to(device, non_blocking=True)
    steps.wait_stream(stream)
    copy.record_stream(steps)  # its memory belongs to the other stream, which must not reuse it before the step is done
    return copy


def upload_rows(host: Tensor, rows_N: Tensor, device: torch.device) -> Tensor:
    """Return these rows of a tensor on the device, gathered at once and into the memory that is copied from."""
    gathered = torch.empty(len(rows_N), *host.shape[1:], dtype=host.dtype, pin_memory=device.type == "cuda")
    return upload(torch.index_select(host, 0, rows_N, out=gathered), device)


@cache
def upload_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream that makes the copies to a device."""
    return torch.cuda.Stream(device)


class Download:
    """Numbers on their way from the device to the host."""

    def __init__(self, values: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._values = values
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """Return the numbers; wait for them if they have not arrived."""
        if self._copied:
            self._copied.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers
