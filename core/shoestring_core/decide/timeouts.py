# SPDX-License-Identifier: Apache-2.0
"""The durations that decisions depend on, in µs. The defaults are the local cloud's; all processes need the same."""

from __future__ import annotations

from dataclasses import dataclass

S = 1_000_000
"""Microseconds in a second."""


@dataclass(frozen=True)
class Terms:
    fund_lease: int = 120 * S
    """How far ahead a machine is funded."""
    drain: int = 15 * S
    """T_drain: bound from the order to stop to the provider's word that the machine has ended."""
    lease: int = 30 * S
    """How long a machine may be silent before it is ended through the provider."""
    boot: int = 60 * S
    """How long a machine may take from its launch to its first word."""
    consistency: int = 2 * S
    """How long the provider may hide a fresh machine."""
    call: int = 10 * S
    """A launch call is over, answered or not, by then."""
    launch_window: int = 60 * S
    """An attempt that has no complete gang by then gives up."""
    forming: int = 30 * S
    """How long a member may take to say that it is ready for a generation."""
    blame: int = 10 * S
    """How long all machines must go on reporting before an error is held to be the user's."""
    inferred: int = 300 * S
    """A machine that was seen and is unknown to the provider in two sweeps so far apart is gone."""

    @property
    def patience(self) -> int:
        """How long an unwanted machine may take to leave by itself; what is left of T_drain is for the provider."""
        return self.drain // 2
