# SPDX-License-Identifier: Apache-2.0
"""EC2's quotas of an account: in vCPUs, by family of types, market and region.

source  docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html, and ec2-on-demand-instances.html there
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from shoestring_core.decide.offers import Offer, Quota

NAMES: Mapping[str, re.Pattern[str]] = {
    "spot": re.compile(r"^All (.+) Spot Instance Requests$"),
    "on_demand": re.compile(r"^Running On-Demand (.+) instances$"),
}
FAMILY = re.compile(r"\b(VT|DL|[A-Z][a-z]*)(\d*)\b")
"""A family in a quota's name, alone or with its generation: "G and VT", "P4, P3 and P2", "Standard (A, C, D)"."""

RAISED_AT = "the Service Quotas console, Amazon EC2 (it can take days)"


def read_quotas(service_quotas: Any) -> dict[str, float]:
    """The account's quotas of instances in the client's region, by name. Raises ClientError and BotoCoreError.

    One that Service Quotas leaves out isn't known: it lists those alone that it has applied to the account.
    """
    pages = service_quotas.get_paginator("list_service_quotas").paginate(ServiceCode="ec2")
    return {
        quota["QuotaName"]: float(quota["Value"])
        for page in pages
        for quota in page["Quotas"]
        if any(pattern.match(quota["QuotaName"]) for pattern in NAMES.values())
    }


def quota_of(quotas: Mapping[str, float], type_: str, market: str) -> tuple[str, float] | None:
    """The quota that counts a type's vCPUs, by name; None: there is none that names its family."""
    family, generation = _split(type_)
    candidates = []
    for name, vcpus in quotas.items():
        if matched := NAMES[market].match(name):
            covered = [(found.group(1).lower(), found.group(2)) for found in FAMILY.finditer(matched.group(1))]
            if (family, generation) in covered:
                return name, vcpus
            if (family, "") in covered:
                candidates.append((name, vcpus))
    return candidates[0] if candidates else None


def with_quotas(offers: Iterable[Offer], quotas: Mapping[str, Mapping[str, float]]) -> list[Offer]:
    """The offers with what the account may run of them at once. `quotas`: by region and name."""
    found: dict[tuple[str, str, str], Quota | None] = {}
    for offer in offers:
        kind = (offer.region, offer.type, offer.market)
        if kind not in found:
            named = quota_of(quotas.get(offer.region, {}), offer.type, offer.market)
            found[kind] = Quota(named[0], int(named[1]), RAISED_AT) if named else None
    return [replace(offer, quota=found[offer.region, offer.type, offer.market]) for offer in offers]


def _split(type_: str) -> tuple[str, str]:
    """Family and generation of a type: g and 5 of "g5.xlarge", p and 4 of "p4de.24xlarge"."""
    letters = re.match(r"([a-z]+?)(\d+)", type_)
    return (letters.group(1), letters.group(2)) if letters else (type_, "")
