# SPDX-License-Identifier: Apache-2.0
"""`shoestring artifacts`: the files of a finished job."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from shoestring_core import rest
from shoestring_core.exit_codes import ExitCode
from shoestring_core.regular_files import make_folder
from shoestring_core.wording.units import counted

from shoestring.cli.terminal import (
    JobId,
    Json,
    Url,
    err,
    open_client,
    out,
    print_error,
    print_result,
    print_table,
    resolve_job_id,
)
from shoestring.client import Client, is_complete, short_id

app = typer.Typer(
    help="""Files of a finished job: weights, exported model, metrics.

\b
shoestring artifacts get JOB --to model/
""",
    no_args_is_help=True,
)


@app.command("ls")
def list_artifacts(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """List a job's artifacts.

    \b
    shoestring artifacts ls JOB
    """
    with open_client(url) as client:
        job_id = resolve_job_id(client, job)
        artifacts = client.artifacts(job_id).artifacts
        empty = "" if artifacts else explain_missing(client.job(job_id), "artifacts")
    rows = [(file.name, f"{file.bytes:,}", str(file.step), file.sha256[:12]) for file in artifacts]
    print_result(
        artifacts,
        as_json,
        lambda: print_table(
            ("NAME", "BYTES", "STEP", "SHA-256"),
            rows,
            empty,
            drop=("SHA-256", "STEP"),
        ),
    )


@app.command("get")
def get_artifacts(
    job: JobId,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Default: all.")] = None,
    to: Annotated[
        Path | None, typer.Option("--to", "-o", help="Folder to write to. Default: NAME-ID of the job.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Download a job's artifacts, and verify their SHA-256. A file that is there and complete is not downloaded again.

    \b
    shoestring artifacts get JOB --to model/
    python -c "import torch; net = torch.export.load('model/model.pt2').module()"
    """
    with open_client(url) as client:
        job_id = resolve_job_id(client, job)
        artifacts = _find_artifacts(client, job_id, names or [])
        folder = to or _default_folder(client.job(job_id))
        with _naming(folder):
            make_folder(folder)
        targets = {name: folder / name for name in names or sorted(artifacts)}
        missing = {name: path for name, path in targets.items() if not is_complete(artifacts[name], path)}
        _require_writable(missing.values(), force)
        with _naming(folder):
            for name, path in missing.items():
                client.download(artifacts[name], path)
    written = [str(path) for path in targets.values()]
    print_result(written, as_json, lambda: out.print("\n".join(written)))
    there = len(targets) - len(missing)
    err.print(
        f"Downloaded {counted(len(missing), 'file')} to {folder}, SHA-256 verified"
        + (f"; {there} were there already" if there else "")
        if missing
        else f"Nothing to download: {folder} has all of it already, SHA-256 verified"
    )


def _find_artifacts(client: Client, job_id: str, names: Collection[str]) -> dict[str, rest.Artifact]:
    """The job's artifacts by name. Exits if it has none, or none of one of these names."""
    artifacts = {file.name: file for file in client.artifacts(job_id).artifacts}
    if unknown := sorted(set(names) - set(artifacts)):
        known = ", ".join(sorted(artifacts)) or "none yet"
        print_error(f"The job has no artifact {', '.join(unknown)}. Artifacts: {known}")
        raise typer.Exit(ExitCode.NOT_FOUND)
    if not artifacts:
        print_error(explain_missing(client.job(job_id), "artifacts"))
        raise typer.Exit(ExitCode.NOT_FOUND)
    return artifacts


def _require_writable(paths: Collection[Path], force: bool) -> None:
    """Exits if other files are in these places, unless `force` is set, or folders."""
    if not force and (used := [str(path) for path in paths if path.exists() or path.is_symlink()]):
        print_error(f"{', '.join(used)}: exists and is another file. Overwrite with --force, or choose --to FOLDER.")
        raise typer.Exit(ExitCode.USAGE)
    if folders := [str(path) for path in paths if path.is_dir() and not path.is_symlink()]:
        print_error(f"{', '.join(folders)}: a folder, which no file replaces. Remove it, or choose --to FOLDER.")
        raise typer.Exit(ExitCode.USAGE)


def explain_missing(job: rest.Job, what: str) -> str:
    """Why a job has no `what`, and what to do."""
    if job.state != "ended":
        return f"The job has no {what} yet ({job.status}). Follow it: shoestring watch {short_id(job.id)}"
    return f"The job left no {what} ({job.status}). Submit it again: shoestring retry {short_id(job.id)}"


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say of what goes wrong with a folder what to do."""
    try:
        yield
    except OSError as error:
        print_error(
            f"Files can't be written to {folder}: {error.strerror or error}. Correct that, or choose another folder: "
            "--to FOLDER"
        )
        raise typer.Exit(ExitCode.USAGE) from error


def _default_folder(job: rest.Job) -> Path:
    """A folder in the current one, named after the job; two jobs of one name have two."""
    name = re.sub(r"[^\w.-]+", "-", job.name).strip("-.")[:80]
    return Path(f"{name or 'job'}-{str(job.id)[-8:]}")
