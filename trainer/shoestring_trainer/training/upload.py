# SPDX-License-Identifier: Apache-2.0
"""The two ways between host and device in a training step. Neither makes the host wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(host: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device, which its stream makes when it gets there; on a CPU the tensor itself."""
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


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
