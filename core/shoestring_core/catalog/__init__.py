# SPDX-License-Identifier: Apache-2.0
"""Dated price lists of public clouds, built in: what their GPU machines are and cost, without an account.

Each *.json here is one provider's list, with the source and date of its facts. Prices of spot machines are estimates:
the on-demand price less an average saving.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources
from typing import get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter

from shoestring_core.decide.billing import BillingRules
from shoestring_core.decide.offers import Hardware, InterruptionBand, Offer
from shoestring_core.wording import NestedReason, offers

MIB_PER_GIB = 1024


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class LeftOut(_Frozen):
    """Types of machines that are not offered, with the GPUs that only they have, or regions in which none is."""

    types: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    reason: NestedReason


class MachineType(_Frozen):
    """`on_demand`: dollars per hour in the list's region. `spot`: by region: saving in percent, interruption band."""

    type: str
    gpu: str
    gpus: int
    gpu_memory_gib: int
    vcpus: int | None
    memory_gib: int | None
    on_demand: str
    spot: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class LivePrices:
    """On-demand prices in dollars per hour, by region and type, and where they come from.

    In these regions they take the place of the list's: a type without one isn't there.
    """

    by_region: Mapping[str, Mapping[str, str]]
    source: str


class PriceList(_Frozen):
    """The facts that a provider's file states."""

    provider: str
    on_demand_region: str
    """The only region whose on-demand prices are known."""
    on_demand_source: str
    spot_source: str
    types: tuple[MachineType, ...]
    left_out: tuple[LeftOut, ...]

    def all_left_out(self) -> tuple[LeftOut, ...]:
        """What the file leaves out, and what can't be offered because the file lacks a fact."""
        unsized = tuple(machine.type for machine in self.types if machine.vcpus is None or machine.memory_gib is None)
        regions = {region for machine in self.types for region in machine.spot} - {self.on_demand_region}
        return (
            *self.left_out,
            *([LeftOut(types=unsized, reason=offers.SizeUnknown())] if unsized else []),
            LeftOut(regions=tuple(sorted(regions)), reason=offers.PricesUnknown(self.on_demand_region)),
        )

    def offers(
        self,
        zones: Mapping[str, Collection[str]],
        slots: int | None,
        rules: BillingRules,
        live: LivePrices | None = None,
    ) -> list[Offer]:
        """The offers in these zones, by region. `slots`: machines that may run at once; None: no limit."""
        return [
            offer
            for region, of_region in zones.items()
            for machine in self.types
            if (on_demand := self.on_demand(machine, region, live)) is not None
            for zone in of_region
            for offer in self._offers_of(machine, region, zone, *on_demand, slots, rules)
        ]

    def on_demand(self, machine: MachineType, region: str, live: LivePrices | None) -> tuple[str, str] | None:
        """Its price there, and where that comes from; None: it isn't known."""
        if live is not None and region in live.by_region:
            price = live.by_region[region].get(machine.type)
            return None if price is None else (price, live.source)
        return (machine.on_demand, self.on_demand_source) if region == self.on_demand_region else None

    def _offers_of(
        self,
        machine: MachineType,
        region: str,
        zone: str,
        on_demand: str,
        source: str,
        slots: int | None,
        rules: BillingRules,
    ) -> Iterable[Offer]:
        if machine.vcpus is None or machine.memory_gib is None:
            return
        hardware = Hardware(
            vcpus=machine.vcpus,
            memory_mib=machine.memory_gib * MIB_PER_GIB,
            gpu=machine.gpu,
            gpus=machine.gpus,
            gpu_memory_mib=machine.gpu_memory_gib * MIB_PER_GIB,
        )
        common = (on_demand, slots)
        yield Offer(
            self.provider, region, zone, machine.type, "on_demand", on_demand, *common, source, False,
            hardware, billing=rules,
        )  # fmt: skip
        if (advice := machine.spot.get(region)) is not None:
            saving, band = advice
            yield Offer(
                self.provider, region, zone, machine.type, "spot", _less(on_demand, saving), *common, self.spot_source,
                False, hardware, _BANDS[band], rules,
            )  # fmt: skip


@functools.cache
def price_lists() -> tuple[PriceList, ...]:
    """Every list that is built in."""
    folder = resources.files(__package__)
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return tuple(_LIST.validate_json(file.read_bytes()) for file in files)


@functools.cache
def gpu_models() -> Mapping[str, int]:
    """The GPUs in all lists, with the memory of each in GB, as makers give it."""
    return {machine.gpu: machine.gpu_memory_gib for prices in price_lists() for machine in prices.types}


def price_list_of(provider: str) -> PriceList:
    """The list of a provider that has one."""
    return next(known for known in price_lists() if known.provider == provider)


def _less(price: str, percent: int) -> str:
    return str((Decimal(price) * (100 - percent) / 100).quantize(Decimal("0.0001")))


_LIST = TypeAdapter(PriceList)
_BANDS: tuple[InterruptionBand, ...] = get_args(InterruptionBand)
