# SPDX-License-Identifier: Apache-2.0
"""`shoestring chaos`: fault injection on the local cloud."""

from __future__ import annotations

from typing import Annotated

import typer

from shoestring.cli.terminal import Json, Url, err, open_client, print_result

app = typer.Typer(help="Fault injection (admins, local cloud only).", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep `preempt` a subcommand while it is the only one."""


@app.command("preempt")
def preempt(
    machine: Annotated[str, typer.Argument(metavar="MACHINE", help="Machine id, as `shoestring show JOB` prints it.")],
    notice: Annotated[
        float, typer.Option(min=0, max=600, help="Seconds between the preemption notice and the termination.")
    ] = 120.0,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Preempt a local machine, as a spot provider would.

    \b
    shoestring chaos preempt 0193a… --notice 10
    """
    with open_client(url) as client:
        preempted = client.preempt(machine, notice_s=notice)
    print_result(
        preempted, as_json, lambda: err.print(f"Machine {preempted.id} gets its preemption notice: {notice:g} s")
    )
