# SPDX-License-Identifier: Apache-2.0
"""Quotes beside what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import FiniteFloat

from shoestring_core.durations import format_duration
from shoestring_core.wording.reason import NestedReason, Reason
from shoestring_core.wording.units import counted, dollars


@dataclass(frozen=True)
class QuoteWas(Reason):
    """What was quoted when a job was submitted. `machines`: such as "2 × g5.xlarge"; `then`: what happened."""

    code = "quote_was"
    machines: str
    market: str
    time_low_s: FiniteFloat
    time_high_s: FiniteFloat
    cost_low: str
    cost_high: str
    then: NestedReason

    def text(self) -> str:
        time = f"{format_duration(self.time_low_s)} to {format_duration(self.time_high_s)}"
        cost = f"{dollars(self.cost_low)} to {dollars(self.cost_high)}"
        return (
            f"Quoted when it was submitted: {time} and {cost} on {self.machines} "
            f"({self.market.replace('_', ' ')}). {self.then.text()}"
        )


@dataclass(frozen=True)
class QuoteHeld(Reason):
    """`time_place` and `cost_place`: where they lie to the quoted bands, below, within or above."""

    code = "quote_held"
    time_s: FiniteFloat
    cost: str
    time_place: Literal["below", "within", "above"]
    cost_place: Literal["below", "within", "above"]

    def text(self) -> str:
        took = f"It took {format_duration(self.time_s)} and {dollars(self.cost)}"
        if self.time_place == self.cost_place:
            both = {
                "within": "both within the quote",
                "below": "both less than quoted",
                "above": "both more than quoted",
            }
            return f"{took}: {both[self.time_place]}."
        places = {"within": "within the quote", "below": "less than quoted", "above": "more than quoted"}
        return f"{took}: the time is {places[self.time_place]}, the cost {places[self.cost_place]}."


@dataclass(frozen=True)
class QuoteNotCompared(Reason):
    code = "quote_not_compared"
    why: Literal["not_settled", "ended_early", "paused", "other_machines"]

    def text(self) -> str:
        match self.why:
            case "not_settled":
                return "What it takes and costs is compared once it has ended and its machines are billed."
            case "ended_early":
                return "It did not train to its end, so it is not compared."
            case "paused":
                return "It was paused, so it is not compared."
            case "other_machines":
                return "It ran on other machines, so it is not compared."


@dataclass(frozen=True)
class Calibrated(Reason):
    """`percent`: of runs that a band is made to hold."""

    code = "calibrated"
    compared: int
    time_within: int
    cost_within: int
    percent: int

    def text(self) -> str:
        if self.compared == 0:
            return "No job that had a quote has ended on the quoted machines yet."
        time, cost = (round(100 * one / self.compared) for one in (self.time_within, self.cost_within))
        return (
            f"Of {counted(self.compared, 'finished job')} with a quote, {time} % took a time within it and {cost} % a "
            f"cost; bands are made for {self.percent} %."
        )
