# SPDX-License-Identifier: Apache-2.0
"""`shoestring budget`: limits, spending and weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from shoestring_core.decide import soft_lines
from shoestring_core.decide.queue import MAX_CAP, MAX_WEIGHT, MIN_WEIGHT
from shoestring_core.exit_codes import ExitCode
from shoestring_core.rest import Budget, BudgetForecast

from shoestring.cli.terminal import (
    Json,
    Url,
    check_dollars,
    format_dollars,
    open_client,
    out,
    print_error,
    print_result,
    print_table,
    resolve_job_id,
)
from shoestring.client import Client

Reason = Annotated[str, typer.Option("--reason", help="Recorded in the event of the change.")]


class PeriodKind(StrEnum):
    MONTH = "month"
    TERM = "term"
    ONE_OFF = "one-off"


app = typer.Typer(
    help="""Budget limits, spending and weights.

\b
shoestring budget show
shoestring budget set 25.00
""",
    no_args_is_help=True,
)


@app.command("show")
def show_budgets(url: Url = None, as_json: Json = False) -> None:
    """Show limits, and what of them is spent, held and left.

    HELD is reserved for machines that run.
    REACHED is the highest soft line that was reached: shoestring budget lines.
    WEIGHT and LATELY order the queue: next is the team, and in it the member, with the fewest dollars spent lately or
    held now for its weight. Before all others come jobs with which a team stays within its GUARANTEED rate.
    AT ONCE is what runs of what may: shoestring budget concurrency.

    \b
    shoestring budget show --json
    """
    with open_client(url) as client:
        budgets = client.budgets()
    print_result(budgets, as_json, lambda: _print_budgets(budgets))


@app.command("members")
def show_members(url: Url = None, as_json: Json = False) -> None:
    """Show what each member has spent, held and left.

    The columns are those of show.

    \b
    shoestring budget members
    """
    with open_client(url) as client:
        members = [budget for budget in client.budgets() if budget.kind == "member"]
    print_result(members, as_json, lambda: _print_budgets(members))


def _print_budgets(budgets: Sequence[Budget]) -> None:
    rows = [
        (b.kind, b.owner, format_dollars(b.limit), format_dollars(b.posted), format_dollars(b.held),
         format_dollars(b.left), format_period(b), _highest_reached(b), str(b.weight or ""), _hourly(b), _at_once(b),
         format_dollars(b.recent) if b.recent else "",
         format_dollars(b.overdraft) if b.overdraft.amount != "0.00" else "")
        for b in budgets
    ]  # fmt: skip
    columns = ("KIND", "OWNER", "LIMIT", "SPENT", "HELD", "LEFT", "PERIOD", "REACHED", "WEIGHT", "GUARANTEED",
               "AT ONCE", "LATELY", "OVERDRAFT")  # fmt: skip
    drop = ("OVERDRAFT", "LATELY", "AT ONCE", "GUARANTEED", "WEIGHT", "REACHED", "PERIOD")
    print_table(columns, rows, "No budgets.", wrap=("OWNER",), drop=drop)


@app.command("set")
def set_budget(
    limit: Annotated[str, typer.Argument(metavar="LIMIT", help="Dollars, e.g. 25.00, or none for no limit.")],
    owner: Annotated[str | None, typer.Option("--owner", help="Owner of the budget; default: your team.")] = None,
    job: Annotated[str | None, typer.Option("--job", help="Set the limit of this job instead.")] = None,
    reason: Reason = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Set a limit. A limit below what is spent and held makes running jobs checkpoint and pause.

    Raising it resumes the jobs that were paused for it.

    \b
    shoestring budget set 25.00 --reason "conference deadline"
    shoestring budget set 0.80 --job 0198c5f2-7d10-7000-8000-1a2b3c4d5e6f
    """
    if limit != "none":
        check_dollars(limit)
    with open_client(url) as client:
        if job:
            matching = [b for b in client.cost(resolve_job_id(client, job)).budgets if b.kind == "job"]
            before = _only(matching, f"job {job}")
        else:
            before = find_budget(client, owner)
        budget = client.set_budget(before.id, limit, reason=reason, etag=before.etag)
    print_result(budget, as_json, lambda: out.print(_limit_and_left(budget)))


@app.command("grant")
def grant(
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="Dollars to add, e.g. 5.00.")],
    owner: Annotated[str | None, typer.Option("--owner", help="Owner of the budget; default: your team.")] = None,
    reason: Reason = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Add dollars to a limit. Jobs that were paused for it go on.

    \b
    shoestring budget grant 5.00 --owner ada --reason "one more sweep"
    """
    check_dollars(amount)
    with open_client(url) as client:
        budget = client.grant(find_budget(client, owner).id, amount, reason=reason)
    print_result(budget, as_json, lambda: out.print(_limit_and_left(budget)))


@app.command("transfer")
def transfer(
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="Dollars to move, e.g. 5.00.")],
    source: Annotated[str, typer.Option("--from", help="The member that gives them, of what is left.")],
    target: Annotated[str, typer.Option("--to", help="The member that gets them.")],
    reason: Reason = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Move dollars that a member has left to another one. What the team may spend stays the same.

    \b
    shoestring budget transfer 5.00 --from ada --to ben --reason "ben's sweep first"
    """
    check_dollars(amount)
    with open_client(url) as client:
        giving, taking = find_budget(client, source), find_budget(client, target)
        budget = client.transfer(giving.id, taking.id, amount, reason=reason)
    print_result(budget, as_json, lambda: out.print(_limit_and_left(budget)))


@app.command("export")
def export(url: Url = None, as_json: Json = False) -> None:
    """Write your team's ledger to the standard output, as CSV.

    Every line of it: changes of limits, and what machines cost. With --json it is a list of objects.

    \b
    shoestring budget export > ledger.csv
    """
    with open_client(url) as client:
        client.export_ledger("json" if as_json else "csv", sys.stdout.buffer.write)
    sys.stdout.flush()


@app.command("forecast")
def show_forecast(
    owner: Annotated[str | None, typer.Option("--owner", help="A member of your team; default: your team.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Forecast what a budget will have spent when its period ends.

    It also says what is spent a day, and when the limit is spent.
    A one-off budget has no end: the forecast looks 30 days ahead.

    \b
    shoestring budget forecast --owner ada
    """
    with open_client(url) as client:
        forecast = client.forecast(find_budget(client, owner).id)
    print_result(forecast, as_json, lambda: _print_forecast(forecast))


def _print_forecast(forecast: BudgetForecast) -> None:
    ends = f"{forecast.ends_at:%Y-%m-%d %H:%M} UTC"
    out.print(f"spent {format_dollars(forecast.spent)}, held {format_dollars(forecast.committed)}, "
              f"limit {format_dollars(forecast.limit)}")  # fmt: skip
    if forecast.at_end is None:
        out.print(
            "No forecast: there is no limit." if forecast.limit is None else "No forecast: too little was spent so far."
        )
        return
    end = forecast.at_end
    low, high = format_dollars(end.low), format_dollars(end.high)
    out.print(f"by {ends}: {format_dollars(end.expected)}, between {low} and {high} in four of five cases")
    pace, even = format_dollars(forecast.pace), format_dollars(forecast.even_pace)
    out.print(f"pace: {pace} a day; {even} a day would use the limit")
    if forecast.crosses_limit and forecast.exhausted_at:
        out.print(f"The limit won't last: it is spent by {forecast.exhausted_at:%Y-%m-%d %H:%M} UTC at this pace.")


@app.command("waste")
def show_waste(
    days: Annotated[int, typer.Option(help="How far to look back.", min=1, max=366)] = 28,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show what your team's machines cost, and how much was wasted.

    Waste is what did not go into training that was kept, by its cause.

    \b
    shoestring budget waste --days 7
    """
    with open_client(url) as client:
        report = client.waste(days)
    costs = [("all jobs", report.total), *((one.name, one.cost) for one in report.jobs)]
    rows = [
        (name, format_dollars(cost.cost), format_dollars(cost.training),
         *(format_dollars(part.cost) for part in cost.causes))
        for name, cost in costs
    ]  # fmt: skip
    columns = ("JOB", "COST", "TRAINING", "SET-UP", "IDLE", "LOST STEPS", "FAILED LAUNCH")
    print_result(report, as_json, lambda: print_table(columns, rows, "No jobs.", wrap=("JOB",)))


@app.command("period")
def set_period(
    kind: Annotated[PeriodKind, typer.Argument(metavar="KIND", help="month, term or one-off.")],
    until: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day of a term.")] = None,
    starts: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day, in the future; default: it begins now.")
    ] = None,
    time_zone: Annotated[str, typer.Option(help="In which a day begins, such as Europe/Berlin.")] = "UTC",
    carry_over: Annotated[
        str | None, typer.Option("--carry-over", help="all, or the dollars that carry over at most; default: nothing.")
    ] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="A member of your team; default: your team.")] = None,
    reason: Reason = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a budget monthly, a term, or one-off.

    Its limit and use stay as they are. Each month begins with the limit that was set. Jobs that run across the border
    go on.

    \b
    shoestring budget period month --time-zone Europe/Berlin --carry-over 20.00
    shoestring budget period term --until 2027-02-15 --owner ada
    shoestring budget period term --starts 2027-04-01 --until 2027-09-30
    """
    cap = None if carry_over in (None, "all") else carry_over
    if cap is not None:
        check_dollars(cap)
    with open_client(url) as client:
        budget = client.set_period(
            find_budget(client, owner).id, kind.value.replace("-", "_"), time_zone=time_zone,
            until=until.date() if until else None, starts=starts.date() if starts else None,
            rollover="none" if carry_over is None else "unspent",
            rollover_cap=cap, reason=reason,
        )  # fmt: skip
    print_result(budget, as_json, lambda: out.print(f"{budget.owner}: {format_period(budget)}"))


@app.command("lines")
def set_soft_lines(
    percents: Annotated[
        list[str], typer.Argument(metavar="PERCENT…", help="Whole numbers from 1 to 100, or none for no lines.")
    ],
    owner: Annotated[str | None, typer.Option("--owner", help="A member of your team; default: your team.")] = None,
    reason: Reason = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Set at which percentages of a limit the team is warned.

    Each of these soft lines warns once per value of the limit. Nothing is refused at one.

    \b
    shoestring budget lines 50 80 95 100
    shoestring budget lines none --owner ada
    """
    lines = _parse_lines(percents)
    with open_client(url) as client:
        budget = client.set_soft_lines(find_budget(client, owner).id, lines, reason=reason)
    said = ", ".join(f"{line.percent} %{' reached' if line.reached else ''}" for line in budget.soft_lines) or "none"
    print_result(budget, as_json, lambda: out.print(f"{budget.owner}: soft lines {said}"))


@app.command("weight")
def set_weight(
    weight: Annotated[int, typer.Argument(metavar="WEIGHT", help="A whole number.", min=MIN_WEIGHT, max=MAX_WEIGHT)],
    owner: Annotated[str | None, typer.Option("--owner", help="A member of your team; default: your team.")] = None,
    reason: Reason = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Set the weight of your team, or of a member, in the queue.

    While both have jobs waiting, one of weight 2 gets twice the dollars of one of weight 1.

    \b
    shoestring budget weight 2 --owner ada --reason "thesis due in May"
    """
    with open_client(url) as client:
        budget = client.set_weight(find_budget(client, owner).id, weight, reason=reason)
    print_result(budget, as_json, lambda: out.print(f"{budget.owner}: weight {budget.weight}"))


@app.command("guarantee")
def set_guaranteed_rate(
    rate: Annotated[str, typer.Argument(metavar="RATE", help="Dollars an hour, such as 2.50; 0: none.")],
    reason: Reason = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Guarantee your team dollars an hour (admins).

    Above this rate it borrows from other teams. Jobs that stay within it start first. If no machine is free for one, a
    job of the team that borrows most for its weight saves a checkpoint and goes back to its place in the queue.

    \b
    shoestring budget guarantee 2.50 --reason "two machines at any time"
    """
    with open_client(url) as client:
        budget = client.set_guaranteed_rate(find_budget(client, None).id, rate, reason=reason)
    print_result(budget, as_json, lambda: out.print(f"{budget.owner}: guaranteed {_hourly(budget) or 'nothing'}"))


@app.command("concurrency")
def set_concurrency(
    jobs: Annotated[str | None, typer.Option("--jobs", help="Running jobs at once; or none.")] = None,
    gpus: Annotated[str | None, typer.Option("--gpus", help="GPUs at once; or none.")] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="A member of your team; default: your team.")] = None,
    reason: Reason = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Cap the jobs and GPUs that a team or member has at once.

    What isn't given stays as it is. What runs goes on; jobs beyond it wait until others end.

    \b
    shoestring budget concurrency --jobs 4 --gpus 8
    shoestring budget concurrency --jobs none --owner ada
    """
    if jobs is None and gpus is None:
        raise typer.BadParameter("give --jobs, --gpus or both")
    wanted = _parse_cap("--jobs", jobs), _parse_cap("--gpus", gpus)
    with open_client(url) as client:
        before = find_budget(client, owner)
        caps = (before.concurrency.max_jobs, before.concurrency.max_gpus) if before.concurrency else (None, None)
        new = [cap if text is None else want for text, want, cap in zip((jobs, gpus), wanted, caps, strict=True)]
        budget = client.set_concurrency(before.id, *new, reason=reason)
    print_result(budget, as_json, lambda: out.print(f"{budget.owner}: {_at_once(budget) or 'no concurrency cap'}"))


def _parse_cap(option: str, text: str | None) -> int | None:
    if text is None or text == "none":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_CAP)) and int(text) <= MAX_CAP):
        raise typer.BadParameter(f"a whole number from 0 to {MAX_CAP:,}, or none", param_hint=option)
    return int(text)


def _at_once(budget: Budget) -> str:
    """What runs of what may, such as "2/4 jobs, 3/8 GPUs"; empty without a cap."""
    if (caps := budget.concurrency) is None:
        return ""
    pairs = ((caps.jobs, caps.max_jobs, "jobs"), (caps.gpus, caps.max_gpus, "GPUs"))
    return ", ".join(f"{now}/{cap} {what}" for now, cap, what in pairs if cap is not None)


def _hourly(budget: Budget) -> str:
    """Its guaranteed rate; empty without one."""
    rate = budget.guaranteed_rate
    return "" if rate is None or rate.amount == "0.00" else f"{format_dollars(rate)}/h"


def find_budget(client: Client, owner: str | None) -> Budget:
    matching = [b for b in client.budgets() if (b.owner == owner if owner else b.kind == "team")]
    return _only(matching, owner or "your team")


def format_period(budget: Budget) -> str:
    """When its period ends, and what then happens with what is unspent."""
    if budget.period is None:
        return "one-off"
    period = budget.period
    ends = f"{period.kind} {'ended' if period.ended else 'until'} {period.ends}"
    if period.begins is not None:
        ends = f"{period.kind} from {period.begins}, until {period.ends}"
    if period.rollover == "none":
        return ends
    most = "" if period.rollover_cap is None else f" up to {format_dollars(period.rollover_cap)}"
    return f"{ends}, carries over{most}"


def _parse_lines(percents: Sequence[str]) -> list[int]:
    if list(percents) == ["none"]:
        return []
    try:
        return soft_lines.checked([int(percent.removesuffix("%")) for percent in percents])
    except ValueError:
        most = soft_lines.MAX_LINES
        raise typer.BadParameter(f"give whole numbers from 1 to 100, at most {most} of them, or none") from None


def _highest_reached(budget: Budget) -> str:
    reached = [line.percent for line in budget.soft_lines if line.reached]
    return f"{max(reached)} %" if reached else ""


def _limit_and_left(budget: Budget) -> str:
    return f"{budget.owner}: limit {format_dollars(budget.limit)}, left {format_dollars(budget.left)}"


def _only(matching: Sequence[Budget], name: str) -> Budget:
    if len(matching) != 1:
        found = "Several budgets are" if matching else "There is no budget"
        print_error(f"{found} of {name}. List budgets: shoestring budget show")
        raise typer.Exit(ExitCode.NOT_FOUND)
    return matching[0]
