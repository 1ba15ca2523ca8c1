# SPDX-License-Identifier: Apache-2.0
"""`shoestring chaos`: fault injection on the local cloud."""

from __future__ import annotations

from typing import Annotated

import typer
from shoestring_core.exit_codes import ExitCode

from shoestring.cli.terminal import Json, Url, err, open_client, print_error, print_result, resolve_job_id
from shoestring.client import Client, ServiceError

app = typer.Typer(
    help="""Fault injection (admins, local cloud only).

\b
shoestring chaos preempt JOB 1 --notice 10
""",
    no_args_is_help=True,
)


@app.callback()
def group() -> None:
    """Keep `preempt` a subcommand while it is the only one."""


@app.command("preempt")
def preempt(
    target: Annotated[str, typer.Argument(metavar="MACHINE|JOB", help="Machine id, or a job.")],
    slot: Annotated[
        int | None,
        typer.Argument(metavar="SLOT", help="With a job: the number of its machine, as `show` prints it."),
    ] = None,
    notice: Annotated[
        float, typer.Option(min=0, max=600, help="Seconds between the preemption notice and the termination.")
    ] = 120.0,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Preempt a local machine, as a spot provider would.

    \b
    shoestring chaos preempt JOB 1 --notice 10
    """
    with open_client(url) as client:
        preempted = client.preempt(_machine_id(client, target, slot), notice_s=notice)
    print_result(
        preempted, as_json, lambda: err.print(f"Machine {preempted.id} gets its preemption notice: {notice:g} s")
    )


def _machine_id(client: Client, target: str, slot: int | None) -> str:
    """Return the id of the machine that is given by itself, or by a job in which it runs, and its slot."""
    try:
        attempts = client.attempts(resolve_job_id(client, target)).attempts
    except ServiceError as error:
        if error.code != "not-found" or slot is not None:
            raise
        return target  # the id is no job's
    machines = [machine for attempt in attempts for machine in attempt.machines]
    running = {machine.slot: machine for machine in machines if machine.state == "running" and not machine.left}
    if slot is None and len(running) == 1:
        (slot,) = running
    if slot not in running:
        numbers = ", ".join(map(str, sorted(running))) or "none"
        print_error(f"Name a running machine: shoestring chaos preempt {target} NUMBER. Running: {numbers}")
        raise typer.Exit(ExitCode.NOT_FOUND)
    return str(running[slot].id)
