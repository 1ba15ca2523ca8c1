# SPDX-License-Identifier: Apache-2.0
"""What all commands share: common options, the connection to the service, and printing."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from shoestring_core import money, rest
from shoestring_core.exit_codes import ExitCode
from shoestring_core.terminal_text import printable
from shoestring_core.wording.units import dollars

from shoestring import config
from shoestring.client import Client, short_id

GAP = 2
"""Characters between the columns of a table."""
MIN_WRAPPED = 20
"""Characters that a column which wraps has at least, if its text is that long."""
MAX_WIDTH = 10_000
"""Of what goes to a file or pipe: nothing is dropped or wrapped there, but prose."""
PROSE_WIDTH = 100
"""Of a table of paragraphs in a file or pipe."""


class Terminal(Console):
    """Prints text as it stands, from any author: without markup, emoji codes and terminal control sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, **options)
        if not self.is_terminal:
            self.width = MAX_WIDTH

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # handled once for all commands, in app.Commands


out, err = Terminal(), Terminal(stderr=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON (a stream prints one object per line).")]
Url = Annotated[str | None, typer.Option("--url", help="URL of the service.", envvar="SHOESTRING_URL")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id, the last 8 characters of it, or the job's name.")]


def open_client(url: str | None) -> Client:
    login = config.find_login(url)
    return Client(login.url, login.key, ca=login.ca)


def resolve_job_id(client: Client, given: str) -> str:
    """Return the id of the job that is given by its id, the beginning or the end of it, or its name.

    The name of a job and of its retries means the newest of them. Exits with NOT_FOUND unless one job is meant.
    """
    with contextlib.suppress(ValueError):
        return str(UUID(given))
    quoted = shlex.quote(given)
    found = [job for job in client.jobs(filter=f"id~{quoted}", limit=100).jobs if _begins_or_ends(str(job.id), given)]
    found = found or _without_retried(client.jobs(filter=f"name={quoted}", limit=100).jobs)
    if len(found) != 1:
        which = ", ".join(f"{short_id(job.id)} ({job.status}, {job.created_at:%b %d %H:%M} UTC)" for job in found[:5])
        several = f"{len(found)} jobs are called {given}: give the id of one, newest first: {which}"
        print_error(f"{several if found else f'No job has the id or the name {given}'}. List jobs: shoestring ls")
        raise typer.Exit(ExitCode.NOT_FOUND)
    return str(found[0].id)


def _without_retried(jobs: list[rest.Job]) -> list[rest.Job]:
    """Leave out the jobs of which a later one is a retry."""
    retried = {job.retried_from for job in jobs}
    left = [job for job in jobs if job.id not in retried]
    if len(left) == 1 < len(jobs):
        err.print(f"{left[0].name} is here its newest retry, {short_id(left[0].id)} ({left[0].status}).")
    return left


def _begins_or_ends(job: str, part: str) -> bool:
    return job.startswith(part.lower()) or job.endswith(part.lower())


def print_result(value: Any, as_json: bool, print_text: Callable[[], None]) -> None:
    """Print `value` as one line of JSON, or call `print_text`."""
    if as_json:
        print(json.dumps(to_json(value)), flush=True)
    else:
        print_text()


def to_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [to_json(item) for item in value] if isinstance(value, list) else value


def print_json_document(value: Any) -> None:
    """Print `value` as indented JSON for people."""
    out.print_json(printable(json.dumps(value, ensure_ascii=False)))


def print_error(message: str, hint: str | None = None, problems: Sequence[str] = ()) -> None:
    err.print(message, style="red")
    for problem in problems:
        err.print(f"  {problem}")
    if hint:
        err.print(hint)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    empty: str,
    *,
    wrap: Collection[str] = (),
    drop: Sequence[str] = (),
    prose: bool = False,
) -> None:
    """Print a table to stdout, or `empty` to stderr if there are no rows. A column without any text is left out.

    wrap  columns whose cells may take several lines; all others stay whole
    drop  columns that a terminal too narrow for all does without, the first of them first
    prose its cells are paragraphs, so it isn't one line a row even in a file or pipe
    """
    if not rows:
        err.print(empty)
        return
    width = min(out.width, PROSE_WIDTH) if prose and not out.is_terminal else out.width
    shown = fitting_columns(columns, rows, wrap, drop, width)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
    for number in shown:
        table.add_column(columns[number], overflow="fold", no_wrap=columns[number] not in wrap)
    for row in rows:
        table.add_row(*(row[number] for number in shown))
    out.print(table, width=width)


def fitting_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]], wrap: Collection[str], drop: Sequence[str], width: int
) -> list[int]:
    """The numbers of the columns that are shown in a terminal of so many characters: of those that have a cell."""
    needed = [
        max(cell_len(printable(text)) for text in (columns[i], *(row[i] for row in rows))) for i in range(len(columns))
    ]
    needed = [min(size, MIN_WRAPPED) if name in wrap else size for name, size in zip(columns, needed, strict=True)]
    shown = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    for name in (name for name in drop if columns.index(name) in shown):
        if sum(needed[i] + GAP for i in shown) - GAP <= width:
            break
        shown.remove(columns.index(name))
    return shown


def format_dollars(amount: rest.Money | None) -> str:
    """As people read it: to a cent, of less than a dollar two digits. `--json` and exports have every digit."""
    if amount is None:
        return "none"
    sign = "-" if amount.amount.startswith("-") else ""
    return sign + dollars(amount.amount.removeprefix("-"))


def format_price(price: rest.Money | None) -> str:
    """A price with every digit that its list has."""
    return "none" if price is None else f"${price.amount}"


def check_dollars(text: str) -> None:
    """Raise BadParameter unless `text` is an amount of money."""
    try:
        money.from_decimal(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
