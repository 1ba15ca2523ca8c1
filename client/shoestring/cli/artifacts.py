# SPDX-License-Identifier: Apache-2.0
"""`shoestring artifacts`: the files of a finished job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoestring import exit_codes
from shoestring.cli.terminal import (
    JobId,
    Json,
    Url,
    open_client,
    out,
    print_error,
    print_result,
    print_table,
    resolve_job_id,
)

app = typer.Typer(help="Files of a finished job: weights, exported model, metrics.", no_args_is_help=True)


@app.command("ls")
def list_artifacts(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """List a job's artifacts.

    \b
    shoestring artifacts ls 0193
    """
    with open_client(url) as client:
        artifacts = client.artifacts(resolve_job_id(client, job)).artifacts
    rows = [(file.name, f"{file.bytes:,}", str(file.step), file.sha256[:12]) for file in artifacts]
    print_result(
        artifacts,
        as_json,
        lambda: print_table(("NAME", "BYTES", "STEP", "SHA-256"), rows, "No artifacts yet: the job has not finished."),
    )


@app.command("get")
def get_artifacts(
    job: JobId,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Default: all.")] = None,
    to: Annotated[Path, typer.Option("--to", "-o", help="Folder to write to.")] = Path(),
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Download a job's artifacts.

    \b
    shoestring artifacts get 0193 --to model/
    python -c "import torch; net = torch.export.load('model/model.pt2').module()"
    """
    with open_client(url) as client:
        artifacts = {file.name: file for file in client.artifacts(resolve_job_id(client, job)).artifacts}
        if unknown := sorted(set(names or []) - set(artifacts)):
            known = ", ".join(sorted(artifacts)) or "none yet"
            print_error(f"The job has no artifact {', '.join(unknown)}. Artifacts: {known}")
            raise typer.Exit(exit_codes.NOT_FOUND)
        if not artifacts:
            print_error("The job has no artifacts yet.")
            raise typer.Exit(exit_codes.NOT_FOUND)
        to.mkdir(parents=True, exist_ok=True)
        written = []
        for name in names or sorted(artifacts):
            client.download(artifacts[name], to / Path(name).name)
            written.append(str(to / Path(name).name))
    print_result(written, as_json, lambda: out.print("\n".join(written)))
