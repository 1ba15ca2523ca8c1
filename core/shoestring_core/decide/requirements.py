# SPDX-License-Identifier: Apache-2.0
"""Requirements: what a job needs of the machines that it is to run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from shoestring_core.spec.model import Resources


@dataclass(frozen=True)
class Requirements:
    """What the machines of a job must be; made from its spec.

    provider  the only provider that will do; None: any
    regions   and `zones`, as the provider names them; empty: any
    type      the only type of machine that will do; None: any
    reserved_time  µs for which money is held before a machine starts, so that the job can finish; 0: a lease at a time
    """

    nodes: int = 1
    provider: str | None = None
    regions: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    spot: Literal["only", "prefer", "never"] = "prefer"
    type: str | None = None
    reserved_time: int = 0

    @classmethod
    def of(cls, resources: Resources, chosen_type: str | None = None, reserved_time: int = 0) -> Self:
        """Those of a job with these resources, for which a type of machine may have been chosen."""
        return cls(
            nodes=resources.nodes,
            provider=resources.provider,
            regions=resources.regions,
            zones=resources.zones,
            spot=resources.spot,
            type=resources.instance or chosen_type,
            reserved_time=reserved_time,
        )
