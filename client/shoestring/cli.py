# SPDX-License-Identifier: Apache-2.0
"""The command line. Data goes to stdout, everything else to stderr; `exits` documents the exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from shoestring_core import errors, money, rest, spec
from shoestring_core.decide.sizing_text import duration

from shoestring import config, demo, exits, models, results, up, watch
from shoestring.client import Client, ServiceError, Unreachable
from shoestring.terminal import JobId, Json, Url, complain, connect, err, out, plain, resolve, table, tell

HELP = """Train on spot GPUs, as a team, on a shoestring.

\b
  shoestring up --budget 10                        start the service on this computer
  shoestring submit digits/quickstart --watch      train something and look on
  shoestring ls                                    what runs, what waits and why
\b
Exit codes: 0 ok, 1 the job failed, 2 usage, 3 sign-in, 4 money, 5 not found, 6 no capacity, 7 no answer, 130 detached.
"""


class Commands(typer.core.TyperGroup):
    """Whoever reads our output through a pipe may have read enough; that is no failure of ours."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written goes nowhere
            raise typer.Exit(exits.OK) from None


app = typer.Typer(cls=Commands, help=HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
budget_app = typer.Typer(help="What the team may spend, and what it has spent.", no_args_is_help=True)
artifacts_app = typer.Typer(
    help="The files a finished job leaves: weights, exported model, metrics.", no_args_is_help=True
)
recipes_app = typer.Typer()
chaos_app = typer.Typer(
    help="Faults on purpose, to see the service survive them (admins, local cloud).", no_args_is_help=True
)
app.add_typer(budget_app, name="budget")
app.add_typer(artifacts_app, name="artifacts")
app.add_typer(recipes_app, name="recipes")
app.add_typer(chaos_app, name="chaos")


def main() -> None:
    """Run the command line; turn every expected failure into a sentence and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that can't show a letter shows its number
    try:
        app()
    except ServiceError as refused:
        summary = f"{refused.problem.title}." if refused.problem.errors else str(refused)
        complain(summary, refused.problem.hint, refused.problem.errors)
        sys.exit(exits.of_problem(refused.code))
    except errors.InvalidSpec as invalid:
        complain("The job spec has mistakes.", None, [problem.as_json() for problem in invalid.problems])
        sys.exit(exits.USAGE)
    except config.NotLoggedIn as unknown:
        complain(str(unknown))
        sys.exit(exits.AUTH)
    except Unreachable as silent:
        complain(str(silent))
        sys.exit(exits.NETWORK)
    except (up.UpError, models.NoTrainer, results.Unusable) as failed:
        complain(str(failed))
        sys.exit(exits.USAGE)
    except OSError as failed:
        complain(": ".join(str(word) for word in (failed.filename, failed.strerror or failed) if word))
        sys.exit(exits.USAGE)
    except KeyboardInterrupt:
        sys.exit(exits.DETACHED)


# --- jobs

RecipeName = Annotated[str | None, typer.Argument(help="Recipe name, e.g. digits/quickstart.")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Parameters; dotted keys set the spec.")
]
SpecFile = Annotated[Path | None, typer.Option("-f", "--file", help="Job spec, YAML or JSON; - reads stdin.")]


@app.command()
def submit(
    recipe: RecipeName = None,
    params: Settings = None,
    file: SpecFile = None,
    watching: Annotated[bool, typer.Option("--watch", help="Look on until it ends. Ctrl-C detaches.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the spec, submit nothing.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Submit a training job.

    \b
    shoestring submit digits/quickstart epochs=10 resources.nodes=2 --watch
    shoestring submit -f job.yaml
    shoestring submit imagefolder/resnet9 data.train=/data/pictures limits.cost=3.00
    shoestring submit imagefolder/resnet9 data.train=/data/pictures init=job/0193   start with that job's weights
    """
    tree = _spec_tree(recipe, params, file)
    with connect(url) as client:
        if isinstance(tree, dict) and str(tree.get("init")).startswith("job/"):
            tree["init"] = f"job/{resolve(client, tree['init'].removeprefix('job/'))}"
        job = client.submit(tree, dry_run=dry_run)
        if job.sizing:
            err.print(job.sizing, markup=False)
        if dry_run:
            tell(job.spec, as_json, lambda: out.print_json(data=job.spec))
        elif watching:
            err.print(f"Submitted {job.id}. Ctrl-C detaches; the job goes on.")
            _watch(client, str(job.id), as_json)
        else:
            tell(job, as_json, lambda: out.print(str(job.id)))
            err.print(f"{job.sentence}\nWatch it: shoestring watch {job.id}    Stop it: shoestring stop {job.id}")


@app.command()
def plan(
    recipe: RecipeName = None, params: Settings = None, file: SpecFile = None, url: Url = None, as_json: Json = False
) -> None:
    """Show which machines a job would run on, how long, for how much, and why no faster. Submits nothing.

    \b
    shoestring plan digits/quickstart limits.time=5m
    shoestring plan -f job.yaml --json
    """
    tree = _spec_tree(recipe, params, file)
    with connect(url) as client:
        found = client.plan(tree)
    tell(found, as_json, lambda: _plan_page(found))
    if found.outcome == "infeasible":
        raise typer.Exit(exits.NO_CAPACITY)


@app.command("ls")
def list_jobs(
    where: Annotated[
        str, typer.Option("--filter", help='For example "state=running" or "recipe=digits/quickstart".')
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List the team's jobs, newest first.

    \b
    shoestring ls
    shoestring ls --filter state=queued --json
    """
    with connect(url) as client:
        page = client.jobs(where=where, limit=limit)
    tell(page.jobs, as_json, lambda: _jobs_table(page.jobs))


@app.command()
def show(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Show a job: state and reason, attempts and machines, money.

    \b
    shoestring show 0193
    """
    with connect(url) as client:
        found = client.job(resolve(client, job))
        attempts = client.attempts(found.id)
    whole = {"job": found.model_dump(mode="json"), **attempts.model_dump(mode="json")}
    tell(whole, as_json, lambda: _job_page(found, attempts))


@app.command("watch")
def watch_job(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Look on until the job ends. Ctrl-C detaches; the exit code is the job's.

    \b
    shoestring watch 0193
    """
    with connect(url) as client:
        _watch(client, resolve(client, job), as_json)


@app.command()
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job ends.")] = False,
    tail: Annotated[int | None, typer.Option(min=1, max=10_000, help="Only the last N lines.")] = None,
    rank: Annotated[int | None, typer.Option(help="One rank; -1 is the agent.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print a job's logs, of all ranks and machines.

    \b
    shoestring logs 0193 -f
    shoestring logs 0193 --rank 1 --tail 100
    """
    with connect(url) as client:
        identity = resolve(client, job)
        live_from = client.metrics(identity, keys="").cursor if follow else None
        cursor = None
        while True:
            page = client.logs(identity, cursor=cursor, tail=tail, rank=rank)
            _print_lines(page.lines, rank, as_json)
            if tail or not page.lines or page.next_cursor is None or page.next_cursor == cursor:
                break
            cursor = page.next_cursor
        if page.truncated:
            err.print("The job reached its log quota; the rest stayed on the machine.")
        if not follow or watch.over(client.job(identity)):
            return
        for message in client.stream(f"job:{identity}", cursor=live_from):
            if message.name == "logs":
                _print_lines(rest.LogsMessage.model_validate(message.data).lines, rank, as_json)
            elif message.name == "job" and watch.over(rest.Job.model_validate(message.data)):
                return


@app.command()
def stop(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Stop a job. Its machines checkpoint and end; what it learned is kept and can be retried.

    \b
    shoestring stop 0193
    """
    with connect(url) as client:
        found = client.stop(resolve(client, job))
    tell(found, as_json, lambda: out.print(found.sentence))


@app.command()
def retry(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Submit an ended job again, from its stored spec and its last checkpoint.

    \b
    shoestring retry 0193
    """
    with connect(url) as client:
        found = client.retry(resolve(client, job))
    tell(found, as_json, lambda: out.print(str(found.id)))


@app.command()
def resume(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Let a paused job queue again.

    \b
    shoestring resume 0193
    """
    with connect(url) as client:
        found = client.resume(resolve(client, job))
    tell(found, as_json, lambda: out.print(found.sentence))


@app.command("open")
def open_page(
    job: Annotated[str | None, typer.Argument(metavar="JOB")] = None, url: Url = None, as_json: Json = False
) -> None:
    """Open the dashboard, or one job's page, in a browser and sign in.

    \b
    shoestring open 0193
    """
    with connect(url) as client:
        link = client.login_link()
        if job is not None:
            link += f"&next=/jobs/{resolve(client, job)}"
    tell({"url": link}, as_json, lambda: out.print(link))
    webbrowser.open(link)


# --- artifacts


@artifacts_app.command("ls")
def list_artifacts(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """List the files a finished job left.

    \b
    shoestring artifacts ls 0193
    """
    with connect(url) as client:
        found = client.artifacts(resolve(client, job)).artifacts
    rows = [(file.name, f"{file.bytes:,}", str(file.step), file.sha256[:12]) for file in found]
    tell(
        found,
        as_json,
        lambda: table(("NAME", "BYTES", "STEP", "SHA-256"), rows, "Nothing yet: the job has not finished."),
    )


@artifacts_app.command("get")
def get_artifacts(
    job: JobId,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Default: all of them.")] = None,
    to: Annotated[Path, typer.Option("--to", "-o", help="Folder to write into.")] = Path(),
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Download a job's files.

    \b
    shoestring artifacts get 0193 --to model/
    python -c "import torch; net = torch.export.load('model/model.pt2').module()"
    """
    with connect(url) as client:
        identity = resolve(client, job)
        found = {file.name: file for file in client.artifacts(identity).artifacts}
        if unknown := sorted(set(names or []) - set(found)):
            complain(f"The job has no file {', '.join(unknown)}. It has: {', '.join(sorted(found)) or 'none yet'}")
            raise typer.Exit(exits.NOT_FOUND)
        if not found:
            complain("The job has left no files yet.")
            raise typer.Exit(exits.NOT_FOUND)
        to.mkdir(parents=True, exist_ok=True)
        written = []
        for name in names or sorted(found):
            client.download(found[name], to / Path(name).name)
            written.append(str(to / Path(name).name))
    tell(written, as_json, lambda: out.print("\n".join(written)))


# --- models

app.command("predict")(models.predict)
app.command("export")(models.export)
app.command("model")(models.model)
app.command("results")(results.results)


# --- money


@budget_app.command("show")
def show_budget(url: Url = None, as_json: Json = False) -> None:
    """Show limits, what is spent, what is held for running jobs and what is left.

    \b
    shoestring budget show --json
    """
    with connect(url) as client:
        budgets = client.budgets()
    rows = [
        (b.kind, b.owner, _dollars(b.limit), _dollars(b.posted), _dollars(b.held), _dollars(b.left),
         _dollars(b.overdraft) if b.overdraft.amount != "0.00" else "")
        for b in budgets
    ]  # fmt: skip
    tell(
        budgets,
        as_json,
        lambda: table(("KIND", "OWNER", "LIMIT", "SPENT", "HELD", "LEFT", "OVERDRAFT"), rows, "No budgets."),
    )


@budget_app.command("set")
def set_budget(
    limit: Annotated[str, typer.Argument(help="Dollars, e.g. 25.00, or none for no limit.")],
    owner: Annotated[str | None, typer.Option("--owner", help="Whose; default the team's.")] = None,
    job: Annotated[str | None, typer.Option("--job", help="The job whose own limit it is, by id.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Kept on the record.")] = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Set a limit. A limit below what is spent and held makes running jobs checkpoint and pause.

    A higher one lets the jobs go on that it had paused.

    \b
    shoestring budget set 25.00 --reason "conference deadline"
    shoestring budget set 0.80 --job 0198c5f2-7d10-7000-8000-1a2b3c4d5e6f
    """
    if limit != "none":
        _check_dollars(limit)
    with connect(url) as client:
        if job:
            chosen = [b for b in client.cost(resolve(client, job)).budgets if b.kind == "job"]
        else:
            chosen = [b for b in client.budgets() if (b.owner == owner if owner else b.kind == "team")]
        if len(chosen) != 1:
            whose = f"job {job}" if job else owner or "the team"
            complain(f"No single budget of {whose}; see: shoestring budget show")
            raise typer.Exit(exits.NOT_FOUND)
        found = client.set_budget(chosen[0].id, limit, reason=reason, etag=chosen[0].etag)
    tell(
        found, as_json, lambda: out.print(f"{found.owner}: limit {_dollars(found.limit)}, left {_dollars(found.left)}")
    )


# --- recipes


@recipes_app.callback(invoke_without_command=True)
def recipes(called: typer.Context, url: Url = None, as_json: Json = False) -> None:
    """Trainings by name, with their parameters and what they claim; by itself: the list.

    \b
    shoestring recipes
    shoestring recipes show cifar10/airbench94
    """
    if called.invoked_subcommand is None:
        list_recipes(url, as_json)
    elif as_json:
        raise typer.BadParameter(f"--json goes after `recipes {called.invoked_subcommand}`")


@recipes_app.command("ls")
def list_recipes(url: Url = None, as_json: Json = False) -> None:
    """List the recipes.

    \b
    shoestring recipes ls
    """
    with connect(url) as client:
        found = client.recipes()
    tell(found, as_json, lambda: table(("RECIPE", "WHAT"), [(r.name, r.title) for r in found], "No recipes."))


@recipes_app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(metavar="RECIPE")],
    params: models.Params = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw rate, momentum, batch and size over the run.")] = False,
    pictures: models.Pictures = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show a recipe's parameters and its claim, or draw its schedule, which needs no service.

    \b
    shoestring recipes show cifar10/airbench94
    shoestring recipes show cifar10/airbench94 --plot
    shoestring recipes show imagefolder/resnet9 epochs=30 --plot --pictures 9469
    """
    if plot:
        raise typer.Exit(models.plot_schedule(name, params or [], pictures, as_json))
    if params:
        raise typer.BadParameter("KEY=VALUE goes with --plot")
    with connect(url) as client:
        found = [recipe for recipe in client.recipes() if recipe.name == name]
    if not found:
        complain(f"No recipe is called {name}; see: shoestring recipes ls")
        raise typer.Exit(exits.NOT_FOUND)
    tell(found[0], as_json, lambda: _recipe_page(found[0]))


# --- the service


@app.command("up")
def start_service(
    data: Annotated[Path | None, typer.Option("--data", help="Folder that holds everything.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    budget: Annotated[str | None, typer.Option(metavar="USD", help="The team's limit, e.g. 10.00")] = None,
    slots: Annotated[int | None, typer.Option(min=1, max=64, help="Local machines at once.")] = None,
    data_roots: Annotated[
        list[Path] | None,
        typer.Option(
            "--data-root",
            metavar="DIR",
            exists=True,
            file_okay=False,
            resolve_path=True,
            help="Folder that jobs may train on; may be given several times.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start the service on this computer: API, worker, local cloud, database, in one terminal.

    \b
    shoestring up --budget 10
    shoestring up --data ./service --port 9000
    shoestring up --data-root /srv/pictures
    shoestring up --json        one line with its addresses, once it answers

    Ctrl-C lets machines checkpoint and end; a second Ctrl-C kills them. Jobs go on at the next `up`.
    """
    if budget is not None:
        _check_dollars(budget)
    folder = (data or config.default_data()).absolute()
    service = up.Service(up.Options(folder, host, port, budget, slots, tuple(data_roots or ())), say=err.print)
    interrupts = _count_interrupts()
    err.print(f"Starting Shoestring on {folder} …")
    try:
        access = service.start()
        config.save_login(access.url, access.key)
        told = {"url": access.url, "login_url": access.login_url, "key_file": str(access.key_file), "data": str(folder)}
        tell(told, as_json, lambda: _access_page(access))
        service.run(until=lambda: interrupts() > 0)
        err.print("Stopping …")
    finally:
        service.stop(hurry=lambda: interrupts() > 1)


@app.command("demo")
def run_demo(
    leave: Annotated[bool, typer.Option("--exit", help="Stop the service when the job is done.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the training and of the reclaim's moment.")] = 0,
    data: Annotated[Path | None, typer.Option("--data", help="Default: a fresh folder.")] = None,
    as_json: Json = False,
) -> None:
    """The main job, end to end: train on two spot machines, lose one half-way, finish all the same.

    \b
    shoestring demo
    shoestring demo --exit --json
    """
    interrupts = _count_interrupts()
    result = demo.run(
        demo.Options(leave=leave, port=port, seed=seed, data=data),
        say=err.print, show=None if as_json or not out.is_terminal else err, interrupts=interrupts,
        done=lambda summary: tell(summary, as_json, lambda: _demo_summary(summary)),
    )  # fmt: skip
    raise typer.Exit(exits.OK if result["status"] == "succeeded" else exits.JOB_FAILED)


@app.command()
def login(
    url: Annotated[str, typer.Argument(help="Address of the service.")],
    key: Annotated[str | None, typer.Option("--key", help="API key; asked for if absent.")] = None,
    as_json: Json = False,
) -> None:
    """Remember a service and a key.

    \b
    shoestring login http://127.0.0.1:8000 --key "$(cat DIR/admin.key)"
    """
    secret = key or typer.prompt("API key", hide_input=True, err=True)
    with Client(url, secret.strip()) as client:
        me = client.me()
    path = config.save_login(url, secret.strip())
    tell(me, as_json, lambda: out.print(f"Signed in as {me.user} of {me.team}; saved in {path}"))


@chaos_app.command("reclaim")
def reclaim(
    machine: Annotated[str, typer.Argument(metavar="MACHINE", help="Machine id, as `shoestring show JOB` prints it.")],
    notice: Annotated[float, typer.Option(min=0, max=600, help="Seconds between notice and loss.")] = 120.0,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Take a local machine away, as a spot provider would.

    \b
    shoestring chaos reclaim 0193a… --notice 10
    """
    with connect(url) as client:
        found = client.reclaim(machine, notice_s=notice)
    tell(found, as_json, lambda: err.print(f"{found.id} has its notice: {notice:g} s"))


# --- what the commands print


def _watch(client: Client, job: str, as_json: bool) -> None:
    try:
        if as_json:
            final = None
            for final, message in watch.follow(client, job):
                shown = {"event": message.name, **message.data} if message else {"event": "job", **plain(final)}
                print(json.dumps(shown), flush=True)
            assert final is not None
        elif out.is_terminal:
            final = watch.show_live(client, job, out)
        else:
            final = watch.show_lines(client, job, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        err.print(f"Detached; the job goes on. Watch again: shoestring watch {job}")
        raise typer.Exit(exits.DETACHED) from None
    raise typer.Exit(exits.of_job(str(final.state), final.end_reason, final.wait_reason))


def _jobs_table(jobs: list[rest.Job]) -> None:
    rows = [
        (str(job.id)[:13], job.name, str(job.state), _steps(job), f"${job.cost.spent.amount}", job.sentence)
        for job in jobs
    ]
    table(
        ("JOB", "NAME", "STATE", "STEPS", "SPENT", ""),
        rows,
        "No jobs yet. Try: shoestring submit digits/quickstart --watch",
    )


def _plan_page(plan: rest.Plan) -> None:
    out.print(plan.summary, markup=False)
    if plan.why_not_faster:
        out.print(plan.why_not_faster, markup=False)
    if plan.options:
        out.print()
        rows = [
            (
                f"{one.nodes} × {one.type}", one.market, duration(one.run_s), duration(one.run_upper_s),
                f"${one.cost.amount}", one.basis, INFEASIBLE[one.infeasible_reason] if one.infeasible_reason else "",
            )
            for one in plan.options
        ]  # fmt: skip
        table(("MACHINES", "MARKET", "TIME", "UPPER", "COST", "", ""), rows, "")
        err.print(f"From {plan.runs} earlier run{'' if plan.runs == 1 else 's'} of the team.")


INFEASIBLE = {
    "slots": "too many",
    "batch": "small batch",
    "budget": "too expensive",
    "time": "too slow",
}


def _job_page(job: rest.Job, attempts: rest.AttemptList) -> None:
    out.print(watch.card(job))
    out.print(f"job {job.id}   attempt {job.attempt}   steps lost {attempts.steps_lost}")
    if job.sizing:
        out.print(job.sizing, markup=False)
    rows = [
        (str(m.id), f"{m.attempt}.{m.slot}", m.market, m.type, str(m.state), m.end_cause or "", f"${m.cost.amount}")
        for attempt in attempts.attempts
        for m in attempt.machines
    ]
    table(("MACHINE", "ATTEMPT.SLOT", "MARKET", "TYPE", "STATE", "ENDED BY", "COST"), rows, "No machines yet.")


def _recipe_page(recipe: rest.Recipe) -> None:
    out.print(f"{recipe.name}@{recipe.version}  {recipe.title}\n{recipe.description}\n")
    rows = [
        (p.name, p.type, "" if p.default is None else str(p.default), ", ".join(map(str, p.choices or [])), p.help)
        for p in recipe.params
    ]
    table(("PARAMETER", "TYPE", "DEFAULT", "CHOICES", ""), rows, "No parameters.")
    if recipe.claim:
        out.print_json(data=recipe.claim)


def _access_page(access: up.Access) -> None:
    out.print(f"Dashboard   {access.login_url}   (signs you in once, for 10 minutes)")
    out.print(f"API         {access.url}/docs")
    out.print(f"Admin key   {access.key_file}")
    out.print("Try         shoestring submit digits/quickstart --watch")


def _demo_summary(summary: dict[str, Any]) -> None:
    table(("", ""), [(name, str(value)) for name, value in summary.items()], "")


def _print_lines(lines: Sequence[rest.LogLine], rank: int | None, as_json: bool) -> None:
    for line in lines:
        if rank is not None and line.rank != rank:
            continue
        if as_json:
            print(line.model_dump_json(), flush=True)
        else:
            print(f"[{line.slot}.{line.rank}] {line.text}", flush=True)


def _steps(job: rest.Job) -> str:
    total = job.progress.steps_total
    return f"{job.progress.step:,}/{total:,}" if total else f"{job.progress.step:,}"


def _dollars(amount: rest.Money | None) -> str:
    return "none" if amount is None else f"${amount.amount}"


def _spec_tree(recipe: str | None, params: list[str] | None, file: Path | None) -> str | dict[str, Any]:
    """The spec that the arguments of `submit` and `plan` give."""
    if (recipe is None) == (file is None):
        raise typer.BadParameter("give either a recipe name or -f FILE")
    if recipe is not None:
        return spec.from_arguments(recipe, params or [])
    assert file is not None
    if params:
        raise typer.BadParameter("KEY=VALUE goes with a recipe name; put it into the file instead")
    return _read_spec(file)


def _read_spec(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise typer.BadParameter(f"{file} can't be read: {unreadable}") from unreadable


def _check_dollars(text: str) -> None:
    try:
        money.from_decimal(text)
    except ValueError as wrong:
        raise typer.BadParameter(str(wrong)) from wrong


def _count_interrupts() -> Callable[[], int]:
    """Ctrl-C and SIGTERM counted instead of raised, so that stopping is orderly."""
    count = 0

    def remember(_number: int, _frame: object) -> None:
        nonlocal count
        count += 1

    signal.signal(signal.SIGINT, remember)
    signal.signal(signal.SIGTERM, remember)
    return lambda: count
