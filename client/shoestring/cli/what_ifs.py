# SPDX-License-Identifier: Apache-2.0
"""`shoestring budget simulate`: the schedule and the spending to come with another limit, weight or queue."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer
from shoestring_core import rest
from shoestring_core.decide.queue import MAX_WEIGHT, MIN_WEIGHT

from shoestring.cli.budgets import find_budget
from shoestring.cli.queue import local_time
from shoestring.cli.terminal import (
    Json,
    Url,
    check_dollars,
    format_dollars,
    open_client,
    out,
    print_result,
    print_table,
    resolve_job_id,
)
from shoestring.client import Client, short_id

app = typer.Typer()

Jobs = list[str] | None


@app.command("simulate")
def simulate(
    limit: Annotated[str | None, typer.Argument(help="Dollars, e.g. 25.00, or none for no limit.")] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Owner of the budget; default: your team.")] = None,
    weight: Annotated[
        int | None, typer.Option("--weight", min=MIN_WEIGHT, max=MAX_WEIGHT, help="Another weight.")
    ] = None,
    first: Annotated[Jobs, typer.Option("--first", help="This queued job before its owner's others.")] = None,
    any_machine: Annotated[Jobs, typer.Option("--any-machine", help="This queued job on whatever has room.")] = None,
    stop: Annotated[Jobs, typer.Option("--stop", help="Without this queued job.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show when queued jobs would start, and what would be spent, with changes. Changes nothing.

    \b
    shoestring budget simulate 25.00
    shoestring budget simulate 5.00 --owner ada
    shoestring budget simulate --first JOB --stop JOB
    """
    if limit is not None and limit != "none":
        check_dollars(limit)
    jobs = {"first": first or [], "any_machine": any_machine or [], "stop": stop or []}
    if limit is None and weight is None and not any(jobs.values()):
        raise typer.BadParameter("give what to change: a limit, --weight, --first, --any-machine or --stop")
    with open_client(url) as client:
        budgets = []
        if limit is not None or weight is not None:
            budget = find_budget(client, owner).id
            budgets.append(rest.BudgetWhatIf(budget=budget, limit=limit, weight=weight))
        found = client.what_if(rest.WhatIfRequest(budgets=budgets, jobs=_changes(client, jobs)))
    print_result(found, as_json, lambda: _print(found))


def _changes(client: Client, jobs: dict[str, list[str]]) -> list[rest.JobWhatIf]:
    """One change for each job, of all that was asked of it."""
    asked: dict[str, set[str]] = {}
    for change, given in jobs.items():
        for one in given:
            asked.setdefault(resolve_job_id(client, one), set()).add(change)
    return [
        rest.JobWhatIf(job=UUID(job), first="first" in of, any_machine="any_machine" in of, stop="stop" in of)
        for job, of in asked.items()
    ]


def _print(found: rest.WhatIf) -> None:
    out.print(found.summary.text)
    rows = [(short_id(one.job), one.name, one.user, *map(_start, (one.before, one.after))) for one in found.jobs]
    print_table(
        ("ID", "JOB", "BY", "STARTS", "WOULD START"), rows, "No job of your team is in the queue.", drop=("BY",)
    )
    out.print()
    spent = [
        (
            one.kind,
            one.owner,
            format_dollars(one.limit_before),
            format_dollars(one.limit_after),
            *map(_last, (one.before, one.after)),
        )
        for one in found.budgets
    ]
    columns = ("BUDGET", "OWNER", "LIMIT", "WOULD BE", "SPENT BY THE END", "WOULD BE SPENT")
    print_table(columns, spent, "", wrap=("OWNER",))


def _start(start: rest.ExpectedStart | None) -> str:
    return local_time(start.at) if start else "unknown"


def _last(points: list[rest.SpentBy]) -> str:
    return format_dollars(points[-1].spent) if points else ""
