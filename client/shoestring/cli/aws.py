# SPDX-License-Identifier: Apache-2.0
"""`shoestring aws`: what can be done with an AWS account by its credentials alone."""

from __future__ import annotations

from typing import Annotated

import typer

from shoestring import aws
from shoestring.cli.terminal import Json

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after the AWS account that machines run in.")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check credentials, clock, settings, image, subnets, permissions and quotas; launch and change nothing.

    It reads the worker's environment: SHOESTRING_EC2_REGIONS and SHOESTRING_AGENT_URL. Launches are tried as EC2's dry
    runs, which cost nothing. Exit code 1: a check failed.

    \b
    shoestring aws doctor
    AWS_PROFILE=lab shoestring aws doctor --json
    """
    raise typer.Exit(aws.run("doctor", *(["--json"] if as_json else [])))


@app.command()
def panic(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be ended.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    deployment: Annotated[str | None, typer.Option(help="Only what this deployment started. Default: all.")] = None,
    region: Annotated[
        list[str] | None, typer.Option(help="Only this region; can be repeated. Default: all enabled ones.")
    ] = None,
    as_json: Json = False,
) -> None:
    """End all machines, spot requests, volumes and addresses with our tag, in all regions.

    It needs AWS credentials as boto3 finds them, and neither the service nor its database. Things without the tag
    `shoestring` are never touched. Stop the service first, or it starts new machines. Repeating it is safe.
    Exit code 1: something is left, or a region could not be asked.

    \b
    shoestring aws panic --dry-run
    shoestring aws panic
    AWS_PROFILE=lab shoestring aws panic --region us-east-1 --yes
    """
    named = [part for one in region or () for part in ("--region", one)]
    chosen = [] if deployment is None else ["--deployment", deployment]
    switches = [f"--{name}" for name, on in {"dry-run": dry_run, "yes": yes, "json": as_json}.items() if on]
    raise typer.Exit(aws.run("panic", *chosen, *named, *switches))
