# SPDX-License-Identifier: Apache-2.0
"""`shoestring budget simulate`: the schedule and the spending to come with another limit, weight or queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import TypeAdapter, ValidationError
from shoestring_core import rest
from shoestring_core.decide.queue import MAX_WEIGHT, MIN_WEIGHT
from shoestring_core.spec.field_types import Deadline

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
JobChange = tuple[str, str, Any]
"""A job as it was given, and a field of JobWhatIf with its value."""

_DEADLINE: TypeAdapter[datetime | float] = TypeAdapter(Deadline)


@app.command("simulate")
def simulate(
    limit: Annotated[
        str | None, typer.Argument(metavar="LIMIT", help="Dollars, e.g. 25.00, or none for no limit.")
    ] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Owner of the budget; default: your team.")] = None,
    weight: Annotated[
        int | None, typer.Option("--weight", min=MIN_WEIGHT, max=MAX_WEIGHT, help="Another weight.")
    ] = None,
    first: Annotated[Jobs, typer.Option("--first", help="This queued job before its owner's others.")] = None,
    any_machine: Annotated[Jobs, typer.Option("--any-machine", help="This queued job on whatever has room.")] = None,
    stop: Annotated[Jobs, typer.Option("--stop", help="Without this queued job.")] = None,
    deadline: Annotated[
        Jobs,
        typer.Option(metavar="JOB=WHEN", help="Another deadline of this queued job: a time, or from now, such as 12h."),
    ] = None,
    gpu: Annotated[
        Jobs, typer.Option(metavar="JOB=GPU", help="This queued job on such GPUs, as resources.gpu has them.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show what changes would do to starts and spending.

    It changes nothing itself.

    \b
    shoestring budget simulate 25.00
    shoestring budget simulate 5.00 --owner ada
    shoestring budget simulate --first JOB --stop JOB
    shoestring budget simulate --deadline JOB=2026-12-04T09:00+01:00 --gpu JOB=A100:8
    """
    if limit is not None and limit != "none":
        check_dollars(limit)
    changes: list[JobChange] = [
        *((job, field, True) for field, jobs in (("first", first), ("any_machine", any_machine), ("stop", stop))
          for job in jobs or ()),
        *((job, "deadline", _deadline(when)) for job, when in _pairs("--deadline", deadline)),
        *((job, "gpu", gpus) for job, gpus in _pairs("--gpu", gpu)),
    ]  # fmt: skip
    if limit is None and weight is None and not changes:
        raise typer.BadParameter(
            "give what to change: a limit, --weight, --first, --any-machine, --stop, --deadline or --gpu; such as "
            "`shoestring budget simulate 40` or `shoestring budget simulate --first JOB`"
        )
    with open_client(url) as client:
        budgets = []
        if limit is not None or weight is not None:
            budget = find_budget(client, owner).id
            budgets.append(rest.BudgetWhatIf(budget=budget, limit=limit, weight=weight))
        found = client.what_if(rest.WhatIfRequest(budgets=budgets, jobs=_by_job(client, changes)))
    print_result(found, as_json, lambda: _print(found))


def _pairs(option: str, given: Jobs) -> Iterator[tuple[str, str]]:
    """The jobs that an option names, each with its value; a job's name may have an equals sign in it."""
    for one in given or ():
        job, equals, value = one.rpartition("=")
        if not (job and equals and value):
            raise typer.BadParameter(f"{one!r} is not a job with its value, such as JOB=…", param_hint=option)
        yield job, value


def _deadline(text: str) -> datetime:
    """As limits.deadline, but a duration counts from now."""
    try:
        when = _DEADLINE.validate_python(text)
    except ValidationError as invalid:
        raise typer.BadParameter(f"a deadline {invalid.errors()[0]['msg']}", param_hint="--deadline") from None
    try:
        return when if isinstance(when, datetime) else datetime.now(UTC) + timedelta(seconds=when)
    except OverflowError:
        raise typer.BadParameter(f"{text} from now is out of the calendar", param_hint="--deadline") from None


def _by_job(client: Client, changes: Iterable[JobChange]) -> list[rest.JobWhatIf]:
    """One change for each job, of all that was asked of it."""
    asked: dict[str, dict[str, Any]] = {}
    for job, field, value in changes:
        asked.setdefault(resolve_job_id(client, job), {})[field] = value
    return [rest.JobWhatIf(job=UUID(job), **fields) for job, fields in asked.items()]


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
