# SPDX-License-Identifier: Apache-2.0
"""`shoestring login`: save the service to talk to and an API key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from shoestring_core.exit_codes import ExitCode
from shoestring_core.tls import BadCertificate, read_certificates

from shoestring import config
from shoestring.cli.terminal import Json, out, print_error, print_result
from shoestring.client import Client

MAX_KEY_CHARACTERS = 4096


def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of the service.")],
    key: Annotated[
        str | None, typer.Option("--key", help="API key. If absent: read from standard input, or prompted for.")
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            exists=True,
            dir_okay=False,
            envvar="SHOESTRING_CA",
            metavar="FILE",
            help="PEM file with the authority that signs the service's certificate. Default: those of this computer.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Log in to a service, checking and saving the API key. Without a key, that of an earlier login there is used.

    \b
    shoestring login http://127.0.0.1:8000 < DIR/admin.key
    shoestring login https://train.example.org --ca train.crt
    """
    try:
        authority = read_certificates(ca) if ca else ""
    except BadCertificate as error:
        raise typer.BadParameter(str(error), param_hint="--ca") from error
    given = key or _redirected_key()
    if not given and (earlier := config.earlier_login(url)):
        given, authority = earlier.key, authority or earlier.ca
    secret = (given or _ask_key(url)).strip()
    with Client(url, secret, ca=authority) as client:
        me = client.me()
    path = config.save_login(url, secret, authority)
    print_result(me, as_json, lambda: out.print(f"Logged in as {me.user} of team {me.team}; saved in {path}"))


def _redirected_key() -> str:
    """All of standard input if that isn't the terminal; "" otherwise, or if nothing is there."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    return sys.stdin.read(MAX_KEY_CHARACTERS).strip()


def _ask_key(url: str) -> str:
    """Read the key from the terminal, unseen."""
    if sys.stdin is not None and sys.stdin.isatty():
        return str(typer.prompt("API key", hide_input=True, err=True))
    print_error(f"No API key was given. Give it by --key KEY, or from a file: shoestring login {url} < KEYFILE")
    raise typer.Exit(ExitCode.USAGE)
