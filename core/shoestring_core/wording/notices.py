# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that take longer to store than a spot machine has after its notice."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import FiniteFloat

from shoestring_core.durations import format_duration
from shoestring_core.wording.reason import Reason


@dataclass(frozen=True)
class CheckpointOutlastsNotice(Reason):
    """`basis`: measured, on machines of this type in earlier runs; offered: the least, by the network and disk that
    the offer has; this_run: measured just now. `notice_s`: from when an agent learns of the machine's end until then.
    """

    code = "checkpoint_outlasts_notice"
    basis: str
    type: str
    bytes: int
    needed_s: FiniteFloat
    notice_s: FiniteFloat

    def text(self) -> str:
        needed = format_duration(self.needed_s)
        takes = {
            "measured": f"took {needed} to reach and to store in earlier runs on {self.type}",
            "offered": f"takes {needed} or more to store by the network and disk of {self.type}",
        }.get(self.basis, f"took {needed} to reach and to store on {self.type}")
        return (
            f"A checkpoint of this job ({self.bytes / 1e9:.2g} GB) {takes}, longer than the "
            f"{format_duration(self.notice_s)} between a spot machine's notice and its end, so an interruption loses "
            "what was trained since the last stored one: shorten checkpoint.every, use on-demand machines "
            "(resources.spot: never) or a type with a faster network and disk, or train a smaller model."
        )
