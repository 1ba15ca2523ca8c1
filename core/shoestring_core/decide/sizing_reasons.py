# SPDX-License-Identifier: Apache-2.0
"""The reasons for a choice of machines: what the job runs on, and why not on faster machines."""

from __future__ import annotations

from shoestring_core import money
from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.sizing import Choice, Option, SizingInputs, by_cost
from shoestring_core.wording import Reason
from shoestring_core.wording import sizing as reasons


def explain(inputs: SizingInputs, choice: Choice) -> reasons.Sized:
    return reasons.Sized(_summarize(inputs, choice), _why_not_faster(inputs, choice))


def _summarize(inputs: SizingInputs, choice: Choice) -> Reason:
    """The machines with their expected time and cost, or why there are none."""
    limit_s = inputs.time_limit_s
    if choice.outcome == "unmeasured":
        if not choice.options:
            return reasons.NotMeasured(choice.nodes, limit_s, _per_hour(inputs, choice.nodes))
        counts = sorted({option.nodes for option in choice.options})
        return reasons.CountNotMeasured(choice.nodes, tuple(counts), limit_s, _per_hour(inputs, choice.nodes))
    if choice.outcome != "infeasible":
        assert choice.option is not None
        return reasons.MachinesChosen(_estimate(choice.option), limit_s, choice.sufficient_time_limit_s)
    assert limit_s is not None
    if choice.option is not None and choice.sufficient_time_limit_s is not None:
        return reasons.TimeLimitTooShort(_estimate(choice.option), limit_s, choice.sufficient_time_limit_s)
    nearest = min(choice.options, key=lambda option: (option.run_upper_s > limit_s, by_cost(option)))
    return reasons.NoFeasibleMachines(limit_s, _obstacle(inputs, nearest))


def _per_hour(inputs: SizingInputs, nodes: int) -> str | None:
    """Dollars for so many of the machines that the job would get."""
    best = rank_offers(inputs.offers, inputs.requirements).best
    return money.to_decimal(nodes * money.cost(best.price, 3_600_000_000)) if best else None


def _why_not_faster(inputs: SizingInputs, choice: Choice) -> Reason | None:
    """What prevents a faster run: its price, a limit, or that more machines don't help. None if there is nothing."""
    if choice.outcome == "unmeasured":
        return reasons.WillBeMeasured()
    if choice.option is None:
        return None
    best, options = choice.option, choice.options
    faster = [option for option in options if _is_faster(option, best)]
    obstacles: list[Reason] = []
    for type_ in sorted({option.type for option in faster}):
        of_type = [option for option in faster if option.type == type_]
        feasible = [option for option in of_type if not option.infeasible_reason]
        obstacles += [_costs_more(option, best) for option in _cheapest_and_fastest(feasible)]
        for infeasible_reason in ("budget", "rate", "slots", "batch"):
            if blocked := [option for option in of_type if option.infeasible_reason == infeasible_reason]:
                obstacles.append(_obstacle(inputs, min(blocked, key=by_cost)))
    obstacles += _end_of_scaling(inputs, best, options, any_faster=bool(faster))
    if best.fixed_s >= best.run_s / 2:
        obstacles.append(reasons.FixedTime(best.fixed_s))
    suitable = rank_offers(inputs.offers, inputs.requirements).ranked
    if unmeasured := sorted({offer.type for offer in suitable} - {option.type for option in options}):
        obstacles.append(reasons.TypesNotMeasured(tuple(unmeasured)))
    return reasons.WhyNotFaster(tuple(obstacles)) if obstacles else None


def _costs_more(option: Option, best: Option) -> Reason:
    extra = option.cost - best.cost
    return reasons.FasterCostsMore(_estimate(option), money.to_decimal(extra) if extra > 0 else None)


def _obstacle(inputs: SizingInputs, option: Option) -> Reason:
    """What prevents an option that is infeasible for another reason than time."""
    estimate = _estimate(option)
    match option.infeasible_reason:
        case "budget":
            needed, left = money.to_decimal(option.budget_needed), money.to_decimal(inputs.budget_left or 0)
            return reasons.FasterOverBudget(estimate, needed, left, inputs.budget_name)
        case "rate":
            return reasons.FasterOverRate(estimate, money.to_decimal(inputs.requirements.rate or 0))
        case "slots":
            return reasons.FasterOverSlots(estimate, *_provider_and_slots(inputs, option.type))
        case _:
            return reasons.FasterSplitsBatch(estimate, inputs.min_batch, option.nodes * inputs.processes)


def _end_of_scaling(
    inputs: SizingInputs, best: Option, options: tuple[Option, ...], *, any_faster: bool
) -> list[Reason]:  # fmt: skip
    """For the chosen type: that more machines are not faster, not available, or not measured."""
    provider, slots = _provider_and_slots(inputs, best.type)
    more = [option for option in options if option.type == best.type and option.nodes > best.nodes]
    obstacles: list[Reason] = []
    if more and not any(_is_faster(option, best) for option in more):
        obstacles.append(reasons.MoreNotFaster(_estimate(more[0]), more[0].serial_fraction))
    if slots and best.nodes >= slots and not any_faster:
        obstacles.append(reasons.NoMoreMachines(provider, slots))
    elif not more:
        obstacles.append(reasons.MoreNotMeasured(best.nodes, best.type))
    return obstacles


def _is_faster(option: Option, other: Option) -> bool:
    """By more than the noise of a measurement."""
    return option.run_s < 0.98 * other.run_s


def _cheapest_and_fastest(options: list[Option]) -> list[Option]:
    ends = (min(options, key=by_cost), min(options, key=lambda option: option.run_s)) if options else ()
    return list(dict.fromkeys(ends))


def _estimate(option: Option) -> reasons.MachineEstimate:
    cost = money.to_decimal(option.cost)
    return reasons.MachineEstimate(option.nodes, option.type, option.basis, option.run_s, option.run_upper_s, cost)


def _provider_and_slots(inputs: SizingInputs, type_: str) -> tuple[str, int]:
    """The provider that a job would get machines of a type from, and how many it has in all; 0: no limit."""
    offer = inputs.best_offer(type_)
    return (offer.provider, offer.slots or 0) if offer else ("", 0)
