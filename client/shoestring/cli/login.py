# SPDX-License-Identifier: Apache-2.0
"""`shoestring login`: save the service to talk to and an API key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from shoestring_core.tls import BadCertificate, read_certificates

from shoestring import config
from shoestring.cli.terminal import Json, out, print_result
from shoestring.client import Client


def login(
    url: Annotated[str, typer.Argument(help="URL of the service.")],
    key: Annotated[str | None, typer.Option("--key", help="API key; prompted for if absent.")] = None,
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
    """Log in to a service, checking and saving the API key.

    \b
    shoestring login http://127.0.0.1:8000 --key "$(cat DIR/admin.key)"
    shoestring login https://train.example.org --ca train.crt
    """
    secret = key or typer.prompt("API key", hide_input=True, err=True)
    try:
        authority = read_certificates(ca) if ca else ""
    except BadCertificate as error:
        raise typer.BadParameter(str(error), param_hint="--ca") from error
    with Client(url, secret.strip(), ca=authority) as client:
        me = client.me()
    path = config.save_login(url, secret.strip(), authority)
    print_result(me, as_json, lambda: out.print(f"Logged in as {me.user} of team {me.team}; saved in {path}"))
