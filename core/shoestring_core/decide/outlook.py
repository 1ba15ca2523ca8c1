# SPDX-License-Identifier: Apache-2.0
"""What a queued job's owner can expect, as a reason: when it starts, and for how much more it would start now."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from shoestring_core import money
from shoestring_core.decide.billing import hourly
from shoestring_core.decide.conditions import has_gpus
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.projection import Expect, Projection
from shoestring_core.decide.queue import QueuedJob
from shoestring_core.decide.requirements import Requirements
from shoestring_core.wording import Reason, queue


def outlook(
    queued: QueuedJob, projection: Projection, best: Offer | None, elsewhere: Offer | None, now: int, expect: Expect
) -> queue.Outlook:
    """
    best       the first offer that suits the job; None: none does
    elsewhere  `projection.find_alternative`
    """
    start = projection.starts.get(queued.job)
    expected: Reason = queue.StartUnknown(held_up=projection.whole)
    if start is not None:
        machines, cost = _machines(start.offer, start.nodes), None if start.cost is None else money.rounded(start.cost)
        at = datetime.fromtimestamp(start.at / 1e6, UTC).replace(microsecond=0)
        expected = queue.StartsAt(at, (start.at - now) / 1e6, machines, cost)
        if start.at <= now:
            expected = queue.StartsNow(machines, cost)
    instead_of = start.offer if start else best
    if elsewhere is None or instead_of is None:
        return queue.Outlook(expected)
    return queue.Outlook(expected, _elsewhere(queued, elsewhere, instead_of, expect))


def _elsewhere(queued: QueuedJob, offer: Offer, instead_of: Offer, expect: Expect) -> queue.StartsElsewhere:
    nodes = queued.requirements.nodes
    costs = [expect(queued.job, one, nodes) for one in (offer, instead_of)]
    fields = changed_fields(queued.requirements, offer)
    if costs[0] and costs[1]:
        more, by_hour = costs[0].cost - costs[1].cost, False
    else:
        dear, cheap = (Decimal(hourly(one.billing.extras, one.price)) for one in (offer, instead_of))
        more, by_hour = round(nodes * (dear - cheap) * money.MICRO), True
    return queue.StartsElsewhere(_machines(offer, nodes), money.rounded(more), by_hour, fields)


def changed_fields(requirements: Requirements, offer: Offer) -> tuple[str, ...]:
    """What a spec would have to say, so that the offer suits its job."""
    fields = []
    if requirements.provider not in (None, offer.provider):
        fields.append(f"resources.provider={offer.provider}")
    if requirements.regions and offer.region not in requirements.regions:
        fields.append(f"resources.regions=[{offer.region}]")
    if requirements.zones and offer.zone not in requirements.zones:
        fields.append(f"resources.zones=[{offer.zone}]")
    if requirements.type not in (None, offer.type):
        fields.append(f"resources.instance={offer.type}")
    if requirements.gpus and offer.hardware and not has_gpus(offer.hardware, requirements.gpus):
        fields.append(f"resources.gpu={offer.hardware.gpu}:{offer.hardware.gpus}")
    if requirements.spot != "prefer" and (requirements.spot == "only") == (offer.market == "on_demand"):
        fields.append("resources.spot=prefer")
    return tuple(fields)


def _machines(offer: Offer, nodes: int) -> str:
    """Such as "1 × g5.xlarge (A10G, on demand)"."""
    gpu = offer.hardware.gpu if offer.hardware else None
    details = ", ".join(part for part in (gpu, offer.market.replace("_", " ")) if part)
    return f"{nodes} × {offer.type} ({details})"
