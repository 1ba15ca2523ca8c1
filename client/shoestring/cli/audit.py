# SPDX-License-Identifier: Apache-2.0
"""`shoestring audit`: who did what, on what, when and from where; and whether the log is what was written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from shoestring_core import money
from shoestring_core.exit_codes import ExitCode
from shoestring_core.rest import AuditEntry, AuditVerification

from shoestring.cli.terminal import Json, Url, open_client, out, print_error, print_result, print_table

app = typer.Typer(
    help="""The audit log of your team (admins).

\b
shoestring audit ls
shoestring audit verify
""",
    no_args_is_help=True,
)

NAMED = 10


@app.command("ls")
def list_entries(
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Number of entries to show.")] = 50,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List who changed what, newest first.

    People, keys, logins, budgets, and jobs that were stopped or resumed.

    \b
    shoestring audit ls --limit 200
    """
    with open_client(url) as client:
        entries = client.audit_entries(limit=limit).entries
    rows = [
        (f"{one.at:%Y-%m-%d %H:%M:%S}", one.actor, one.action, one.subject, _facts(one), one.address or "operator")
        for one in entries
    ]
    columns = ("WHEN (UTC)", "WHO", "WHAT", "ON", "FACTS", "FROM")
    print_result(
        entries, as_json, lambda: print_table(columns, rows, "No entries.", wrap=("ON", "FACTS"), drop=("FACTS",))
    )


@app.command("verify")
def verify(url: Url = None, as_json: Json = False) -> None:
    """Verify that no entry was changed or removed.

    It compares the whole log with its chain of hashes, and with the newest seal in the object store. It finds every
    entry that was changed, removed, or cut off before the newest seal; exit code 1 if there is one. What is newer than
    the seal is named: a change of that can't be found yet.

    \b
    shoestring audit verify
    """
    with open_client(url) as client:
        found = client.verify_audit_log()
    print_result(found, as_json, lambda: _print(found))
    if not found.intact:
        raise typer.Exit(ExitCode.JOB_FAILED)


def _print(found: AuditVerification) -> None:
    for fault in found.faults:
        print_error(fault.text)
    if found.fault_count:
        print_error(f"The audit log is not what was written. Faults: {found.fault_count}.")
    else:
        out.print(f"The audit log is intact. Chained entries: {found.chained}, sealed: {found.sealed}.")
    if found.unsealed_count:
        out.print(f"Not sealed yet: {found.unsealed_count}. A change of these can't be found.")
    for entry in found.unsealed[:NAMED]:
        out.print(f"  {entry.at:%Y-%m-%d %H:%M:%S}  {entry.actor}  {entry.action}  {entry.subject}")


def _facts(entry: AuditEntry) -> str:
    return ", ".join(
        f"{name.removesuffix('_micro')} {_fact(name, value)}"
        for name, value in entry.detail.items()
        if value not in (None, "")
    )


def _fact(name: str, value: object) -> str:
    """A time, which is kept in µs, as a date; and micro-dollars as dollars."""
    if name.endswith("_at") and type(value) is int:
        return f"{datetime.fromtimestamp(value / 1e6, UTC):%Y-%m-%d %H:%M}"
    if name.endswith("_micro") and type(value) is int:
        return money.to_decimal(value)
    return value if isinstance(value, str) else json.dumps(value)
