# SPDX-License-Identifier: Apache-2.0
"""Commands for jobs: submit, ls, show, watch, logs, stop, retry, resume, open."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import typer
from shoestring_core import rest
from shoestring_core.exit_codes import ExitCode
from shoestring_core.terminal_text import printable

from shoestring import exit_codes
from shoestring import watch as watching
from shoestring.cli.spec_arguments import Params, RecipeName, SpecFile, errors_by_line, spec_tree
from shoestring.cli.terminal import (
    JobId,
    Json,
    Url,
    err,
    format_dollars,
    open_client,
    out,
    print_json_document,
    print_result,
    print_table,
    resolve_job_id,
    to_json,
)
from shoestring.client import Client, short_id


def submit(
    recipe: RecipeName = None,
    params: Params = None,
    file: SpecFile = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow until the job ends. Ctrl-C detaches.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate the spec only.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Submit a training job.

    \b
    shoestring submit digits/quickstart epochs=10 resources.nodes=2 --watch
    shoestring submit job.yaml
    shoestring submit imagefolder/resnet9 data.train=/data/images limits.cost=3.00
    shoestring submit imagefolder/resnet9 data.train=/data/images init=job/JOB   initialize from that job's weights
    """
    tree = spec_tree(recipe, params, file)
    with open_client(url) as client, errors_by_line(tree):
        if isinstance(tree, dict) and str(tree.get("init")).startswith("job/"):
            tree["init"] = f"job/{resolve_job_id(client, tree['init'].removeprefix('job/'))}"
        quoted = client.quote(tree)  # before the job exists, as it says what machines there are now
        job = client.submit(tree, dry_run=dry_run)
        err.print((job.sizing or quoted.summary).text)
        if job.deadline:
            err.print(job.deadline.text)
        if quoted.offers and (late := quoted.offers[0].outlasts_notice):
            err.print(late.text)
        if dry_run:
            print_result(job.spec, as_json, lambda: print_json_document(job.spec))
        elif watch:
            err.print(f"Submitted {short_id(job.id)}. Ctrl-C detaches; the job keeps running.")
            _watch(client, str(job.id), as_json)
        else:
            _print_new_job(job, as_json)


def list_jobs(
    filter: Annotated[
        str, typer.Option("--filter", help='For example "status=running" or "recipe=digits/quickstart".')
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=200, help="Maximum number of jobs.")] = 20,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List the team's jobs, newest first.

    \b
    shoestring ls
    shoestring ls --filter status=failed --json
    """
    with open_client(url) as client:
        page = client.jobs(filter=filter, limit=limit)
    print_result(page.jobs, as_json, lambda: _print_jobs(page.jobs))


def show(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Show a job: state and reason, attempts and machines, cost.

    \b
    shoestring show JOB
    """
    with open_client(url) as client:
        details = client.job(resolve_job_id(client, job))
        attempts, quote = client.attempts(details.id), client.cost(details.id).quote
    quoted = {"quote": quote.model_dump(mode="json") if quote else None}
    document = {"job": details.model_dump(mode="json"), **quoted, **attempts.model_dump(mode="json")}
    print_result(document, as_json, lambda: _print_job(details, attempts, quote))


def watch(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Follow a job until it ends. Ctrl-C detaches; the exit code tells how the job ended.

    \b
    shoestring watch JOB
    """
    with open_client(url) as client:
        _watch(client, resolve_job_id(client, job), as_json)


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Follow until the job ends.")] = False,
    tail: Annotated[int | None, typer.Option(min=1, max=10_000, help="Only the last N lines.")] = None,
    rank: Annotated[int | None, typer.Option(help="Only this rank; -1 is the agent.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Print lines as the job wrote them, with all terminal control sequences.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print a job's logs, of all ranks and machines. Of terminal control sequences only colors are kept.

    \b
    shoestring logs JOB -f
    shoestring logs JOB --rank 1 --tail 100
    """
    if as_json and raw:
        raise typer.BadParameter("give either --raw or --json")

    def format_line(line: rest.LogLine) -> str:
        if as_json:
            return json.dumps(to_json(line))
        writer = "agent" if line.rank < 0 else line.rank
        return f"[{line.slot}.{writer}] {line.text if raw else printable(line.text, colors=True)}"

    with open_client(url) as client:
        job_id = resolve_job_id(client, job)
        stream_cursor = client.metrics(job_id, keys="").cursor if follow else None
        found = truncated = False
        for page in _stored_logs(client, job_id, tail, rank):
            _print_log_lines(page.lines, rank, format_line)
            found, truncated = found or bool(page.lines), page.truncated
        if not found:
            if rank is not None:
                err.print(f"Rank {rank} has logged nothing. All ranks: shoestring logs {job}")
            else:
                err.print(f"Nothing has been logged. {watching.headline(client.job(job_id))}")
        if truncated:
            err.print("The job reached its log quota; the remaining logs were not stored.")
        if not follow or watching.is_over(client.job(job_id)):
            return
        for event in client.stream(f"job:{job_id}", cursor=stream_cursor, lost=_tell_lost):
            if event.name == "logs":
                _print_log_lines(rest.LogsMessage.model_validate(event.data).lines, rank, format_line)
            elif event.name == "job" and watching.is_over(rest.Job.model_validate(event.data)):
                return


def stop(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Stop a job. It saves a checkpoint first, from which it can be retried.

    \b
    shoestring stop JOB
    """
    with open_client(url) as client:
        job_id = resolve_job_id(client, job)
        before = client.job(job_id)
        stopped = client.stop(job_id)
    had_ended = "The job had already ended: " if before.state == "ended" else ""
    print_result(stopped, as_json, lambda: out.print(f"{had_ended}{watching.headline(stopped)}"))


def retry(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Submit an ended job again, from its last checkpoint.

    One that succeeded starts over.

    \b
    shoestring retry JOB
    """
    with open_client(url) as client:
        before = client.job(resolve_job_id(client, job))
        retried = client.retry(str(before.id))
    if before.status == "succeeded":
        err.print("The job had succeeded: it starts over.")
    else:
        err.print("It continues from the job's last checkpoint, if it saved one.")
    _print_new_job(retried, as_json)


def resume(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Put a paused job back in the queue.

    \b
    shoestring resume JOB
    """
    with open_client(url) as client:
        resumed = client.resume(resolve_job_id(client, job))
    print_result(resumed, as_json, lambda: out.print(watching.headline(resumed)))


def open_dashboard(
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="A job's page; default: the dashboard.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Open the dashboard or a job's page, signed in.

    \b
    shoestring open JOB
    """
    with open_client(url) as client:
        link = client.login_link()
        if job is not None:
            link += f"&next=/jobs/{resolve_job_id(client, job)}"
    print_result({"url": link}, as_json, lambda: out.print(link))
    webbrowser.open(link)


def _print_new_job(job: rest.Job, as_json: bool) -> None:
    """Print the id to stdout, for scripts, and what is next to stderr."""
    print_result(job, as_json, lambda: out.print(str(job.id)))
    name = short_id(job.id)
    err.print(f"{watching.headline(job)}\nFollow: shoestring watch {name}\nStop:   shoestring stop {name}")


def _watch(client: Client, job: str, as_json: bool) -> None:
    try:
        if as_json:
            final = None
            for final, event in watching.follow(client, job, _tell_lost):
                line = {"event": event.name, **event.data} if event else {"event": "job", **to_json(final)}
                print(json.dumps(line), flush=True)
            assert final is not None
        elif out.is_terminal:
            final = watching.show_live(client, job, out)
        else:
            final = watching.print_changes(client, job, lambda text: out.print(text, highlight=False), _tell_lost)
    except KeyboardInterrupt:
        err.print(f"Detached; the job keeps running. Follow it again: shoestring watch {short_id(job)}")
        raise typer.Exit(ExitCode.DETACHED) from None
    raise typer.Exit(exit_codes.of_job(final))


def _tell_lost(sentence: str) -> None:
    err.print(sentence, style="yellow", markup=False, highlight=False)


def _print_jobs(jobs: list[rest.Job]) -> None:
    rows = [
        (
            short_id(job.id),
            job.name,
            str(job.status),
            _format_steps(job),
            watching.format_cost(job.cost),
            watching.headline(job),
        )
        for job in jobs
    ]
    print_table(
        ("JOB", "NAME", "STATUS", "STEPS", "COST", "DETAILS"),
        rows,
        "No jobs yet. Try: shoestring submit digits/quickstart --watch",
        wrap=("NAME", "DETAILS"),
        drop=("DETAILS", "STEPS"),
    )


def _print_job(job: rest.Job, attempts: rest.AttemptList, quote: rest.KeptQuote | None) -> None:
    out.print(watching.render_job(job))
    if details := job.status_text.removeprefix(watching.headline(job)).strip():
        out.print(details, highlight=False)
    out.print(f"job {job.id}   attempt {job.attempt}   rolled-back steps {attempts.rolled_back_steps}")
    if job.sizing:
        out.print(job.sizing.text)
    if job.deadline:
        out.print(job.deadline.text)
    if quote:
        out.print(quote.summary.text)
    rows = [
        (f"{m.attempt}.{m.slot}", m.type, str(m.state), format_dollars(m.cost), m.market, m.end_cause or "",
         m.image or "", m.driver or "", str(m.id))
        for attempt in attempts.attempts
        for m in attempt.machines
    ]  # fmt: skip
    columns = ("ATTEMPT.SLOT", "TYPE", "STATE", "COST", "MARKET", "END CAUSE", "IMAGE", "DRIVER", "MACHINE")
    print_table(columns, rows, "No machines yet.", drop=("MACHINE", "IMAGE", "DRIVER", "MARKET", "END CAUSE"))
    for machine in [machine for attempt in attempts.attempts for machine in attempt.machines]:
        if machine.left:
            out.print(f"{machine.attempt}.{machine.slot}: {machine.left.text}")


def _stored_logs(client: Client, job_id: str, tail: int | None, rank: int | None) -> Iterator[rest.Logs]:
    """Page by page, up to the newest line."""
    cursor = None
    while True:
        page = client.logs(job_id, cursor=cursor, tail=tail, rank=rank)
        yield page
        if tail or not page.lines or page.next_cursor is None or page.next_cursor == cursor:
            return
        cursor = page.next_cursor


def _print_log_lines(
    lines: Sequence[rest.LogLine], rank: int | None, format_line: Callable[[rest.LogLine], str]
) -> None:
    for line in lines:
        if rank is None or line.rank == rank:
            print(format_line(line), flush=True)


def _format_steps(job: rest.Job) -> str:
    total = job.progress.steps_total
    return f"{job.progress.step:,}/{total:,}" if total else f"{job.progress.step:,}"
