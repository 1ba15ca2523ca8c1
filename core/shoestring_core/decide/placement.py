# SPDX-License-Identifier: Apache-2.0
"""Placement: which offers suit a job, in which order, and why the others don't."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Literal, get_args

from shoestring_core.decide.conditions import Condition, unmet_conditions
from shoestring_core.decide.disks import with_disk
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.quotas import below_need, is_above_quota, quota_id, vcpus_of
from shoestring_core.decide.refusals import RecentRefusal, RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import S
from shoestring_core.decide.unmet import FIELDS, explain, find_unlisted
from shoestring_core.errors import InvalidSpec, Problem
from shoestring_core.wording.offers import UnknownName
from shoestring_core.wording.waits import NoOffer, ProviderUnanswered, QuotaExhausted, TooFewSlots, WaitDetail

MAX_OFFER_AGE = 60 * S
"""A provider that has not answered for this long gets no new machines."""
UNSERVED_AFTER = 3_600 * S
"""Workers ask each provider that they serve every few seconds: one without an answer for this long isn't served."""

Mismatch = Condition | Literal["slots", "above_quota", "quota", "unanswered", "interrupted"]


@dataclass(frozen=True)
class PassedOver:
    """An offer that does not suit a job.

    reason  a Condition: the job's requirements name another
            slots: the provider never has as many machines as the job needs
            above_quota: the account may never have as many as the job needs, as long as nobody raises its quota
            quota: it was refused for the account's quota within its memory
            unanswered: the provider has not answered for MAX_OFFER_AGE
            interrupted: such a machine was just interrupted there, and another spot offer suits
    """

    offer: Offer
    reason: Mismatch


@dataclass(frozen=True)
class Placement:
    """The offers for a job: those that suit it, best first, and all others."""

    requirements: Requirements
    ranked: tuple[Offer, ...]
    passed_over: tuple[PassedOver, ...]

    @property
    def best(self) -> Offer | None:
        return self.ranked[0] if self.ranked else None

    @cached_property
    def why_none(self) -> WaitDetail:
        """Why none suits it, by those that come closest, where none does."""
        passed_over = {one.reason: one.offer for one in self.passed_over}
        nodes = self.requirements.nodes
        if silent := passed_over.get("unanswered"):
            return ProviderUnanswered(silent.provider)
        if full := passed_over.get("quota"):
            return QuotaExhausted(full.provider, full.type, full.market)
        if above := self._closest_to_quota():
            return below_need(above, nodes)
        if small := passed_over.get("slots"):
            return TooFewSlots(nodes, small.provider, small.slots or 0)
        return self.no_offer

    def _closest_to_quota(self) -> Offer | None:
        """Of the offers that the account's quotas don't cover, the one for which the least has to be asked."""
        above = [one.offer for one in self.passed_over if one.reason == "above_quota"]
        return min(above, key=lambda offer: (vcpus_of(offer), Decimal(offer.price)), default=None)

    @cached_property
    def fewest_gpus(self) -> int:
        """That the job would have on any of them."""
        return min((gpus_of(offer, self.requirements.nodes) for offer in self.ranked), default=0)

    def within_gpus(self, most: int | None) -> Placement:
        """The offers on which the job has no more GPUs; None: however many."""
        if most is None:
            return self
        ranked = tuple(offer for offer in self.ranked if gpus_of(offer, self.requirements.nodes) <= most)
        return self if len(ranked) == len(self.ranked) else replace(self, ranked=ranked)

    @cached_property
    def no_offer(self) -> NoOffer:
        """What no offer has that the job requires."""
        return explain(self.requirements, [one.offer for one in self.passed_over])

    @cached_property
    def best_by_provider(self) -> Mapping[str, Offer]:
        """The best offer of each provider, best first."""
        best: dict[str, Offer] = {}
        for offer in self.ranked:
            best.setdefault(offer.provider, offer)
        return best

    @cached_property
    def best_by_quota(self) -> tuple[Offer, ...]:
        """Best first, one of each provider, quota and size: on nothing else depends whether there is room for more."""
        best: dict[tuple[str, str | None, int], Offer] = {}
        for offer in self.ranked:
            quota = quota_id(offer)
            best.setdefault((offer.provider, quota, vcpus_of(offer) if quota else 0), offer)
        return tuple(best.values())


def rank_offers(
    offers: Iterable[Offer],
    requirements: Requirements,
    now: int | None = None,
    refusals: Iterable[RecentRefusal] = (),
) -> Placement:
    """The cheapest offer first, of equally cheap ones spot; those that were refused for capacity or price come last,
    and after them a region that was refused.

    Where a disk is required, the ranked offers have it, and its price.

    now  µs UTC; None: the age of offers, refusals and quotas don't matter, because nothing is to be launched
    """
    recent = [refusal for refusal in refusals if now is not None and now < refusal.at + refusal.kind.memory]
    suitable: list[tuple[int, Offer]] = []
    interrupted: list[tuple[int, Offer]] = []
    passed_over: list[PassedOver] = []
    for offered in offers:
        offer = offered
        refused_for = {refusal.kind for refusal in recent if refusal.concerns(offer)}
        reason = _mismatch(offer, requirements, now) or ("quota" if RefusalKind.QUOTA in refused_for else None)
        if reason is None and requirements.disk is not None:
            offer = with_disk(offer, requirements.disk) or offer
        last = 2 if RefusalKind.REGION in refused_for else int(not refused_for.isdisjoint(_SCARCE))
        if reason is not None:
            passed_over.append(PassedOver(offer, reason))
        elif RefusalKind.INTERRUPTED in refused_for:
            interrupted.append((last, offer))
        else:
            suitable.append((last, offer))
    if any(offer.market == "spot" and not refused for refused, offer in suitable):
        passed_over += [PassedOver(offer, "interrupted") for _, offer in interrupted]
    else:  # they are better than none, and cheaper than on-demand
        suitable += interrupted
    suitable.sort(key=lambda pair: (pair[0], _by_price(pair[1])))
    return Placement(requirements, tuple(offer for _, offer in suitable), tuple(passed_over))


def gpus_of(offer: Offer, nodes: int) -> int:
    """That so many of its machines have; none where the provider doesn't say."""
    return nodes * offer.hardware.gpus if offer.hardware else 0


def require_machines(placement: Placement, unanswered: Collection[str] = ()) -> None:
    """Raise InvalidSpec for a job that could only wait forever: there are no such machines, or never as many.

    One that a price, a quota or a provider's silence keeps from starting may wait: that may change by itself.

    unanswered  providers that have never said yet what they offer, or not for long
    """
    if placement.ranked:
        return
    provider = placement.requirements.provider
    known = [one for one in placement.passed_over if provider in (None, one.offer.provider)]
    if not known or any(provider in (None, name) for name in unanswered):
        _require_listed_names(placement.requirements)
        return
    _require_enough_slots(placement)
    if any(one.reason not in _LASTING for one in known):
        return
    reason = placement.no_offer
    first = next(iter(reason.unmet or (reason.nearest.missed if reason.nearest else ())), "")
    meant = reason.why.nearest if isinstance(reason.why, UnknownName) else None
    raise InvalidSpec([Problem(f"/resources/{first.partition(':')[0]}", reason.text(), "no-such-machine", meant)])


def _require_listed_names(requirements: Requirements) -> None:
    """Raise InvalidSpec for names that nobody has, before any provider that would do has said what there is."""
    if unlisted := find_unlisted(requirements):
        condition, why = unlisted
        meant = why.nearest if isinstance(why, UnknownName) else None
        raise InvalidSpec([Problem(f"/resources/{FIELDS[condition]}", why.text(), "no-such-machine", meant)])


def _require_enough_slots(placement: Placement) -> None:
    too_small = [one.offer for one in placement.passed_over if one.reason == "slots"]
    if not too_small:
        return
    largest = max(too_small, key=lambda offer: offer.slots or 0)
    reason = TooFewSlots(placement.requirements.nodes, largest.provider, largest.slots or 0)
    raise InvalidSpec([Problem("/resources/nodes", reason.text(), "too-few-slots")])


def _mismatch(offer: Offer, requirements: Requirements, now: int | None) -> Mismatch | None:
    """The first reason, from the most general to the one that may pass by itself."""
    if unmet := next(unmet_conditions(offer, requirements), None):
        return unmet
    if offer.slots is not None and requirements.nodes > offer.slots:
        return "slots"
    if now is not None and is_stale(offer, now):
        return "unanswered"
    if now is not None and is_above_quota(offer, requirements.nodes):
        return "above_quota"
    return None


def is_stale(offer: Offer, now: int) -> bool:
    """Whether its provider has not answered for too long."""
    return offer.fetched_at is not None and now > offer.fetched_at + MAX_OFFER_AGE


def is_served(offer: Offer, now: int) -> bool:
    """Whether a worker has had an answer of its provider lately; one without a time is of a price list."""
    return offer.fetched_at is not None and now <= offer.fetched_at + UNSERVED_AFTER


_LASTING = frozenset(get_args(Condition)) - {"market", "rate"}
"""Reasons that last as long as providers offer the same machines."""
_SCARCE = {RefusalKind.CAPACITY, RefusalKind.PRICE}


def _by_price(offer: Offer) -> tuple[Decimal, bool, str, str, str, str]:
    return Decimal(offer.price), offer.market != "spot", offer.type, offer.provider, offer.region, offer.zone
