# SPDX-License-Identifier: Apache-2.0
"""`shoestring keys`: API keys, and the browsers that are signed in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, TypeVar, cast

import typer
from shoestring_core.decide.access import SCOPES, KeyKind, Scope
from shoestring_core.exit_codes import ExitCode
from shoestring_core.rest import Key, Login

from shoestring.cli.terminal import (
    Json,
    Url,
    open_client,
    out,
    print_error,
    print_result,
    print_table,
    resolve_job_id,
)
from shoestring.client import short_id

app = typer.Typer(
    help="""Your API keys, and the browsers that you are signed in with.

\b
shoestring keys create --name laptop
shoestring keys ls
""",
    no_args_is_help=True,
)

T = TypeVar("T", Key, Login)


class Kind(StrEnum):
    PERSONAL = "personal"
    SERVICE = "service"
    JOB = "job"


KINDS: dict[Kind, KeyKind] = {Kind.PERSONAL: "pat", Kind.SERVICE: "svc", Kind.JOB: "job"}


@app.command("ls")
def list_keys(url: Url = None, as_json: Json = False) -> None:
    """List your API keys in your team. Their secrets are kept nowhere.

    \b
    shoestring keys ls
    """
    with open_client(url) as client:
        keys = client.keys()
    words = {kind: word.value for word, kind in KINDS.items()}
    rows = [
        (short_id(key.id), words[key.kind], key.name, " ".join(key.scopes) if key.scopes else "all",
         short_id(key.job) if key.job else "", _day(key.last_used_at),
         "revoked" if key.revoked_at else _day(key.expires_at))
        for key in keys
    ]  # fmt: skip
    columns = ("ID", "KIND", "NAME", "SCOPES", "JOB", "USED", "ENDS")
    print_result(keys, as_json, lambda: print_table(columns, rows, "No keys.", wrap=("NAME", "SCOPES")))


@app.command("create")
def create(
    kind: Annotated[Kind, typer.Option("--kind", help="For you, for a service of yours, or for one job.")] = (
        Kind.PERSONAL
    ),
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help=f"What it may do, repeatable: {', '.join(SCOPES)}. Default: all that you may."),
    ] = None,
    job: Annotated[str | None, typer.Option("--job", help="Of a job key: the only job that it reaches.")] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="Days until it expires.")] = 90,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Create an API key and print its secret, which is shown only now.

    It may do what you may, as far as its scopes go; a job key reads and stops one job.

    \b
    shoestring keys create --name laptop
    shoestring keys create --kind service --name nightly --scope read --scope jobs --days 365
    shoestring keys create --kind job --job 1a2b3c4d --days 7
    """
    if (kind is Kind.JOB) != (job is not None):
        raise typer.BadParameter("a job key needs its job, and no other has one", param_hint="--job")
    if unknown := [one for one in scope or [] if one not in SCOPES]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(SCOPES)}", param_hint="--scope")
    with open_client(url) as client:
        bound = resolve_job_id(client, job) if job else None
        scopes = cast("list[Scope]", scope) or None
        created = client.create_key(KINDS[kind], name=name, scopes=scopes, job=bound, expires_in_days=days)
    print_result(created, as_json, lambda: out.print(created.secret))


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="ID of the key, or the end of it.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Revoke a key, and every key and login that was made with it. Admins revoke keys of others by their whole ID.

    \b
    shoestring keys revoke 1a2b3c4d
    """
    with open_client(url) as client:
        id_ = key if len(key) == 36 else str(_only(client.keys(), key, "keys ls").id)
        client.revoke_key(id_)
    print_result({"revoked": id_}, as_json, lambda: out.print(f"Revoked {id_}"))


@app.command("logins")
def list_logins(url: Url = None, as_json: Json = False) -> None:
    """List the browsers that you are signed in with.

    \b
    shoestring keys logins
    """
    with open_client(url) as client:
        logins = client.logins()
    rows = [(short_id(one.id), _day(one.created_at), _day(one.expires_at), one.address, one.browser) for one in logins]
    columns = ("ID", "SINCE", "ENDS", "ADDRESS", "BROWSER")
    print_result(logins, as_json, lambda: print_table(columns, rows, "No logins.", wrap=("BROWSER",)))


@app.command("logout")
def end_login(
    login: Annotated[str, typer.Argument(metavar="ID", help="ID of the login, or the end of it.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Sign a browser out.

    \b
    shoestring keys logout 1a2b3c4d
    """
    with open_client(url) as client:
        ended = _only(client.logins(), login, "keys logins")
        client.end_login(ended.id)
    print_result(ended, as_json, lambda: out.print(f"Signed out: {ended.browser or ended.id}"))


def _day(time: datetime | None) -> str:
    return "never" if time is None else f"{time:%Y-%m-%d}"


def _only(things: Sequence[T], id_: str, command: str) -> T:
    matching = [one for one in things if str(one.id).endswith(id_.lower())]
    if len(matching) != 1:
        found = "Several IDs end" if matching else "No ID ends"
        print_error(f"{found} with {id_}.", f"List them: shoestring {command}")
        raise typer.Exit(ExitCode.NOT_FOUND)
    return matching[0]
