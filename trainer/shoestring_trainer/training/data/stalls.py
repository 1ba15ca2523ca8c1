# SPDX-License-Identifier: Apache-2.0
"""How long training has waited for its input, by cause."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import monotonic

from shoestring_core.results import DECODE_STALL_S, DOWNLOAD_STALL_S, UPLOAD_STALL_S

REPORT_S = 10.0
"""Seconds of waiting that are reported before the next evaluation does: an epoch may take hours."""


@dataclass
class InputStalls:
    """Seconds in which the host was blocked. Work that is done ahead of the step doesn't count.

    download_s  for shards that are streamed, on this machine and on those of other ranks
    decode_s    for images to be decoded
    upload_s    for the copy to the device; what the device copies by itself doesn't count
    """

    download_s: float = 0.0
    decode_s: float = 0.0
    upload_s: float = 0.0
    _reported: InputStalls | None = None

    def add_take(self, began: float, downloading_s: float) -> None:
        """Add a wait for decoded images since `began`, in which their decoder waited so long for shards."""
        waited_s = monotonic() - began
        download_s = min(waited_s, downloading_s)
        self.download_s += download_s
        self.decode_s += waited_s - download_s

    @property
    def seconds(self) -> dict[str, float]:
        """By the names of their metrics; empty if nothing was waited for."""
        seconds = {DOWNLOAD_STALL_S: self.download_s, DECODE_STALL_S: self.decode_s, UPLOAD_STALL_S: self.upload_s}
        return {name: float(f"{value:.4g}") for name, value in seconds.items()} if any(seconds.values()) else {}

    def since_last_report(self) -> dict[str, float]:
        """Return the seconds since this was called before, as metrics."""
        unreported, self._reported = self._unreported, replace(self)
        return unreported.seconds

    @property
    def report_is_due(self) -> bool:
        unreported = self._unreported
        return unreported.download_s + unreported.decode_s + unreported.upload_s >= REPORT_S

    @property
    def _unreported(self) -> InputStalls:
        before = self._reported or InputStalls()
        return InputStalls(
            self.download_s - before.download_s, self.decode_s - before.decode_s, self.upload_s - before.upload_s
        )
