# SPDX-License-Identifier: Apache-2.0
"""Refusals: why a provider would not launch a machine, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shoestring_core.decide.offers import Offer
from shoestring_core.decide.timeouts import S
from shoestring_core.states import EndReason


class RefusalKind(StrEnum):
    """Why a provider refuses a launch, or to keep a machine. The last three would be the same for every later try."""

    CAPACITY = "capacity"
    """It has no such machine free now."""
    PRICE = "price"
    """Spot costs more than on demand now, which is the most that we pay for it."""
    QUOTA = "quota"
    """The account has as many as it may have."""
    INTERRUPTED = "interrupted"
    """It takes a spot machine back: soon it takes others of the same type and zone."""
    ROLE = "role"
    """It doesn't know the role that the machine is to get. It may be too new: the launch is tried again for a while."""
    REGION = "region"
    """The account may rent nothing in this region, which others may not share."""
    ACCOUNT = "account"
    """The account may not rent it: credentials, permissions or payment."""
    IMAGE = "image"
    """The machine image doesn't exist or may not be used."""
    INVALID = "invalid"
    """The request is wrong in another way."""

    @classmethod
    def of_end(cls, cause: str | None) -> RefusalKind | None:
        """What a machine was refused for that ended with this cause; None: nothing."""
        if cause == "preempted":
            return cls.INTERRUPTED
        return cls(cause) if cause in set(cls) else None

    @property
    def end_reason(self) -> EndReason | None:
        """Why a job ends with such a refusal; None: it waits and is tried again."""
        return _END_REASONS.get(self)

    @property
    def memory(self) -> int:
        """For how long (µs) other offers are preferred to the one that was refused."""
        return _MEMORY.get(self, 0)


_END_REASONS = {
    RefusalKind.ACCOUNT: EndReason.ACCOUNT,
    RefusalKind.IMAGE: EndReason.IMAGE,
    RefusalKind.INVALID: EndReason.INFRASTRUCTURE,
}
_MEMORY = {
    RefusalKind.CAPACITY: 60 * S,
    RefusalKind.PRICE: 300 * S,
    RefusalKind.QUOTA: 300 * S,
    RefusalKind.INTERRUPTED: 300 * S,
    RefusalKind.REGION: 300 * S,
}

LONGEST_MEMORY = max(_MEMORY.values())


@dataclass(frozen=True)
class RecentRefusal:
    """A refusal of an offer, at a time in µs UTC."""

    provider: str
    region: str
    zone: str
    type: str
    market: str
    kind: RefusalKind
    at: int

    def concerns(self, offer: Offer) -> bool:
        if self.kind is RefusalKind.REGION:
            return (self.provider, self.region) == (offer.provider, offer.region)
        product = (self.provider, self.region, self.zone, self.type, self.market)
        return product == (offer.provider, offer.region, offer.zone, offer.type, offer.market)
