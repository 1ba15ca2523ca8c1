# SPDX-License-Identifier: Apache-2.0
"""`shoestring budget request`, `requests`, `approve`, `deny`: asking for more dollars."""

from __future__ import annotations

from typing import Annotated

import typer
from shoestring_core.exit_codes import ExitCode
from shoestring_core.rest import BudgetRequest

from shoestring.cli.budgets import find_budget
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
)
from shoestring.client import Client

app = typer.Typer()

RequestId = Annotated[str, typer.Argument(metavar="ID", help="ID of the request, or the end of it.")]
Note = Annotated[str, typer.Option("--note", help="A note to the member who asked.")]


@app.command("request")
def request(
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="Dollars that you need more, e.g. 5.00.")],
    why: Annotated[str, typer.Option("--why", help="The reason, for the person who decides.")],
    owner: Annotated[
        str | None, typer.Option("--owner", help="Your budget or your team's; default: yours if it has a limit.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Ask for more dollars. A lead or an admin of your team approves or denies it, for the team's budget an admin.

    \b
    shoestring budget request 5.00 --why "the last three seeds of the paper"
    """
    check_dollars(amount)
    with open_client(url) as client:
        budget = find_budget(client, owner).id if owner else None
        asked = client.ask_for_budget(amount, why, budget=budget)
    print_result(asked, as_json, lambda: out.print(f"Request {asked.id}: {_sentence(asked)}"))


@app.command("requests")
def list_requests(url: Url = None, as_json: Json = False) -> None:
    """List the team's requests for more dollars, newest first.

    \b
    shoestring budget requests
    """
    with open_client(url) as client:
        requests = client.budget_requests()
    rows = [(str(one.id)[-8:], one.state, one.user, one.owner, format_dollars(one.amount), one.why) for one in requests]
    columns = ("ID", "STATE", "USER", "BUDGET", "AMOUNT", "WHY")
    print_result(requests, as_json, lambda: print_table(columns, rows, "No requests.", wrap=("WHY",)))


@app.command("approve")
def approve(request: RequestId, note: Note = "", url: Url = None, as_json: Json = False) -> None:
    """Approve a request, which grants its dollars.

    Jobs that were paused for them go on. A lead doesn't approve their own.

    \b
    shoestring budget approve 1a2b3c4d
    """
    _decide(request, note, url, as_json, approve=True)


@app.command("deny")
def deny(request: RequestId, note: Note = "", url: Url = None, as_json: Json = False) -> None:
    """Deny a request.

    \b
    shoestring budget deny 1a2b3c4d --note "after the deadline of the others"
    """
    _decide(request, note, url, as_json, approve=False)


def _decide(request: str, note: str, url: str | None, as_json: bool, *, approve: bool) -> None:
    with open_client(url) as client:
        decided = client.decide_budget_request(_find(client, request).id, approve=approve, note=note)
    print_result(decided, as_json, lambda: out.print(_sentence(decided)))


def _find(client: Client, request: str) -> BudgetRequest:
    matching = [one for one in client.budget_requests() if str(one.id).endswith(request.lower())]
    if len(matching) != 1:
        found = "Several requests end" if matching else "No request ends"
        print_error(f"{found} with {request}.", "List them: shoestring budget requests")
        raise typer.Exit(ExitCode.NOT_FOUND)
    return matching[0]


def _sentence(request: BudgetRequest) -> str:
    return f"{request.state}: {format_dollars(request.amount)} for {request.owner}"
