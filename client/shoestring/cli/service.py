# SPDX-License-Identifier: Apache-2.0
"""`shoestring up` and `shoestring demo`: run the service on this computer."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from shoestring_core.exit_codes import ExitCode

from shoestring import config, demo, up
from shoestring.cli.terminal import Json, check_dollars, err, out, print_result


class DemoProvider(StrEnum):
    LOCAL = "local"
    EC2 = "ec2"


DataRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        exists=True,
        file_okay=False,
        resolve_path=True,
        help="Folder that jobs may read training data from; may be repeated.",
    ),
]
HooksRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--hooks-root",
        metavar="DIR",
        exists=True,
        file_okay=False,
        resolve_path=True,
        help="Folder with hooks that jobs may run, isolated by bubblewrap; off by default; may be repeated.",
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        exists=True,
        dir_okay=False,
        resolve_path=True,
        envvar="SHOESTRING_TLS_CERT",
        metavar="FILE",
        help="PEM file with a certificate: the service is served by https then.",
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        "--tls-key",
        exists=True,
        dir_okay=False,
        resolve_path=True,
        envvar="SHOESTRING_TLS_KEY",
        metavar="FILE",
        help="PEM file with its key, without a password.",
    ),
]


def start_service(
    data: Annotated[
        Path | None, typer.Option("--data", help="Data folder. Default: ~/.local/share/shoestring.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    budget: Annotated[
        str | None, typer.Option(metavar="USD", help="First limit of the team's budget; default: 10.00")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, max=64, help="Maximum number of local machines at a time.")
    ] = None,
    data_roots: DataRoots = None,
    hooks_roots: HooksRoots = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: Json = False,
) -> None:
    """Start the service on this computer.

    API, worker, local cloud and database, all in one terminal.

    \b
    shoestring up --budget 10
    shoestring up --data ./service --port 9000
    shoestring up --data-root /srv/images
    shoestring up --host 0.0.0.0 --tls-cert me.crt --tls-key me.key
    shoestring up --json        print one line with its URLs once it is ready

    Ctrl-C lets machines checkpoint and exit; a second Ctrl-C kills them. Jobs resume at the next `up`.
    """
    if budget is not None:
        check_dollars(budget)
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("--tls-cert and --tls-key go together")
    folder = (data or config.default_data_folder()).absolute()
    options = up.ServiceOptions(
        folder, host, port, budget, slots, tuple(data_roots or ()), tuple(hooks_roots or ()), tls_cert, tls_key
    )
    _serve(options, as_json)


def run_demo(
    provider: Annotated[
        DemoProvider, typer.Option(help="ec2: EC2's API, by a fake on this computer.")
    ] = DemoProvider.LOCAL,
    exit_after: Annotated[bool, typer.Option("--exit", help="Stop the service when the job has ended.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training and of when the machine is preempted.")] = 0,
    data: Annotated[Path | None, typer.Option("--data", help="Default: a new folder.")] = None,
    as_json: Json = False,
) -> None:
    """Train on two spot machines and lose one halfway.

    Shows the service end to end: the job resumes from its checkpoint and finishes, and the bill is settled.

    \b
    shoestring demo
    shoestring demo --exit --json
    shoestring demo --provider ec2      the same by EC2's API, against a fake of it on this computer
    """
    summary = demo.run(
        demo.DemoOptions(provider.value, exit_after=exit_after, port=port, seed=seed, data=data),
        report=report,
        console=None if as_json or not out.is_terminal else err,
        interrupts=count_interrupts(),
        on_summary=lambda summary: print_result(summary, as_json, lambda: _print_summary(summary)),
    )
    raise typer.Exit(ExitCode.OK if summary["status"] == "succeeded" else ExitCode.JOB_FAILED)


def _serve(options: up.ServiceOptions, as_json: bool) -> None:
    """Run the service until the first interrupt, and stop it; a second interrupt kills what is left."""
    service = up.LocalService(options, report=report)
    interrupts = count_interrupts()
    report(f"Starting Shoestring in {options.data} …")
    try:
        connection = service.start()
        remember_login(connection)
        if connection.isolation.problem:
            report(connection.isolation.warning())
        addresses = {
            "url": connection.url, "login_url": connection.login_url,
            "key_file": str(connection.key_file), "data": str(options.data),
        }  # fmt: skip
        print_result(addresses, as_json, lambda: _print_connection(connection))
        service.run(until=lambda: interrupts() > 0)
        report("Stopping …")
    finally:
        service.stop(kill=lambda: interrupts() > 1)


def report(message: str) -> None:
    """Print a message to stderr if there is still a terminal: a service whose terminal was closed must still drain."""
    with contextlib.suppress(OSError):
        err.print(message)


def remember_login(connection: up.ConnectionInfo) -> None:
    """Save the login for later commands; say what that replaces, or how to go on if it can't be saved."""
    earlier = config.saved_url()
    try:
        config.save_login(connection.url, connection.key, connection.ca)
    except OSError as error:
        report(
            f"The login can't be saved ({error.strerror}). In other terminals: "
            f'export SHOESTRING_URL={connection.url} SHOESTRING_KEY="$(cat {shlex.quote(str(connection.key_file))})"'
            + (f" SHOESTRING_CA={shlex.quote(str(connection.key_file.with_name('ca.pem')))}" if connection.ca else "")
        )
        return
    if earlier and earlier != connection.url:
        report(f"Commands now go to this service, no longer to {earlier} (to go back: shoestring login {earlier})")


def count_interrupts() -> Callable[[], int]:
    """Count SIGINT, SIGTERM, SIGQUIT and SIGHUP from now on instead of dying, so that the service can stop cleanly."""
    count = 0

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal count
        count += 1

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, on_signal)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it: to go on without a terminal
        signal.signal(signal.SIGHUP, on_signal)
    return lambda: count


def _print_connection(connection: up.ConnectionInfo) -> None:
    out.print(f"Dashboard   {connection.login_url}")
    out.print("            (this link signs in once, within 10 minutes; later: shoestring open)")
    out.print(f"API         {connection.url}/docs")
    out.print(f"Admin key   {connection.key_file}")
    out.print("Try         shoestring submit digits/quickstart --watch")


def _print_summary(summary: dict[str, Any]) -> None:
    """A line for each figure, with its unit; what the run did not measure is left out. `--json` has all of it."""
    for name, value in summary.items():
        if value in (None, []):
            continue
        label, text = name, str(value)
        if name.endswith("_s"):
            label, text = name.removesuffix("_s"), f"{value:.1f} s"
        elif name.endswith("_usd"):
            label, text = name.removesuffix("_usd"), f"${value}"
        elif isinstance(value, float):
            text = f"{value:.4f}"
        elif isinstance(value, list):
            text = ", ".join(map(str, value))
        elif isinstance(value, dict):
            text = ", ".join(f"{one.replace('_', ' ')} {count}" for one, count in value.items())
        out.print(f"{label.replace('_', ' '):24} {text}", highlight=False)
