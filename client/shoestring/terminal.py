# SPDX-License-Identifier: Apache-2.0
"""What every command shares: its common options, whom it talks to, and how it prints."""

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

from shoestring import config, exits
from shoestring.client import Client


class Terminal(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # the command line answers it, whoever printed


out, err = Terminal(soft_wrap=True), Terminal(stderr=True, soft_wrap=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON (a stream prints one object per line).")]
Url = Annotated[str | None, typer.Option("--url", help="Service to talk to.", envvar="SHOESTRING_URL")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id, or enough of its beginning to be unique.")]


def connect(url: str | None) -> Client:
    found = config.find_login(url)
    return Client(found.url, found.key)


def resolve(client: Client, job: str) -> str:
    """A whole job id from its beginning."""
    with contextlib.suppress(ValueError):
        return str(UUID(job))
    matching = [str(found.id) for found in client.jobs(limit=200).jobs if str(found.id).startswith(job)]
    if len(matching) != 1:
        said = "No job begins" if not matching else f"{len(matching)} jobs begin"
        complain(f"{said} with {job}; see: shoestring ls")
        raise typer.Exit(exits.NOT_FOUND)
    return matching[0]


def tell(value: Any, as_json: bool, pretty: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(plain(value)), flush=True)
    else:
        pretty()


def plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [plain(item) for item in value] if isinstance(value, list) else value


def complain(message: str, hint: str | None = None, problems: Sequence[dict[str, Any]] = ()) -> None:
    err.print(message, style="red", markup=False)
    for problem in problems:
        err.print(f"  {problem.get('pointer') or '/'}: {problem.get('message')}", markup=False)
    if hint:
        err.print(hint, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    if not rows:
        err.print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    out.print(table)
