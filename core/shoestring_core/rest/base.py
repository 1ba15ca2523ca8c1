# SPDX-License-Identifier: Apache-2.0
"""Resources: what all of them have in common, and the values that many hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shoestring_core import money as micro_dollars
from shoestring_core import wording
from shoestring_core.terminal_text import printable


class Resource(BaseModel):
    # Unknown fields are ignored, so that an older client can talk to a newer service.
    model_config = ConfigDict(
        extra="ignore",
        ser_json_inf_nan="strings",
        allow_inf_nan=True,
        json_schema_serialization_defaults_required=True,  # the service always sends every field
    )


MAX_SENTENCE = 500
Sentence = Annotated[str, Field(max_length=MAX_SENTENCE), AfterValidator(printable)]
"""Of a person, about what they change: without what would show the text around it in another order."""
Dollars = Annotated[str, Field(max_length=100)]
"""Decimal, as a client sends them."""


class RequestBody(Resource):
    """What a client sends: unknown fields are refused, and nothing is converted, such as true to 1."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Money(Resource):
    amount: str
    currency: str = "USD"

    @classmethod
    def of(cls, micro: int) -> Money:
        return cls(amount=micro_dollars.to_decimal(micro))


class Reason(Resource):
    """Why something is as it is. Programs decide by code and facts; the text is for people and may be reworded."""

    code: str
    facts: dict[str, Any]
    text: str

    @classmethod
    def of(cls, reason: wording.Reason) -> Reason:
        return cls.worded(**reason.as_json())

    @classmethod
    def worded(cls, code: str, facts: dict[str, Any]) -> Reason:
        return cls(code=code, facts=facts, text=wording.render(code, facts))

    @classmethod
    def from_stored(cls, stored: object) -> Reason | None:
        """From a JSON column of reasons. None if it is empty, or damaged."""
        match stored:
            case {"code": str(code), "facts": dict(facts)}:
                return cls.worded(code, facts)
        return None


class Progress(Resource):
    step: int
    """Last step of the merged curve."""
    steps_total: int | None = None
    epoch: float | None = None
    fraction: float | None = None
    eta_s: float | None = None


class Cost(Resource):
    """Cost of a job. `spent` is settled from the provider's records; `running` is estimated, not yet posted."""

    spent: Money
    running: Money
    estimated: Money = Money(amount="0.00")
    """The part of both that is for disks and addresses: by list prices, an estimate even when it is settled."""
    held: Money
    on_demand: Money
    """On-demand equivalent: the price of the same machine time on demand."""
    limit: Money | None = None
    settled: bool
    price_basis: Literal["simulated", "live", "snapshot"]
