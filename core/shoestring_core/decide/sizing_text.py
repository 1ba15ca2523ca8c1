# SPDX-License-Identifier: Apache-2.0
"""The choice of machines in sentences: what the job runs on, and why not on faster machines."""

from __future__ import annotations

from shoestring_core import money
from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.sizing import Choice, Option, SizingInputs, by_cost
from shoestring_core.durations import format_duration


def summarize(inputs: SizingInputs, choice: Choice) -> str:
    """The machines with their expected time and cost, or why there are none."""
    if choice.outcome == "unmeasured":
        return _unmeasured(inputs, choice)
    if choice.outcome == "infeasible":
        return _infeasible(inputs, choice)
    best = choice.option
    assert best is not None
    if inputs.time_limit_s is None:
        return f"{best.name}: {_expected(best)}."
    limit = format_duration(inputs.time_limit_s)
    if choice.sufficient_time_limit_s is None:
        return f"{best.name}: {_expected(best)}; limits.time is {limit}."
    return (
        f"{best.name}: {_expected(best)}. That may exceed limits.time of {limit}, at which the job is stopped; "
        f"{format_duration(choice.sufficient_time_limit_s)} would be enough."
    )


def explain_why_not_faster(inputs: SizingInputs, choice: Choice) -> str:
    """What prevents a faster run: its price, a limit, or that more machines don't help. Empty if there is nothing."""
    if choice.outcome == "unmeasured":
        return "This run will be measured to improve the next estimate."
    if choice.option is None:
        return ""
    best, options = choice.option, choice.options
    faster = [option for option in options if _is_faster(option, best)]
    reasons = []
    for type_ in sorted({option.type for option in faster}):
        of_type = [option for option in faster if option.type == type_]
        feasible = [option for option in of_type if not option.infeasible_reason]
        reasons += [_more_expensive(option, best) for option in _cheapest_and_fastest(feasible)]
        for infeasible_reason in ("budget", "slots", "batch"):
            if blocked := [option for option in of_type if option.infeasible_reason == infeasible_reason]:
                reasons.append(_blocked(inputs, min(blocked, key=by_cost)))
    reasons += _end_of_scaling(inputs, best, options, any_faster=bool(faster))
    if best.fixed_s >= best.run_s / 2:
        fixed = format_duration(best.fixed_s)
        reasons.append(f"{fixed} of it are startup and finish, which more machines don't shorten")
    suitable = rank_offers(inputs.offers, inputs.requirements).ranked
    if unmeasured := sorted({offer.type for offer in suitable} - {option.type for option in options}):
        reasons.append(f"{', '.join(unmeasured)} {'has' if len(unmeasured) == 1 else 'have'} not been measured")
    return f"Why not faster? {'; '.join(reasons)}." if reasons else ""


def _unmeasured(inputs: SizingInputs, choice: Choice) -> str:
    machines = _machines(choice.nodes)
    until = "" if inputs.time_limit_s is None else f" and is stopped after {format_duration(inputs.time_limit_s)}"
    if choice.options:
        counts = _counts(sorted({option.nodes for option in choice.options}))
        return f"There is no measurement for {machines}, only for {counts}; it runs as requested{until}."
    return f"No similar run has been measured yet; it runs on {machines}{until}."


def _infeasible(inputs: SizingInputs, choice: Choice) -> str:
    limit = format_duration(inputs.time_limit_s or 0.0)
    fastest, enough_s = choice.option, choice.sufficient_time_limit_s
    if fastest is None or enough_s is None:
        limit_s = inputs.time_limit_s or 0.0
        nearest = min(choice.options, key=lambda option: (option.run_upper_s > limit_s, by_cost(option)))
        return f"No available machines finish it within limits.time of {limit}: {_blocked(inputs, nearest)}."
    return (
        f"No machines finish it within limits.time of {limit}. The fastest available, {fastest.name}, take "
        f"{_expected(fastest)}: limits.time={format_duration(enough_s)} would be enough."
    )


def _more_expensive(option: Option, best: Option) -> str:
    extra = option.cost - best.cost
    price = f"cost ${money.to_decimal(extra)} more" if extra > 0 else "cost the same"
    return f"{option.name} would take {_about(option)} and {price}"


def _blocked(inputs: SizingInputs, option: Option) -> str:
    would_take = f"{option.name} would take {_about(option)}"
    match option.infeasible_reason:
        case "budget":
            left = f"${money.to_decimal(inputs.budget_left or 0)} is left of {inputs.budget_name}"
            return f"{would_take}, but need ${money.to_decimal(option.budget_needed)}, and {left}"
        case "slots":
            return f"{would_take}, but {_slots_in_all(inputs, option.type)}"
        case _:
            processes = option.nodes * inputs.processes
            return f"{would_take}, but a batch of {inputs.min_batch} can't be split over {processes} processes"


def _end_of_scaling(inputs: SizingInputs, best: Option, options: tuple[Option, ...], *, any_faster: bool) -> list[str]:
    """For the chosen type: that more machines are not faster, not available, or not measured."""
    slots = _slots(inputs, best.type)
    more = [option for option in options if option.type == best.type and option.nodes > best.nodes]
    reasons = []
    if more and not any(_is_faster(option, best) for option in more):
        nearest = more[0]
        serial = nearest.serial_fraction
        why = "" if serial is None else f": {100 * serial:.0f} % of epoch time doesn't parallelize"
        reasons.append(f"{nearest.name} would take {_about(nearest)}, not less{why}")
    if slots is not None and best.nodes >= slots and not any_faster:
        reasons.append(_slots_in_all(inputs, best.type))
    elif not more:
        reasons.append(f"more than {best.nodes} {best.type} {'has' if best.nodes == 1 else 'have'} not been measured")
    return reasons


def _is_faster(option: Option, other: Option) -> bool:
    """By more than the noise of a measurement."""
    return option.run_s < 0.98 * other.run_s


def _cheapest_and_fastest(options: list[Option]) -> list[Option]:
    ends = (min(options, key=by_cost), min(options, key=lambda option: option.run_s)) if options else ()
    return list(dict.fromkeys(ends))


def _about(option: Option) -> str:
    basis = "" if option.basis == "measured" else f" ({option.basis})"
    return f"about {format_duration(option.run_s)}{basis}"


def _expected(option: Option) -> str:
    margin = 100 * (option.run_upper_s / option.run_s - 1)
    basis = "" if option.basis == "measured" else f", {option.basis}"
    return (
        f"about {format_duration(option.run_s)} "
        f"(upper estimate {format_duration(option.run_upper_s)}, +{margin:.0f} %{basis}), "
        f"about ${money.to_decimal(option.cost)}"
    )


def _slots(inputs: SizingInputs, type_: str) -> int | None:
    offer = inputs.best_offer(type_)
    return offer.slots if offer else None


def _slots_in_all(inputs: SizingInputs, type_: str) -> str:
    offer = inputs.best_offer(type_)
    return f"{offer.provider if offer else 'the provider'} has {_machines(_slots(inputs, type_) or 0)} in all"


def _machines(count: int) -> str:
    return f"{count} machine{'' if count == 1 else 's'}"


def _counts(counts: list[int]) -> str:
    return ", ".join(map(str, counts)) if len(counts) < 4 else f"{counts[0]} to {counts[-1]}"
