# SPDX-License-Identifier: Apache-2.0
"""The durations that decisions depend on, in µs. The defaults fit the local cloud; all processes need the same."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shoestring_core.durations import parse_duration

S = 1_000_000
"""Microseconds in a second."""


def _to_microseconds(value: object) -> object:
    return round(parse_duration(value) * S) if isinstance(value, str) else value


Microseconds = Annotated[int, BeforeValidator(_to_microseconds), Field(gt=0)]
"""An integer; or text, which is a duration such as 90s or 5m."""


class Timeouts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    funding_lease: Microseconds = 120 * S
    """How far ahead a machine is funded."""
    drain: Microseconds = 15 * S
    """From the order to stop until the provider reports that the machine has terminated."""
    machine_lease: Microseconds = 30 * S
    """How long a machine may go without reporting before it is terminated through the provider."""
    boot: Microseconds = 60 * S
    """From a machine's launch until its agent's first request."""
    hello: Microseconds | None = None
    """From a machine's launch until its user data's first report; None: the provider's machines send none."""
    consistency_window: Microseconds = 2 * S
    """How long the provider's list may lack a machine that was just launched."""
    launch_call: Microseconds = 10 * S
    """The time within which a launch call has been answered or has failed."""
    launch_window: Microseconds = 60 * S
    """An attempt whose gang is still incomplete after this time is given up."""
    forming: Microseconds = 30 * S
    """How long a member may take to get ready for a generation."""
    attribution_window: Microseconds = 10 * S
    """How long all machines must have reported since an error before it counts as the user's, not a lost machine's."""
    join_window: Microseconds = 10 * S
    """How long a machine that could join waits for others that are starting; also the newest its last report may be."""
    notice: Microseconds | None = None
    """From when an agent learns that the provider ends its spot machine until that end; None: not known."""
    presumed_terminated_after: Microseconds = 300 * S
    """A machine that the provider listed once and then omits for this long is presumed terminated."""

    @property
    def self_exit_window(self) -> int:
        """How long an unwanted machine may take to exit by itself; the rest of `drain` is left for the provider."""
        return self.drain // 2
