# SPDX-License-Identifier: Apache-2.0
"""Why no offer meets what a job requires: the condition that nobody meets, and the nearest that somebody does."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from math import log2

from shoestring_core import catalog, money
from shoestring_core.decide.billing import BillingRules
from shoestring_core.decide.conditions import Condition, hourly_cost, unmet_conditions
from shoestring_core.decide.disks import with_disk
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.requirements import DiskNeed, Requirements
from shoestring_core.spec.gpus import GpuChoice
from shoestring_core.wording import Reason
from shoestring_core.wording.offers import (
    DearerThanLimit,
    DiskBounds,
    LeftOutOffer,
    ListedOnly,
    NearestOffer,
    NoDiskChoice,
    RegionNotOffered,
    UnknownName,
)
from shoestring_core.wording.waits import NoOffer

FIELDS: Mapping[Condition, str] = {
    "provider": "provider", "region": "regions", "zone": "zones", "type": "instance", "gpu": "gpu",
    "procs": "procs", "placement": "placement", "disk": "disk", "market": "spot", "rate": "limits.rate",
}  # fmt: skip
"""Of `resources` in a job spec, if nothing else is said."""
_SEVERITY: Mapping[Condition, int] = {
    "market": 0, "rate": 1, "zone": 2, "placement": 3, "region": 4, "provider": 5, "procs": 6, "disk": 7, "type": 8,
    "gpu": 9,
}  # fmt: skip
"""How far an offer is from what is required that misses this condition: the least severe can be changed at no loss."""


def explain(requirements: Requirements, offers: Collection[Offer]) -> NoOffer:
    """Why none of the offers meets the requirements. Prices and quotas aside: by what the machines are."""
    required = {condition: _written(condition, requirements) for condition in _required(requirements)}
    missed = [(offer, tuple(unmet_conditions(offer, requirements))) for offer in offers]
    unmet = [condition for condition in required if missed and all(condition in of for _, of in missed)]
    nearest = min(missed, key=lambda pair: _distance(pair[0], pair[1], requirements), default=None)
    whys = (why for condition in unmet or required if (why := _why(condition, requirements, offers)) is not None)
    return NoOffer(
        wanted=tuple(required.values()),
        unmet=tuple(required[condition] for condition in unmet),
        why=next(whys, None),
        nearest=None if nearest is None else _named(*nearest),
    )


def find_unlisted(requirements: Requirements) -> tuple[Condition, Reason] | None:
    """The GPU or the type of machine that no built-in price list has; None: nothing is known against what is required.

    A provider without such a list may have other names. So without a provider that has one, a name is found only if it
    looks like one that is listed.
    """
    listed = any(prices.provider == requirements.provider for prices in catalog.price_lists())
    named = [choice for choice in requirements.gpus if choice.model is not None]
    whys: list[tuple[Condition, Reason | None]] = [
        ("gpu", _why_no_gpu(named, ()) if named and not _any_listed(requirements.gpus) else None),
        ("type", _why_no_type(requirements.type, ()) if requirements.type else None),
    ]
    for condition, why in whys:
        if why is not None and (listed or (isinstance(why, UnknownName) and why.nearest)):
            return condition, why
    return None


def _any_listed(choices: Iterable[GpuChoice]) -> bool:
    return any(choice.accepts_model(model) for choice in choices for model in catalog.gpu_models())


def _required(requirements: Requirements) -> Iterator[Condition]:
    given: Mapping[Condition, object] = {
        "provider": requirements.provider, "region": requirements.regions, "zone": requirements.zones,
        "type": requirements.type, "gpu": requirements.gpus, "procs": requirements.procs,
        "placement": requirements.cluster, "disk": requirements.disk, "rate": requirements.rate is not None,
        "market": requirements.spot != "prefer",
    }  # fmt: skip
    return (condition for condition, value in given.items() if value)


def _written(condition: Condition, requirements: Requirements) -> str:
    """As a spec has it."""
    match condition:
        case "provider":
            value = requirements.provider or ""
        case "region":
            value = ", ".join(requirements.regions)
        case "zone":
            value = ", ".join(requirements.zones)
        case "type":
            value = requirements.type or ""
        case "gpu":
            value = ", ".join(gpu.text for gpu in requirements.gpus)
        case "procs":
            value = str(requirements.procs)
        case "placement":
            value = "cluster"
        case "disk":
            value = _disk_text(requirements.disk or DiskNeed())
        case "rate":
            value = money.to_decimal(requirements.rate or 0)
        case "market":
            value = requirements.spot
    return f"{FIELDS[condition]}: {value}"


def _disk_text(need: DiskNeed) -> str:
    amounts = ((need.gib, "GiB"), (need.iops, "IOPS"), (need.mib_per_s, "MiB/s"))
    return " and ".join(f"{amount:,} {unit}" for amount, unit in amounts if amount is not None)


def _named(offer: Offer, missed: Iterable[Condition]) -> NearestOffer:
    gpus = offer.hardware.gpu_text if offer.hardware else "hardware not known"
    place, fields = offer.zone or offer.region, tuple(FIELDS[condition] for condition in missed)
    return NearestOffer(offer.type, offer.provider, place, gpus, offer.market, offer.price, fields)


def _distance(offer: Offer, missed: Collection[Condition], requirements: Requirements) -> tuple[float | Decimal, ...]:
    """The fewer conditions it misses, the nearer; then the less severe, the more alike, and the cheaper."""
    severity = sum(2 ** _SEVERITY[condition] for condition in missed)
    gpu = _gpu_distance(offer, requirements.gpus) if "gpu" in missed else ()
    unlike = 1 - _likeness(offer.type, requirements.type) if requirements.type and "type" in missed else 0.0
    return len(missed), severity, *(gpu or (0, 0.0, 0.0)), unlike, Decimal(offer.price)


def _gpu_distance(offer: Offer, choices: Iterable[GpuChoice]) -> tuple[float, ...]:
    """To the nearest of the choices: first by the model, then by the number of GPUs, then by their memory."""
    has = offer.hardware
    if has is None or not has.gpu:
        return 2, 0.0, 0.0
    memory = {model.lower(): gb for model, gb in catalog.gpu_models().items()}
    distances = []
    for choice in choices:
        other = not choice.accepts_model(has.gpu)
        factor = abs(log2(has.gpus / choice.count)) if choice.count else 0.0
        wanted_gb = choice.least_gb or memory.get((choice.model or "").lower())
        distances.append((other, factor, abs(has.gpu_memory_gb - wanted_gb) if wanted_gb else 0.0))
    return min(distances)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _why(condition: Condition, requirements: Requirements, offers: Collection[Offer]) -> Reason | None:
    """More about a condition that isn't met; None: there is nothing more to say."""
    match condition:
        case "gpu":
            why = _why_no_gpu(requirements.gpus, offers)
        case "type":
            why = _why_no_type(requirements.type or "", offers)
        case "region":
            whys = (_why_no_region(region, offers) for region in requirements.regions)
            why = next(filter(None, whys), None)
        case "zone":
            zones = [offer.zone for offer in offers]
            why = next(filter(None, (_unknown("zone", zone, zones) for zone in requirements.zones)), None)
        case "rate":
            return _why_too_dear(requirements, offers)
        case "disk":
            why = _why_no_disk(requirements, offers)
        case _:
            return None
    return why or _listed(requirements, offers)


def _why_no_gpu(choices: Iterable[GpuChoice], offers: Iterable[Offer]) -> Reason | None:
    known = [*catalog.gpu_models(), *(offer.hardware.gpu for offer in offers if offer.hardware and offer.hardware.gpu)]
    for choice in choices:
        if choice.model is None or any(choice.accepts_model(model) for model in known):
            continue
        for left_out in _left_out():
            if any(choice.accepts_model(model) for model in left_out.gpus):
                return LeftOutOffer(choice.model, left_out.reason)
        return _unknown("GPU", choice.model, known)
    return None


def _why_no_type(type_: str, offers: Iterable[Offer]) -> Reason | None:
    for left_out in _left_out():
        if type_ in left_out.types or type_.partition(".")[0] in left_out.types:
            return LeftOutOffer(type_, left_out.reason)
    listed = [machine.type for prices in catalog.price_lists() for machine in prices.types]
    return _unknown("machine type", type_, [*listed, *(offer.type for offer in offers)])


def _why_no_region(region: str, offers: Collection[Offer]) -> Reason | None:
    by_provider = {
        prices.provider: {name for machine in prices.types for name in machine.spot} for prices in catalog.price_lists()
    }
    known = {name for names in by_provider.values() for name in names} | {offer.region for offer in offers}
    if unknown := _unknown("region", region, sorted(known)):
        return unknown
    served = {offer.provider for offer in offers}
    having = (provider for provider, names in by_provider.items() if region in names)
    return next((RegionNotOffered(provider, region, provider in served) for provider in having), None)


def _why_no_disk(requirements: Requirements, offers: Iterable[Offer]) -> Reason | None:
    others = replace(requirements, disk=None)

    def distance(offer: Offer) -> tuple[int, bool]:
        return len(tuple(unmet_conditions(offer, others))), offer.disk is None

    offer = min(offers, key=distance, default=None)
    if offer is None:
        return None
    if (disk := offer.disk) is None:
        return NoDiskChoice(offer.provider)
    return DiskBounds(offer.provider, disk.kind, disk.largest, disk.iops_per_gib, disk.mib_per_s_per_iops)


def _why_too_dear(requirements: Requirements, offers: Iterable[Offer]) -> DearerThanLimit | None:
    """The least that machines cost which have all else that is required; None: there are no such machines."""
    others, nodes = replace(requirements, rate=None), requirements.nodes
    suitable = (offer for offer in offers if not any(unmet_conditions(offer, others)))
    having_disk = (with_disk(offer, others.disk) or offer if others.disk else offer for offer in suitable)
    best = min(having_disk, key=lambda offer: hourly_cost(offer, nodes), default=None)
    if best is None:
        return None
    amounts = money.to_decimal(hourly_cost(best, nodes)), money.to_decimal(requirements.rate or 0)
    return DearerThanLimit(nodes, best.type, *amounts)


def _unknown(what: str, given: str, known: Iterable[str]) -> UnknownName | None:
    """None: it is known."""
    names = {name.lower(): name for name in known if name}
    if given.lower() in names:
        return None
    near = difflib.get_close_matches(given[:64].lower(), names, n=1, cutoff=0.55)
    return UnknownName(what, given, names[near[0]] if near else None, tuple(sorted(names.values())[:_MAX_KNOWN]))


def _listed(requirements: Requirements, offers: Iterable[Offer]) -> ListedOnly | None:
    """A machine of a price list that would do, if this service offered it."""
    served = {offer.provider for offer in offers}
    anywhere = replace(requirements, zones=(), disk=None, spot="never", cluster=False)  # which lists don't tell
    for prices in catalog.price_lists():
        listed = prices.offers({prices.on_demand_region: [""]}, None, BillingRules())
        would_do = (offer for offer in listed if not any(unmet_conditions(offer, anywhere)))
        if best := min(would_do, key=lambda offer: Decimal(offer.price), default=None):
            gpus = best.hardware.gpu_text if best.hardware else ""
            return ListedOnly(best.provider, best.type, gpus, best.price, best.provider in served)
    return None


def _left_out() -> Iterator[catalog.LeftOut]:
    for prices in catalog.price_lists():
        yield from prices.all_left_out()


_MAX_KNOWN = 40
"""Names that a sentence lists."""
