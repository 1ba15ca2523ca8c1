# SPDX-License-Identifier: Apache-2.0
"""`shoestring aws`: what can be done with an AWS account by its credentials alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer
from shoestring_core.exit_codes import ExitCode
from shoestring_core.regular_files import require_regular

from shoestring import aws, aws_job, config
from shoestring.cli.terminal import Json, Url, check_dollars, err, open_client, out, print_result
from shoestring.client import Client, ServiceError, is_accepted, redeem_code
from shoestring.supervisor import StartupError
from shoestring.up import limit_notice

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Set up, check and clear the AWS account that machines run in.

The first day, in this order; docs/aws.md explains it:

\b
shoestring aws bootstrap --email me@example.org > aws.env && . ./aws.env
shoestring aws doctor
shoestring aws up --budget 25
shoestring aws verify
""",
)


ImagePython = Annotated[str, typer.Option(help="Python version of the machines' image.")]
ImagePackages = Annotated[
    bool, typer.Option("--image-packages", help="The image's Python has all packages but Shoestring's own.")
]


@app.command()
def bootstrap(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be created, and print IAM policies.")
    ] = False,
    region: Annotated[
        list[str] | None, typer.Option(help="Region for machines; may be repeated. Default: us-east-1.")
    ] = None,
    email: Annotated[str | None, typer.Option(help="Address for an AWS Budgets alarm. Default: no alarm.")] = None,
    monthly: Annotated[
        str, typer.Option(metavar="USD", help="The alarm is sent at 80 % of this amount a month.")
    ] = "50",
    image: Annotated[
        str | None,
        typer.Option(
            metavar="AMI", help="An image with Shoestring's environment. Default: AWS's base image and a wheelhouse."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Create what machines need in an account.

    Network, private bucket, role for spot machines, alarm, wheelhouse. What is there is left as it is: run it again at
    any time. It prints the service's settings, for a shell. The wheelhouse is the machines' Python environment: about 3
    GB, downloaded by pip and uploaded to the bucket.

    \b
    shoestring aws bootstrap --dry-run
    shoestring aws bootstrap --email me@example.org > aws.env
    """
    if email is not None and not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
        raise typer.BadParameter(f"{email} is not an e-mail address")
    if image is not None:
        _check_image(image)
    check_dollars(monthly)
    for one in region or ():
        if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", one):
            raise typer.BadParameter(f"{one} is not a region, such as us-east-1")
    named = [part for one in region or () for part in ("--region", one)]
    chosen = [part for name, value in (("--email", email), ("--image", image)) if value for part in (name, value)]
    switches = [f"--{name}" for name, on in {"dry-run": dry_run, "json": as_json}.items() if on]
    raise typer.Exit(aws.run("bootstrap", *named, *chosen, "--monthly", monthly, *switches))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the account and the settings, and launch nothing.

    Credentials, clock, settings, bucket, image, subnets, permissions and quotas.
    It reads the worker's environment: SHOESTRING_EC2_REGIONS, SHOESTRING_AGENT_URL and SHOESTRING_OBJECT_STORE.
    Launches are tried as EC2's dry runs, which cost nothing. In the bucket it writes one object, and deletes it.
    Exit code 1: a check failed.

    \b
    shoestring aws doctor
    AWS_PROFILE=lab shoestring aws doctor --json
    """
    raise typer.Exit(aws.run("doctor", *(["--json"] if as_json else [])))


@app.command()
def up(
    budget: Annotated[str | None, typer.Option(metavar="USD", help="First limit of the team's budget.")] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="AMI", help="An image with Shoestring's environment. Default: Ubuntu 24.04 and wheels."),
    ] = None,
    python: ImagePython = "3.12",
    image_packages: ImagePackages = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the service.")] = 8443,
    as_json: Json = False,
) -> None:
    """Run the service on a small machine, and log in to it.

    It needs what `bootstrap` made, and the settings that it printed. The machine boots Ubuntu 24.04 and installs this
    installation's version of the service, from wheels that are uploaded to the bucket: about 75 MB, the first time.
    The data lie on a volume that stays, and so does the address. Run again it changes nothing, or goes on where it was
    stopped.

    \b
    shoestring aws up --budget 25
    """
    if budget is not None:
        check_dollars(budget)
    if image is not None:
        _check_image(image)
    _check_python(python)
    named = [part for name, value in (("--budget", budget), ("--image", image)) if value for part in (name, value)]
    named += ["--image-packages"] if image_packages else []
    code, found = aws.run_for_answer("up", *named, "--python", python, "--port", str(port))
    if code:
        raise typer.Exit(code)
    url, ca = str(found["url"]), str(found["ca"])
    key = config.saved_key(url) or ""
    if not (key and is_accepted(url, key, ca)):
        try:
            key = redeem_code(url, ca, found["code"])
        except ServiceError as error:
            if error.problem.status != 401:
                raise
            raise StartupError("The login was used. A new one is there within 5 minutes: run this again.") from error
    config.save_login(url, key, ca)
    if budget is not None:
        with Client(url, key, ca=ca) as client:
            (limit,) = (one.limit for one in client.budgets() if one.kind == "team")
        if notice := limit_notice(budget, None if limit is None else limit.amount):
            err.print(notice)
    print_result({"url": url}, as_json, lambda: _print_service(url))


@app.command()
def verify(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    job: Annotated[bool, typer.Option(help="Also train a job on the cheapest GPU, for $1.00 at most.")] = True,
    report: Annotated[Path, typer.Option(help="File for the report, in Markdown.")] = Path("aws-verify.md"),
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Test on AWS itself what was tested against a fake of it.

    With two of the smallest spot machines, then with a job on a GPU. It asks before each: the machines cost $0.10 at
    most, the job $1.00. The machines need what `bootstrap` made, and the settings that it printed; the job, that you
    are logged in to a service that rents there (`aws up`). Everything is ended again, on Ctrl-C too. Exit code 1:
    something does not hold, was not tried, or is left.

    \b
    shoestring aws verify
    shoestring aws verify --no-job --yes --report 2026-12-01.md
    """
    _check_report(report)
    switches = [f"--{name}" for name, on in {"yes": yes, "json": as_json}.items() if on]
    code = aws.run_uninterrupted("verify", "--report", str(report), *switches)
    if code not in (ExitCode.OK, 1):  # nothing was tried
        raise typer.Exit(code)
    question = f"Train {aws_job.RECIPE} on the cheapest GPU, for ${aws_job.CAP_USD} at most?"
    if job and (yes or typer.confirm(question, err=True)):
        with open_client(url) as client:
            ended = aws_job.train(client, lambda line: err.print(line, highlight=False))
            section = aws_job.render(ended, client.attempts(ended.id))
        with report.open("a") as file:
            file.write(section)
        code = code or (0 if aws_job.succeeded(ended) else 1)
    raise typer.Exit(code)


@app.command()
def wheelhouse(
    python: ImagePython = "3.12",
    image_packages: ImagePackages = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be uploaded.")] = False,
    as_json: Json = False,
) -> None:
    """Put the machines' Python environment into the bucket.

    It is the wheels of this installation, and PyTorch with CUDA. `bootstrap` does it too; do it again after an upgrade.
    Files that are there stay, and a run that was stopped goes on. It reads SHOESTRING_OBJECT_STORE, and prints the
    setting that makes machines install it.

    \b
    shoestring aws wheelhouse >> aws.env
    """
    _check_python(python)
    switches = {"image-packages": image_packages, "dry-run": dry_run, "json": as_json}
    raise typer.Exit(aws.run("wheelhouse", "--python", python, *[f"--{name}" for name, on in switches.items() if on]))


@app.command()
def down(as_json: Json = False) -> None:
    """End the machine that runs the service. Its volume and its address stay, and the next `up` uses them.

    \b
    shoestring aws down
    """
    raise typer.Exit(aws.run("down", *(["--json"] if as_json else [])))


@app.command()
def panic(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be ended.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    deployment: Annotated[str | None, typer.Option(help="Only what this deployment started. Default: all.")] = None,
    region: Annotated[
        list[str] | None, typer.Option(help="Only this region; may be repeated. Default: all enabled ones.")
    ] = None,
    as_json: Json = False,
) -> None:
    """End all machines that Shoestring has started, in all regions.

    Also their spot requests, volumes, network interfaces and addresses: everything with the tag `shoestring`, and
    nothing without it. It needs AWS credentials as boto3 finds them, and neither the service nor its database. Stop a
    service elsewhere first, or it starts new machines: that of `aws up` is ended too, unless --deployment names one;
    its volume and its address stay. Repeating it is safe. Exit code 1: something is left, or a region could not be
    asked.

    \b
    shoestring aws panic --dry-run
    shoestring aws panic
    AWS_PROFILE=lab shoestring aws panic --region us-east-1 --yes
    """
    named = [part for one in region or () for part in ("--region", one)]
    chosen = [] if deployment is None else ["--deployment", deployment]
    switches = [f"--{name}" for name, on in {"dry-run": dry_run, "yes": yes, "json": as_json}.items() if on]
    raise typer.Exit(aws.run("panic", *chosen, *named, *switches))


@app.command()
def teardown(yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False, as_json: Json = False) -> None:
    """Remove everything of Shoestring from the account.

    It lists everything first, including the bucket and all checkpoints, and asks.

    \b
    shoestring aws teardown
    """
    switches = [f"--{name}" for name, on in {"yes": yes, "json": as_json}.items() if on]
    raise typer.Exit(aws.run("teardown", *switches))


def _print_service(url: str) -> None:
    out.print(f"Service     {url}")
    out.print("            (its certificate signs itself: browsers ask once whether you trust it)")
    out.print("Dashboard   shoestring open")
    out.print("Try         shoestring submit digits/quickstart --watch")


def _check_report(report: Path) -> None:
    """Raise BadParameter unless the report can be written, before it costs money."""
    try:
        require_regular(report)
    except OSError as error:
        raise typer.BadParameter(f"can't write {report}: {error.strerror}", param_hint="--report") from error
    if not os.access(report if report.exists() else report.parent, os.W_OK):
        raise typer.BadParameter(f"can't write {report}; choose a path in a folder of yours", param_hint="--report")


def _check_image(image: str) -> None:
    if not re.fullmatch(r"ami-[0-9a-f]{8,17}", image):
        raise typer.BadParameter(f"{image} is not an image, such as ami-0123456789abcdef0")


def _check_python(version: str) -> None:
    if not re.fullmatch(r"3\.\d{1,2}", version):
        raise typer.BadParameter(f"{version} is not a version such as 3.12")
