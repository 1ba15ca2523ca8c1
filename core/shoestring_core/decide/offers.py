# SPDX-License-Identifier: Apache-2.0
"""Offers: what providers rent out now."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from shoestring_core.decide.billing import BillingRules, hourly
from shoestring_core.task import Device

InterruptionBand = Literal["<5%", "5-10%", "10-15%", "15-20%", ">20%"]
"""How often spot machines of a type were interrupted in the last month, as the EC2 Spot Instance Advisor has it."""


@dataclass(frozen=True)
class Hardware:
    """What a machine has.

    network_mbps    bandwidth that it always has, in Mbit/s; None: not known
    cluster         machines of its type can be placed close together; False also where that isn't known
    efa             and then have EFA, which passes by the operating system's network
    simulated_gpus  it stands in for one with these GPUs and has none: its ranks train on CPUs
    """

    vcpus: int
    memory_mib: int
    gpu: str | None = None
    gpus: int = 0
    gpu_memory_mib: int = 0
    network_mbps: int | None = None
    cluster: bool = False
    efa: bool = False
    simulated_gpus: bool = False

    @property
    def gpu_memory_gb(self) -> int:
        """Of each GPU, as makers give it: their GB are GiB."""
        return self.gpu_memory_mib // 1024

    @property
    def device(self) -> Device:
        """What its ranks train on."""
        if not self.gpus:
            return "auto"
        return "cpu" if self.simulated_gpus else "cuda"

    @property
    def gpu_text(self) -> str:
        return f"{self.gpus} × {self.gpu} with {self.gpu_memory_gb} GB" if self.gpu else "no GPU"


@dataclass(frozen=True)
class Quota:
    """How much the account may run at once in one region: vCPUs of all machines that count against it.

    name       as the provider has it
    raised_at  where to ask for more
    """

    name: str
    vcpus: int
    raised_at: str


@dataclass(frozen=True)
class Disk:
    """A machine's disk, and between which bounds a job may choose another. Dollars are decimals, for 30 days.

    kind               as users read it, such as gp3
    gib                its size; `iops`: operations per second; `mib_per_s`: throughput
    smallest, largest  what a job may have, in the order (GiB, IOPS, MiB/s)
    iops_per_gib       no more IOPS than so many times the size; `mib_per_s_per_iops`: nor throughput than IOPS
    per_gib, per_iops, per_mib_per_s  what each costs, of IOPS and throughput what is above the smallest
    """

    kind: str
    gib: int
    iops: int
    mib_per_s: int
    smallest: tuple[int, int, int]
    largest: tuple[int, int, int]
    iops_per_gib: int
    mib_per_s_per_iops: str
    per_gib: str
    per_iops: str
    per_mib_per_s: str


@dataclass(frozen=True)
class Offer:
    """One type of machine in one zone and market. Prices are decimal dollars per hour.

    slots         machines of this provider that may run at once, over all its offers; None: no limit
    source        where the price comes from
    simulated     nobody is charged these prices
    hardware      None: not known
    interruption  of spot machines; None: not known
    billing       how the provider bills the time
    quota         of the account, that its machines count against; None: none, or not known
    disk          of its machines, whose price is in `billing`; None: a job can't choose it
    data_role     that a machine gets whose job's data are in S3, to read them with; None: machines get none
    fetched_at    when the provider answered last (µs UTC); None: just now
    """

    provider: str
    region: str
    zone: str
    type: str
    market: Literal["spot", "on_demand"]
    price: str
    on_demand_price: str
    slots: int | None
    source: str
    simulated: bool
    hardware: Hardware | None = None
    interruption: InterruptionBand | None = None
    billing: BillingRules = field(default_factory=BillingRules)
    quota: Quota | None = None
    disk: Disk | None = None
    data_role: str | None = None
    fetched_at: int | None = field(default=None, compare=False)

    @cached_property
    def rate_cap(self) -> str:
        """What a machine never exceeds, disk and address included: holds are made of it."""
        return hourly(self.billing.extras, self.on_demand_price)
