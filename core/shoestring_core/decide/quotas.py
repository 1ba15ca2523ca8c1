# SPDX-License-Identifier: Apache-2.0
"""Quotas of a provider's account: what machines count against them, and what is left for others.

They are in vCPUs and shared by many types, so that a job may have to wait for machines of other types to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoestring_core.decide.offers import Offer
from shoestring_core.wording.offers import AccountQuota
from shoestring_core.wording.waits import QuotaBelowNeed, QuotaInUse

Product = tuple[str, str, str, str]
"""Provider, region, type and market of a machine."""


def quota_id(offer: Offer) -> str | None:
    """Names the quota that the offer's machines count against; None: there is none, or it isn't known."""
    return f"{offer.provider}/{offer.region}/{offer.quota.name}" if offer.quota and offer.hardware else None


def vcpus_of(offer: Offer, nodes: int = 1) -> int:
    """What so many of its machines count."""
    return nodes * (offer.hardware.vcpus if offer.hardware else 0)


def is_above_quota(offer: Offer, nodes: int) -> bool:
    """Whether so many machines are more than the account may ever run at once, as long as nobody raises its quota."""
    return offer.quota is not None and vcpus_of(offer, nodes) > offer.quota.vcpus


def offers_with_quota(offers: Iterable[Offer]) -> dict[Product, Offer]:
    """One for each product whose machines count against a quota: all have the same."""
    found: dict[Product, Offer] = {}
    for offer in offers:
        if offer.quota is not None and offer.hardware is not None:
            found.setdefault((offer.provider, offer.region, offer.type, offer.market), offer)
    return found


def vcpus_in_use(machines: Mapping[Product, int], with_quota: Mapping[Product, Offer]) -> dict[str, int]:
    """vCPUs that our machines count, by quota_id. `machines`: how many are alive.

    What else runs in the account isn't known: the provider refuses the launch then.
    """
    used: dict[str, int] = {}
    for product, number in machines.items():
        offer = with_quota.get(product)
        if offer is not None and (quota := quota_id(offer)) is not None:
            used[quota] = used.get(quota, 0) + vcpus_of(offer, number)
    return used


def free_vcpus(offer: Offer, used: Mapping[str, int]) -> int | None:
    """None: nothing limits them."""
    if offer.quota is None or (quota := quota_id(offer)) is None:
        return None
    return max(0, offer.quota.vcpus - used.get(quota, 0))


def below_need(offer: Offer, nodes: int) -> QuotaBelowNeed:
    """Of an offer that is above its quota with so many machines."""
    assert offer.quota is not None
    return QuotaBelowNeed(
        offer.provider, offer.region, offer.quota.name, offer.quota.vcpus, offer.type, offer.market, nodes,
        vcpus_of(offer, nodes), offer.quota.raised_at,
    )  # fmt: skip


def in_use(offer: Offer, nodes: int, used: Mapping[str, int], behind: bool) -> QuotaInUse:
    """Of an offer whose quota has not as much left as so many machines need. `behind`: an earlier job waits for it."""
    assert offer.quota is not None
    quota, free = offer.quota, free_vcpus(offer, used) or 0
    return QuotaInUse(offer.provider, offer.region, quota.name, quota.vcpus, free, vcpus_of(offer, nodes), behind)


def account_quotas(offers: Iterable[Offer]) -> tuple[AccountQuota, ...]:
    """The quotas of some offers, each once, with the smallest machine that counts against it."""
    smallest: dict[str, Offer] = {}
    for offer in offers:
        quota = quota_id(offer)
        if quota is not None and (quota not in smallest or vcpus_of(offer) < vcpus_of(smallest[quota])):
            smallest[quota] = offer
    return tuple(
        AccountQuota(
            offer.provider, offer.region, offer.quota.name, offer.quota.vcpus, offer.type, vcpus_of(offer),
            offer.quota.raised_at,
        )
        for _, offer in sorted(smallest.items())
        if offer.quota is not None
    )  # fmt: skip
