# SPDX-License-Identifier: Apache-2.0
"""What all commands share: common options, the connection to the service, and printing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text
from shoestring_core import money, rest
from shoestring_core.terminal_text import printable

from shoestring import config, exit_codes
from shoestring.client import Client


class Terminal(Console):
    """Prints text as it stands, whoever wrote it: without markup, emoji codes and terminal control sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # handled once for all commands, in app.Commands


out, err = Terminal(), Terminal(stderr=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON (a stream prints one object per line).")]
Url = Annotated[str | None, typer.Option("--url", help="URL of the service.", envvar="SHOESTRING_URL")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id, or a unique prefix of it.")]


def open_client(url: str | None) -> Client:
    login = config.find_login(url)
    return Client(login.url, login.key)


def resolve_job_id(client: Client, prefix: str) -> str:
    """Return the full job id. Exits with NOT_FOUND unless exactly one job's id starts with `prefix`."""
    with contextlib.suppress(ValueError):
        return str(UUID(prefix))
    matching = [str(job.id) for job in client.jobs(limit=200).jobs if str(job.id).startswith(prefix)]
    if len(matching) != 1:
        count = "No job id starts" if not matching else f"{len(matching)} job ids start"
        print_error(f"{count} with {prefix}. List jobs: shoestring ls")
        raise typer.Exit(exit_codes.NOT_FOUND)
    return matching[0]


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


def print_error(message: str, hint: str | None = None, problems: Sequence[dict[str, Any]] = ()) -> None:
    err.print(message, style="red")
    for problem in problems:
        err.print(f"  {problem.get('pointer') or '/'}: {problem.get('message')}")
    if hint:
        err.print(hint)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Print a table to stdout, or `empty` to stderr if there are no rows."""
    if not rows:
        err.print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def format_dollars(amount: rest.Money | None) -> str:
    return "none" if amount is None else f"${amount.amount}"


def check_dollars(text: str) -> None:
    """Raise BadParameter unless `text` is an amount of money."""
    try:
        money.from_decimal(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
