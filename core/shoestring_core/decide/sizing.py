# SPDX-License-Identifier: Apache-2.0
"""Which machines, and how many, finish a job within limits.time for the least money; and why no faster ones.

Chosen is the cheapest that meets the limit with its margin, of equal ones the faster. Only what was measured, or
follows from it (`scaling`), is chosen; while nothing is known the job runs as asked, and that run becomes the
measurement. A count that the user names stands: then this only says what comes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

from pydantic import TypeAdapter

from shoestring_core import money
from shoestring_core.decide import funding
from shoestring_core.decide.offers import Offer, suitable
from shoestring_core.decide.scaling import Basis, Measurement, Scaling
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.spec import MAX_NODES, JobSpec

SAME_WORK = frozenset(
    (
        "epochs", "eval_every_epochs", "seed", "lr", "lr_base_batch_size", "lr_schedule", "warmup_ratio", "bias_lr",
        "whitening_lr", "whitening_lr_schedule", "momentum", "momentum_schedule", "muon_lr", "muon_momentum",
        "weight_decay", "label_smoothing", "weight_average_decay", "weight_average_power",
    )
)  # fmt: skip
"""Parameters that don't change how long a step, one evaluation, the start or the end takes. All others may."""

PHASES = ("image_size_schedule", "batch_size_schedule", "crop_scale_schedule", "rectangular_eval_schedule")
"""Parameters that make one epoch unlike another: of such a run only the whole is a measure."""

Obstacle = Literal["", "slots", "batch", "money", "time"]


@dataclass(frozen=True)
class Case:
    """Everything that the choice depends on; kept with the job, so that it can be worked out again.

    limit_s       limits.time
    asked         the number of machines that the user named
    epochs        how many the job trains
    evaluations   how often it is evaluated before it ends
    processes     training processes on each machine
    batch         its smallest batch: every process needs a picture of it
    left          micro-dollars that may still be spent, by the tightest of its limits, which is `payer`'s
    measurements  of this work, the newest first
    """

    provider: str
    spot: Literal["only", "prefer", "never"]
    limit_s: float | None
    asked: int | None
    epochs: float
    evaluations: int
    processes: int
    batch: int
    offers: tuple[Offer, ...]
    left: int | None
    payer: str
    measurements: tuple[Measurement, ...]
    timeouts: Timeouts

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _CASE.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Case:
        return _CASE.validate_python(tree)


@dataclass(frozen=True)
class Option:
    """A number of machines of one type. Seconds, and micro-dollars for all machines together.

    run_s     what is expected, as limits.time counts; sure_s the same with its margin
    cost      what is expected, at today's price
    need      what must be there for it: the cost with the margin, and what is held ahead
    obstacle  why it can't be chosen; empty if it can
    """

    type: str
    market: str
    nodes: int
    basis: Basis
    run_s: float
    sure_s: float
    fixed_s: float
    unshared: float | None
    cost: int
    need: int
    obstacle: Obstacle

    @property
    def name(self) -> str:
        return f"{self.nodes} × {self.type}"


@dataclass(frozen=True)
class Choice:
    """What the job is to run on.

    verdict   chosen: by its time limit; asked: the user's or the only count; unmeasured: nothing is known of it;
              impossible: nothing meets the limit
    type      the type of machine to rent; None: whatever is cheapest
    option    what is known of that
    options   what was considered, by type and count
    enough_s  the limits.time that would do, where it is too short
    text      the choice in a sentence
    why       why nothing faster
    """

    verdict: Literal["chosen", "asked", "unmeasured", "impossible"]
    nodes: int
    type: str | None
    option: Option | None
    options: tuple[Option, ...]
    enough_s: int | None
    text: str
    why: str

    def as_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = _CHOICE.dump_python(self, mode="json")
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Choice:
        return _CHOICE.validate_python(tree)


def choose(case: Case) -> Choice:
    """The machines for a job."""
    options = tuple(_options(case))
    count = case.asked if case.asked is not None or case.limit_s is not None else 1
    within_reach = [one for one in options if count in (None, one.nodes)]
    fitting = [one for one in within_reach if not one.obstacle]
    if fitting:
        best = min(fitting, key=_cheapest)
        verdict: Literal["chosen", "asked"] = "chosen" if count is None else "asked"
        return _choice(case, verdict, best, options)
    if count is not None and within_reach:
        return _choice(case, "asked", min(within_reach, key=_cheapest), options)
    if options and count is None:
        return _impossible(case, options)
    return _unmeasured(case, count or 1, options)


def work(spec: JobSpec) -> dict[str, Any]:
    """What decides how long an epoch takes, beside the machines: jobs that are equal in it measure each other."""
    return {
        "recipe": spec.recipe,
        "params": {name: value for name, value in sorted(spec.params.items()) if name not in SAME_WORK},
        "data": spec.data.model_dump(mode="json") if spec.data else None,
        "views": bool(spec.goal and spec.goal.metric.endswith("_tta")),
        "processes": spec.resources.procs,
    }


def has_phases(spec: JobSpec) -> bool:
    """Whether one epoch of it is unlike another."""
    return any(spec.params.get(name) for name in PHASES)


def epochs(spec: JobSpec) -> float:
    return float(spec.params.get("epochs") or 1)


def evaluations(spec: JobSpec) -> int:
    """How often it is scored before its last step: after each so-many-th epoch but the last."""
    return max(0, ceil(epochs(spec) / int(spec.params.get("eval_every_epochs") or 1)) - 1)


def smallest_batch(spec: JobSpec) -> int:
    """Pictures in a step, where a schedule makes them fewest."""
    knots = str(spec.params.get("batch_size_schedule") or "").split()
    factors = [float(knot.rpartition(":")[2]) for knot in knots if _is_number(knot.rpartition(":")[2])]
    return max(1, round(int(spec.params.get("batch_size") or 32) * min(factors, default=1.0)))


def duration(seconds: float) -> str:
    """As limits.time is written: 8.4s, 42s, 2m10s, 1h05m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes and rest else f"{minutes}m" if minutes else f"{rest}s"


# What is considered


def _options(case: Case) -> Iterable[Option]:
    for type_ in sorted({one.type for one in case.measurements}):
        offer = suitable(case.offers, case.provider, case.spot, type_)
        scaling = Scaling(one for one in case.measurements if one.type == type_)
        if offer is None:
            continue
        for nodes in scaling.counts:
            if nodes <= MAX_NODES and (option := _option(case, offer, scaling, nodes)):
                yield option


def _option(case: Case, offer: Offer, scaling: Scaling, nodes: int) -> Option | None:
    found = scaling.estimate(nodes, case.epochs, case.evaluations)
    if found is None:
        return None
    cost = nodes * money.cost(offer.price, round(found.rented_s * 1e6))
    option = Option(
        type=offer.type, market=offer.market, nodes=nodes, basis=found.basis, run_s=found.run_s, sure_s=found.sure_s,
        fixed_s=found.fixed_s, unshared=found.unshared, cost=cost, obstacle="",
        need=nodes * _need(offer, round((found.rented_s + found.sure_s - found.run_s) * 1e6), case.timeouts),
    )  # fmt: skip
    return replace(option, obstacle=_obstacle(case, offer, option))


def _need(offer: Offer, rented_us: int, timeouts: Timeouts) -> int:
    """What must be there for one machine: its cost and what is held ahead; that alone if it is never extended."""
    ahead = funding.first_hold(offer.on_demand_price, timeouts)
    return ahead if rented_us <= timeouts.funding_lease // 2 else ahead + money.cost_ceiling(offer.price, rented_us)


def _obstacle(case: Case, offer: Offer, option: Option) -> Obstacle:
    if offer.slots is not None and option.nodes > offer.slots:
        return "slots"
    if option.nodes * case.processes > case.batch:
        return "batch"
    if case.left is not None and option.need > case.left:
        return "money"
    return "time" if case.limit_s is not None and option.sure_s > case.limit_s else ""


def _cheapest(option: Option) -> tuple[int, float, int, str]:
    return option.cost, option.run_s, option.nodes, option.type


# What is chosen


def _choice(case: Case, verdict: Literal["chosen", "asked"], best: Option, options: tuple[Option, ...]) -> Choice:
    text = f"{best.name}: {_expected(best)}."
    late = case.limit_s is not None and best.sure_s > case.limit_s
    if case.limit_s is not None and not late:
        text = f"{best.name}: {_expected(best)}; limits.time is {duration(case.limit_s)}."
    elif case.limit_s is not None:
        text += (
            f" That may be more than limits.time of {duration(case.limit_s)}, which ends it then; "
            f"{duration(_enough_s(best))} would be enough."
        )
    return Choice(
        verdict=verdict, nodes=best.nodes, type=best.type, option=best, options=options,
        enough_s=_enough_s(best) if late else None, text=text, why=_why_no_faster(case, best, options),
    )  # fmt: skip


def _impossible(case: Case, options: tuple[Option, ...]) -> Choice:
    assert case.limit_s is not None
    too_slow = [one for one in options if one.obstacle == "time"]
    limit = duration(case.limit_s)
    if not too_slow:
        nearest = min(options, key=lambda one: (one.sure_s > (case.limit_s or 0.0), _cheapest(one)))
        text = f"Nothing that can be had finishes within limits.time of {limit}: {_refused(case, nearest)}."
        return Choice("impossible", 1, None, None, options, None, text, "")
    fastest = min(too_slow, key=lambda one: (one.sure_s, one.cost))
    enough_s = _enough_s(fastest)
    text = (
        f"No machines finish it within limits.time of {limit}. The fastest to be had, {fastest.name}, take "
        f"{_expected(fastest)}: limits.time={duration(enough_s)} would be enough."
    )
    return Choice(
        "impossible", fastest.nodes, None, fastest, options, enough_s, text, _why_no_faster(case, fastest, options)
    )


def _unmeasured(case: Case, nodes: int, options: tuple[Option, ...]) -> Choice:
    machines = _machines(nodes)
    until = "" if case.limit_s is None else f" and is stopped after {duration(case.limit_s)}"
    if options:
        known = sorted({one.nodes for one in options})
        text = f"Nothing is known of it on {machines}, only on {_listed(known)}; it runs as asked{until}."
    else:
        text = f"Nothing like it has been measured on {case.provider}'s machines yet; it runs on {machines}{until}."
    why = "What it takes is kept, and the next plan is made from it."
    return Choice("unmeasured", nodes, None, None, options, None, text, why)


# Why no faster


def _why_no_faster(case: Case, best: Option, options: tuple[Option, ...]) -> str:
    """What stands against each way to be done sooner: more money, a bound, or that more machines don't help."""
    faster = [one for one in options if _is_faster(one, best)]
    said = []
    for type_ in sorted({one.type for one in faster}):
        of_type = [one for one in faster if one.type == type_]
        said += [_dearer(one, best) for one in _cheapest_and_fastest([one for one in of_type if not one.obstacle])]
        for obstacle in ("money", "slots", "batch"):
            if held := [one for one in of_type if one.obstacle == obstacle]:
                said.append(_refused(case, min(held, key=_cheapest)))
    said += _ends_of_scaling(case, best, options, any_faster=bool(faster))
    if best.fixed_s >= best.run_s / 2:
        said.append(f"{duration(best.fixed_s)} of it are its start and its end, which machines don't shorten")
    known = {one.type for one in options}
    if unknown := sorted({one.type for one in case.offers if one.provider == case.provider} - known):
        said.append(f"{', '.join(unknown)} {'has' if len(unknown) == 1 else 'have'} not been measured")
    return "Why no faster: " + "; ".join(said) + "." if said else ""


def _dearer(option: Option, best: Option) -> str:
    dearer = option.cost - best.cost
    price = f"cost ${money.to_decimal(dearer)} more" if dearer > 0 else "cost as much"
    return f"{option.name} would take {_about(option)} and {price}"


def _refused(case: Case, option: Option) -> str:
    what = f"{option.name} would take {_about(option)}"
    match option.obstacle:
        case "money":
            left = f"${money.to_decimal(case.left or 0)} is left of {case.payer}"
            return f"{what}, but need ${money.to_decimal(option.need)}, and {left}"
        case "slots":
            return f"{what}, but {case.provider} has {_machines(_slots(case, option.type) or 0)} in all"
        case _:
            return f"{what}, but a batch of {case.batch} can't be shared by {option.nodes * case.processes} processes"


def _ends_of_scaling(case: Case, best: Option, options: tuple[Option, ...], *, any_faster: bool) -> list[str]:
    """Of the type that was chosen: that more machines are no faster, or can't be had, or that nobody knows."""
    slots = _slots(case, best.type)
    more = [one for one in options if one.type == best.type and one.nodes > best.nodes]
    said = []
    if more and not any(_is_faster(one, best) for one in more):
        nearest = more[0]
        share = "" if nearest.unshared is None else f": machines don't share {nearest.unshared:.0%} of its epochs"
        said.append(f"{nearest.name} would take {_about(nearest)}, no less{share}")
    if slots is not None and best.nodes >= slots and not any_faster:
        said.append(f"{case.provider} has {_machines(slots)} in all")
    elif not more:
        said.append(f"more than {best.nodes} {best.type} {'has' if best.nodes == 1 else 'have'} not been measured")
    return said


def _is_faster(one: Option, other: Option) -> bool:
    """By more than what no measurement can tell apart."""
    return one.run_s < 0.98 * other.run_s


def _cheapest_and_fastest(options: list[Option]) -> list[Option]:
    ends = (min(options, key=_cheapest), min(options, key=lambda one: one.run_s)) if options else ()
    return list(dict.fromkeys(ends))


def _about(option: Option) -> str:
    basis = "" if option.basis == "measured" else f" ({option.basis})"
    return f"about {duration(option.run_s)}{basis}"


def _expected(option: Option) -> str:
    margin = option.sure_s / option.run_s - 1
    basis = "" if option.basis == "measured" else f", {option.basis}"
    return (
        f"about {duration(option.run_s)} ({duration(option.sure_s)} with a margin of {margin:.0%}{basis}), "
        f"about ${money.to_decimal(option.cost)}"
    )


def _slots(case: Case, type_: str) -> int | None:
    offer = suitable(case.offers, case.provider, case.spot, type_)
    return offer.slots if offer else None


def _machines(count: int) -> str:
    return f"{count} machine{'' if count == 1 else 's'}"


def _enough_s(option: Option) -> int:
    """A limit that it keeps, in full seconds; from an hour on in full minutes, as `duration` says it."""
    unit = 1 if option.sure_s < 3600 else 60
    return unit * ceil(option.sure_s / unit)


def _listed(counts: list[int]) -> str:
    return ", ".join(map(str, counts)) if len(counts) < 4 else f"{counts[0]} to {counts[-1]}"


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


_CASE = TypeAdapter(Case)
_CHOICE = TypeAdapter(Choice)
