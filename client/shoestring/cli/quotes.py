# SPDX-License-Identifier: Apache-2.0
"""`shoestring quote`: what a job would run on, how long it takes and what it costs, before it is submitted."""

from __future__ import annotations

from typing import Annotated

import typer
from shoestring_core import rest
from shoestring_core.durations import format_duration
from shoestring_core.wording.units import counted, dollars_up

from shoestring.cli.spec_arguments import Params, RecipeName, SpecFile, errors_by_line, spec_tree
from shoestring.cli.terminal import (
    Json,
    Url,
    err,
    format_dollars,
    format_price,
    open_client,
    out,
    print_result,
    print_table,
)

COLUMNS = (
    "MACHINES", "GPU", "WHERE", "MARKET", "TIME", "80 % BAND", "COST", "80 % BAND OF COST", "BASIS", "INTERRUPTED",
    "PER HOUR", "NOT POSSIBLE",
)  # fmt: skip
DROP = ("INTERRUPTED", "80 % BAND", "PER HOUR", "GPU", "WHERE", "BASIS", "80 % BAND OF COST", "MARKET")
INFEASIBLE_REASONS = {
    "slots": "too few slots",
    "batch": "batch too small",
    "rate": "above limits.rate",
    "budget": "too expensive",
    "time": "too slow",
}
SHOWN_OFFERS = 10


def quote(
    recipe: RecipeName = None,
    params: Params = None,
    file: SpecFile = None,
    machines: Annotated[
        str, typer.Option("--machines", metavar="N,N…", help="Compare these numbers of machines, such as 1,2,4.")
    ] = "",
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Say how often the quotes of earlier jobs held.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Say where a job would run, for how long and for how much.

    It submits nothing. Times and costs come from your team's earlier runs of the same work; where there are none, it
    says so.

    \b
    shoestring quote job.yaml
    shoestring quote digits/quickstart limits.time=5m
    shoestring quote digits/quickstart epochs=20 --machines 1,2,4
    shoestring quote -f job.yaml --json
    shoestring quote --calibration
    """
    if calibration:
        if recipe or params or file or machines:
            raise typer.BadParameter("--calibration is about all earlier jobs: give no spec beside it")
        with open_client(url) as client:
            held = client.calibration()
        print_result(held, as_json, lambda: _print_calibration(held))
        return
    tree, counts = spec_tree(recipe, params, file), _parse_counts(machines)
    with open_client(url) as client, errors_by_line(tree):
        quoted = client.quote(tree, machine_counts=counts)
    print_result(quoted, as_json, lambda: _print(quoted))


def _print_calibration(held: rest.Calibration) -> None:
    out.print(held.summary.text)
    rows = [
        (one.recipe, str(one.compared), _share(one.time_within, one.compared), _share(one.cost_within, one.compared),
         str(one.not_compared))
        for one in held.recipes
    ]  # fmt: skip
    if rows:
        print_table(("RECIPE", "JOBS", "TIME WITHIN", "COST WITHIN", "NOT COMPARED"), rows, "", drop=("NOT COMPARED",))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "unknown"


def _parse_counts(text: str) -> list[int]:
    try:
        return [int(count) for count in text.split(",")] if text else []
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,2,4") from None


def _print(quoted: rest.Quote) -> None:
    out.print(quoted.summary.text)
    if quoted.deadline:
        out.print(quoted.deadline.text)
    if quoted.why_not_faster:
        out.print(quoted.why_not_faster.text)
    if quoted.no_offer:
        out.print(quoted.no_offer.text)
    for quota in quoted.quotas:
        out.print(quota.text)
    if quoted.offers:
        out.print()
        print_table(COLUMNS, [_row(one) for one in quoted.offers[:SHOWN_OFFERS]], "", drop=DROP)
        if (more := len(quoted.offers) - SHOWN_OFFERS) > 0:
            err.print(f"{counted(more, 'more offer')}: --json")
        out.print()
        for line in _budget_lines(quoted.offers[0]):
            out.print(line)
        if late := quoted.offers[0].outlasts_notice:
            out.print(late.text)
    if quoted.machine_counts:
        out.print("\nTime against cost:")
        print_table(COLUMNS, [_row(one) for one in quoted.machine_counts], "", drop=DROP)
    if quoted.runs:
        err.print(f"From {counted(quoted.runs, 'earlier run')} of this work by your team.")


def _budget_lines(best: rest.QuotedOffer) -> list[str]:
    """What the best offer does to the budget."""
    lines = [f"To start, {format_dollars(best.hold)} is held{_of_budget(best.left_after_hold)}."]
    if best.left_after_end is not None:
        lines.append(
            f"After the end, {format_dollars(best.left_after_end)} of the tightest budget is expected to be left."
        )
    if best.max_cost is not None:
        lines.append(f"Its limits allow at most {format_dollars(best.max_cost)}.")
    price, offer = best.offer.price_per_hour, best.offer
    age = f", as of {offer.fetched_at:%Y-%m-%d %H:%M:%S} UTC" if offer.fetched_at else ""
    simulated = "; nobody is charged it" if offer.simulated else ""
    lines.append(f"Price: {format_price(price)} per machine and hour ({offer.price_source}{age}{simulated}).")
    return lines


def _of_budget(left: rest.Money | None) -> str:
    if left is None:
        return ""
    if left.amount.startswith("-"):
        return f": the budget lacks {dollars_up(left.amount.removeprefix('-'))} for it, so the job would wait"
    return f", which leaves {format_dollars(left)} of the tightest budget"


def _row(one: rest.QuotedOffer) -> tuple[str, ...]:
    offer, time_s, cost = one.offer, one.time_s, one.cost
    return (
        f"{one.nodes} × {offer.type}",
        f"{offer.gpus} × {offer.gpu}" if offer.gpu else "none",
        " ".join(dict.fromkeys((offer.provider, offer.zone or offer.region))),
        offer.market.replace("_", " "),
        format_duration(time_s.expected) if time_s else "unknown",
        f"{format_duration(time_s.low)} to {format_duration(time_s.high)}" if time_s else "unknown",
        format_dollars(cost.expected) if cost else "unknown",
        f"{format_dollars(cost.low)} to {format_dollars(cost.high)}" if cost else "unknown",
        _basis(one),
        _interrupted(one),
        format_price(offer.price_per_hour),
        INFEASIBLE_REASONS[one.infeasible_reason] if one.infeasible_reason else "",
    )


def _basis(one: rest.QuotedOffer) -> str:
    if one.basis == "unknown":
        return "unknown: never measured"
    runs = f"{one.runs} run{'' if one.runs == 1 else 's'}"
    return f"measured, {runs}" if one.basis == "measured" else f"scaled from {', '.join(one.scaled_from)}"


def _interrupted(one: rest.QuotedOffer) -> str:
    odds = one.interruptions
    if odds.source == "on_demand":
        return "no"
    if odds.probability is not None:
        return f"{100 * odds.probability:.0f} % (measured)"
    return f"{one.offer.interruption} a month" if odds.source == "advisor" else "unknown"
