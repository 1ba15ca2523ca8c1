# SPDX-License-Identifier: Apache-2.0
"""What a job can require of a machine, and which of it an offer doesn't have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from shoestring_core import money
from shoestring_core.decide.billing import hourly
from shoestring_core.decide.disks import with_disk
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.requirements import Requirements
from shoestring_core.spec.gpus import GpuChoice

Condition = Literal["provider", "region", "zone", "type", "gpu", "procs", "placement", "disk", "rate", "market"]
"""From the most general to the one that may be met later without anybody's doing: prices move."""


def unmet_conditions(offer: Offer, requirements: Requirements) -> Iterator[Condition]:
    """What a job requires and the offer doesn't have."""
    if requirements.provider not in (None, offer.provider):
        yield "provider"
    if requirements.regions and offer.region not in requirements.regions:
        yield "region"
    if requirements.zones and offer.zone not in requirements.zones:
        yield "zone"
    if requirements.type not in (None, offer.type):
        yield "type"
    if requirements.gpus and not has_gpus(offer.hardware, requirements.gpus):
        yield "gpu"
    if requirements.procs and offer.hardware and 0 < offer.hardware.gpus < requirements.procs:
        yield "procs"
    if requirements.cluster and not (offer.hardware and offer.hardware.cluster):
        yield "placement"
    having_disk = offer if requirements.disk is None else with_disk(offer, requirements.disk)
    if having_disk is None:
        yield "disk"
    if requirements.rate is not None and hourly_cost(having_disk or offer, requirements.nodes) > requirements.rate:
        yield "rate"
    if offer.market not in _MARKETS[requirements.spot]:
        yield "market"


def hourly_cost(offer: Offer, nodes: int) -> int:
    """Micro-dollars an hour that so many of its machines cost now, with their disks and addresses."""
    return nodes * money.cost(hourly(offer.billing.extras, offer.price), money.HOUR)


def has_gpus(hardware: Hardware | None, choices: Iterable[GpuChoice]) -> bool:
    """Whether it has the GPUs of one of the choices."""
    return hardware is not None and any(
        choice.accepts(hardware.gpu, hardware.gpu_memory_gb, hardware.gpus) for choice in choices
    )


_MARKETS = {"only": ("spot",), "never": ("on_demand",), "prefer": ("spot", "on_demand")}
