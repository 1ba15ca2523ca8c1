# SPDX-License-Identifier: Apache-2.0
"""Requirements: what a job needs of the machines that it is to run on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

from shoestring_core.decide.offers import Hardware
from shoestring_core.spec.gpus import GpuChoice
from shoestring_core.spec.model import Disk, Resources

GIB = 2**30


@dataclass(frozen=True)
class DiskNeed:
    """The disk that a job wants; None: what the provider gives without being asked."""

    gib: int | None = None
    iops: int | None = None
    mib_per_s: int | None = None

    @classmethod
    def of(cls, disk: Disk) -> Self:
        size = disk.size_bytes
        return cls(None if size is None else -(-size // GIB), disk.iops, disk.throughput)


@dataclass(frozen=True)
class Requirements:
    """What the machines of a job must be; made from its spec.

    provider  the only provider that will do; None: any
    regions   and `zones`, as the provider names them; empty: any
    type      the only type of machine that will do; None: any
    gpus      alternatives, one of which each machine must have; empty: none is needed
    procs     ranks that each machine runs, if the job says so: with GPUs it has one for each
    disk      of each machine; None: any
    cluster   they are placed close together, in one zone
    rate      micro-dollars an hour that all of them together may cost, disks and addresses included; None: any
    reserved_time  µs for which money is held before a machine starts, so that the job can finish; 0: a lease at a time
    """

    nodes: int = 1
    provider: str | None = None
    regions: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    spot: Literal["only", "prefer", "never"] = "prefer"
    type: str | None = None
    reserved_time: int = 0
    gpus: tuple[GpuChoice, ...] = ()
    procs: int | None = None
    disk: DiskNeed | None = None
    rate: int | None = None
    cluster: bool = False

    @classmethod
    def of(
        cls, resources: Resources, chosen_type: str | None = None, reserved_time: int = 0, rate: int | None = None
    ) -> Self:
        """Those of a job with these resources, for which a type of machine may have been chosen."""
        return cls(
            nodes=resources.nodes,
            provider=resources.provider,
            regions=resources.regions,
            zones=resources.zones,
            spot=resources.spot,
            type=resources.instance or chosen_type,
            reserved_time=reserved_time,
            gpus=resources.gpu_choices,
            procs=resources.procs,
            disk=DiskNeed.of(resources.disk) if resources.disk else None,
            rate=rate,
            cluster=resources.placement == "cluster",
        )

    def beside(self, other: Hardware) -> Self:
        """Those of a machine that trains together with another: with as many GPUs, so that they run as many ranks."""
        if not other.gpus:
            return self
        return replace(self, gpus=tuple(replace(gpu, count=other.gpus) for gpu in self.gpus or (GpuChoice(),)))
