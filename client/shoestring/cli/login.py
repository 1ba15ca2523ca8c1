# SPDX-License-Identifier: Apache-2.0
"""`shoestring login`: save the service to talk to and an API key."""

from __future__ import annotations

from typing import Annotated

import typer

from shoestring import config
from shoestring.cli.terminal import Json, out, print_result
from shoestring.client import Client


def login(
    url: Annotated[str, typer.Argument(help="URL of the service.")],
    key: Annotated[str | None, typer.Option("--key", help="API key; prompted for if absent.")] = None,
    as_json: Json = False,
) -> None:
    """Log in to a service, checking and saving the API key.

    \b
    shoestring login http://127.0.0.1:8000 --key "$(cat DIR/admin.key)"
    """
    secret = key or typer.prompt("API key", hide_input=True, err=True)
    with Client(url, secret.strip()) as client:
        me = client.me()
    path = config.save_login(url, secret.strip())
    print_result(me, as_json, lambda: out.print(f"Logged in as {me.user} of team {me.team}; saved in {path}"))
