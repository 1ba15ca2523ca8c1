# SPDX-License-Identifier: Apache-2.0
"""The application: all commands together, and the exit code of every expected failure."""

from __future__ import annotations

import importlib.metadata
import io
import os
import sys
from typing import Annotated, Any

import typer
from shoestring_core import errors
from shoestring_core.exit_codes import ExitCode

from shoestring import config, exit_codes, trainer
from shoestring.cli import (
    artifacts,
    audit,
    aws,
    budget_requests,
    budgets,
    chaos,
    data,
    jobs,
    keys,
    login,
    members,
    models,
    offers,
    queue,
    quotes,
    recipes,
    results,
    service,
    simulate,
    what_ifs,
)
from shoestring.cli.spec_arguments import InvalidSpecFile, SpecCommand
from shoestring.cli.terminal import out, print_error
from shoestring.client import ServiceError, ServiceUnreachable
from shoestring.connections import UnusableVariable
from shoestring.runs import RunError
from shoestring.spot_traces import SpotTraceError
from shoestring.supervisor import StartupError

HELP = """Train on spot GPUs, as a team, on a shoestring.

\b
  shoestring up --budget 10                      start the service on this computer
  shoestring recipes                             list what can be trained
  shoestring quote digits/quickstart             say where a job would run, for how long and for how much
  shoestring submit digits/quickstart --watch    submit a job and follow it
  shoestring ls                                  list jobs: status and its reason
  shoestring COMMAND --help                      examples and options of a command
\b
Exit codes: 0 success, 1 job failed or stopped, 2 usage error, 3 not authorized, 4 budget,
5 not found, 6 no capacity, 7 service unreachable, 130 detached.
"""


class BrokenPipeSafeGroup(typer.core.TyperGroup):
    """Treats a closed pipe as success: the reader, such as `head`, has read all it wants."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard what is still buffered
            raise typer.Exit(ExitCode.OK) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"shoestring {importlib.metadata.version('shoestring')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `shoestring` itself; `--version` is handled by its callback."""


app = typer.Typer(cls=BrokenPipeSafeGroup, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.callback(help=HELP)(_options)
app.command("up")(service.start_service)
app.command("demo")(service.run_demo)
app.command("login")(login.login)
app.command("submit", cls=SpecCommand)(jobs.submit)
app.command("quote", cls=SpecCommand)(quotes.quote)
app.command("ls")(jobs.list_jobs)
app.command("queue")(queue.show_queue)
app.command("show")(jobs.show)
app.command("watch")(jobs.watch)
app.command("logs")(jobs.logs)
app.command("stop")(jobs.stop)
app.command("retry")(jobs.retry)
app.command("resume")(jobs.resume)
app.command("open")(jobs.open_dashboard)
app.add_typer(artifacts.app, name="artifacts")
app.command("results")(results.results)
app.command("predict")(models.predict)
app.command("export")(models.export)
app.command("model")(models.model)
budgets.app.add_typer(budget_requests.app)
budgets.app.add_typer(what_ifs.app)
app.add_typer(budgets.app, name="budget")
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.command("offers")(offers.list_offers)
app.add_typer(simulate.app, name="simulate")
app.add_typer(aws.app, name="aws")
app.add_typer(members.app, name="members")
app.add_typer(members.teams_app, name="teams")
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(chaos.app, name="chaos")


def main() -> None:
    """Run the command line. Expected failures become a message and an exit code, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a character that the terminal lacks is shown by its number
    try:
        app()
    except ServiceError as error:
        summary = f"{error.problem.title}." if error.problem.errors else str(error)
        print_error(summary, error.problem.hint, [problem.sentence for problem in error.problem.errors])
        sys.exit(exit_codes.of_problem(error.code))
    except InvalidSpecFile as error:
        print_error(str(error), error.hint, error.sentences)
        sys.exit(error.exit_code)
    except errors.InvalidSpec as error:
        print_error("The job spec is invalid.", None, [problem.sentence for problem in error.problems])
        sys.exit(ExitCode.USAGE)
    except config.NotLoggedIn as error:
        print_error(str(error))
        sys.exit(ExitCode.AUTH)
    except ServiceUnreachable as error:
        print_error(str(error))
        sys.exit(ExitCode.NETWORK)
    except (StartupError, UnusableVariable, trainer.TrainerNotInstalled, RunError, SpotTraceError) as error:
        print_error(str(error))
        sys.exit(ExitCode.USAGE)
    except OSError as error:
        print_error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        sys.exit(ExitCode.USAGE)
    except KeyboardInterrupt:
        sys.exit(ExitCode.DETACHED)
