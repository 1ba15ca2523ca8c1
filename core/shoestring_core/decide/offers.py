# SPDX-License-Identifier: Apache-2.0
"""Offers: what providers rent out now."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from shoestring_core.decide.billing import BillingRules, hourly

InterruptionBand = Literal["<5%", "5-10%", "10-15%", "15-20%", ">20%"]
"""How often spot machines of a type were interrupted in the last month, as the EC2 Spot Instance Advisor has it."""


@dataclass(frozen=True)
class Hardware:
    """What a machine has. `network_mbps`: its bandwidth in Mbit/s; None: not known."""

    vcpus: int
    memory_mib: int
    gpu: str | None = None
    gpus: int = 0
    gpu_memory_mib: int = 0
    network_mbps: int | None = None


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
class Offer:
    """One type of machine in one zone and market. Prices are decimal dollars per hour.

    slots         machines of this provider that may run at once, over all its offers; None: no limit
    source        where the price comes from
    simulated     nobody is charged these prices
    hardware      None: not known
    interruption  of spot machines; None: not known
    billing       how the provider bills the time
    quota         of the account, that its machines count against; None: none, or not known
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
    fetched_at: int | None = field(default=None, compare=False)

    @cached_property
    def rate_cap(self) -> str:
        """What a machine never exceeds, disk and address included: holds are made of it."""
        return hourly(self.billing.extras, self.on_demand_price)
