# SPDX-License-Identifier: Apache-2.0
"""How well quotes held: what jobs took and cost, beside what was quoted when they were submitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shoestring_core.decide.quotes import QuotedOffer
from shoestring_core.states import EndReason

Place = Literal["below", "within", "above"]
"""Where a number lies to a band."""

WhyNot = Literal["not_settled", "ended_early", "paused", "other_machines"]
"""Why a quote says nothing about what happened."""


@dataclass(frozen=True)
class RunOutcome:
    """What became of a job. Times in µs UTC, micro-dollars.

    end_reason   None: it has not ended
    settled      every machine has terminated and been billed
    launched_at  the first launch of a machine; None: none was
    cost         that is posted
    machines     type, market and slot of each that was launched
    paused       it was, so that its time says nothing
    """

    end_reason: EndReason | None
    settled: bool
    launched_at: int | None
    ended_at: int | None
    cost: int
    machines: frozenset[tuple[str, str, int]]
    paused: bool


@dataclass(frozen=True)
class Comparison:
    """`time_s`: from the launch of the machines until the job ended; `cost`: micro-dollars; each to its band."""

    time_s: float
    cost: int
    time_place: Place
    cost_place: Place


@dataclass(frozen=True)
class RecipeCalibration:
    """Of a recipe's jobs with a quote, how many can be compared, and took a time, and a cost, within their band."""

    recipe: str
    compared: int
    time_within: int
    cost_within: int
    not_compared: int


def compare(quoted: QuotedOffer, outcome: RunOutcome) -> Comparison | WhyNot:
    """The outcome beside its quote, or why it can't be compared: the job did something else than was quoted."""
    if not outcome.settled or outcome.end_reason is None:
        return "not_settled"
    if outcome.end_reason is not EndReason.SUCCEEDED or outcome.launched_at is None or outcome.ended_at is None:
        return "ended_early"
    if outcome.paused:
        return "paused"
    products = {(type_, market) for type_, market, _ in outcome.machines}
    slots = {slot for *_, slot in outcome.machines}
    if products != {(quoted.offer.type, quoted.offer.market)} or len(slots) != quoted.nodes:
        return "other_machines"
    assert quoted.time_s, "a quote is kept only with an estimate"
    assert quoted.cost
    time_s = max(0, outcome.ended_at - outcome.launched_at) / 1e6
    time_place = _place(time_s, quoted.time_s.low, quoted.time_s.high)
    return Comparison(time_s, outcome.cost, time_place, _place(outcome.cost, quoted.cost.low, quoted.cost.high))


def calibrate(jobs: Iterable[tuple[str, QuotedOffer, RunOutcome]]) -> list[RecipeCalibration]:
    """By recipe, the one with most comparisons first. Jobs that have not been settled are not counted."""
    found: dict[str, RecipeCalibration] = {}
    for recipe, quoted, outcome in jobs:
        compared = compare(quoted, outcome)
        if compared == "not_settled":
            continue
        so_far = found.get(recipe, RecipeCalibration(recipe, 0, 0, 0, 0))
        if isinstance(compared, Comparison):
            found[recipe] = RecipeCalibration(
                recipe,
                so_far.compared + 1,
                so_far.time_within + (compared.time_place == "within"),
                so_far.cost_within + (compared.cost_place == "within"),
                so_far.not_compared,
            )
        else:
            counts = so_far.compared, so_far.time_within, so_far.cost_within
            found[recipe] = RecipeCalibration(recipe, *counts, so_far.not_compared + 1)
    return sorted(found.values(), key=lambda one: (-one.compared, one.recipe))


def _place(value: float, low: float, high: float) -> Place:
    return "below" if value < low else "above" if value > high else "within"
