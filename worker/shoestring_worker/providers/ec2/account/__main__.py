# SPDX-License-Identifier: Apache-2.0
"""`python -m shoestring_worker.providers.ec2.account COMMAND`, which `shoestring aws COMMAND` runs."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from botocore.config import Config
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG
from shoestring_core.exit_codes import ExitCode
from shoestring_core.wording.units import counted

from shoestring_worker.providers.ec2.account import bootstrap, service_launch, teardown, wheels
from shoestring_worker.providers.ec2.account.aws import HOMES, Aws, AwsError, open_session
from shoestring_worker.providers.ec2.account.data_role import DATA_ROLE
from shoestring_worker.providers.ec2.account.doctor import (
    Finding,
    check_agent_url,
    check_bucket,
    check_data_role,
    check_region,
    check_spot_role,
    find_home,
)
from shoestring_worker.providers.ec2.account.doctor_wheelhouse import check_wheelhouse
from shoestring_worker.providers.ec2.account.inventory import count
from shoestring_worker.providers.ec2.account.ownership import bucket_name, object_store
from shoestring_worker.providers.ec2.account.panic import RegionResult, end_everything, find_everything
from shoestring_worker.providers.ec2.account.service import ServiceInAccount
from shoestring_worker.providers.ec2.account.service_launch import Wanted
from shoestring_worker.providers.ec2.account.terminal import (
    BadSettings,
    confirmed,
    read_endpoint,
    read_settings,
    report,
    require_regions,
)
from shoestring_worker.providers.ec2.account.verify_command import run_verify
from shoestring_worker.providers.ec2.account.wheelhouse import PYTHON, Place, WheelhouseMaker
from shoestring_worker.providers.ec2.account.wheels import WheelsMissing

HOME = "us-east-1"
"""Where the account's regions are asked for, if the user's AWS configuration names no region."""
WHEELHOUSE_SIZE = "about 3 GB"
END = ("to end all of this", "Jobs on these machines lose what they have not saved. This can't be undone.")
CONFIG = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 5, "mode": "standard"})
"""Each call may be repeated: removing something twice removes it once."""


class Account:
    """Clients by the credentials that boto3 finds."""

    def __init__(self) -> None:
        self._session, self.endpoint = open_session(), read_endpoint()
        self.home = self._session.region_name or HOME

    def open_client(self, service: str, region: str) -> Any:
        return self._session.client(service, region_name=region, endpoint_url=self.endpoint, config=CONFIG)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options, Account())
    except AwsError as error:
        print(f"Error: {error}", file=sys.stderr)
        return ExitCode.AUTH if error.code else ExitCode.NETWORK
    except BadSettings as error:
        print(f"Error: {error}. {error.advice}", file=sys.stderr)
        return ExitCode.USAGE
    except WheelsMissing as error:
        print(f"Error: {error}. What was uploaded stays; run this again.", file=sys.stderr)
        return ExitCode.NETWORK
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shoestring aws")
    commands = parser.add_subparsers(required=True)
    doctor = commands.add_parser("doctor")
    doctor.set_defaults(run=run_doctor)
    panic = commands.add_parser("panic")
    panic.set_defaults(run=run_panic)
    panic.add_argument("--deployment")
    panic.add_argument("--region", action="append")
    for switch in ("--dry-run", "--yes"):
        panic.add_argument(switch, action="store_true")
    made = commands.add_parser("bootstrap")
    made.set_defaults(run=run_bootstrap)
    made.add_argument("--region", action="append")
    made.add_argument("--dry-run", action="store_true")
    for name, default in (("--email", None), ("--monthly", "50"), ("--image", "")):
        made.add_argument(name, default=default)
    wheels_made = commands.add_parser("wheelhouse")
    wheels_made.set_defaults(run=run_wheelhouse)
    wheels_made.add_argument("--python", default=PYTHON)
    for switch in ("--image-packages", "--dry-run"):
        wheels_made.add_argument(switch, action="store_true")
    started = commands.add_parser("up")
    started.set_defaults(run=run_up)
    for name, default in (("--budget", ""), ("--image", "")):
        started.add_argument(name, default=default)
    started.add_argument("--python", default=PYTHON)
    started.add_argument("--image-packages", action="store_true")
    started.add_argument("--port", type=int, default=service_launch.PORT)
    stopped = commands.add_parser("down")
    stopped.set_defaults(run=run_down)
    removed = commands.add_parser("teardown")
    removed.set_defaults(run=run_teardown)
    removed.add_argument("--yes", action="store_true")
    verified = commands.add_parser("verify")
    verified.set_defaults(run=run_verify)
    verified.add_argument("--report", required=True)
    verified.add_argument("--yes", action="store_true")
    for command in (doctor, panic, made, wheels_made, started, stopped, removed, verified):
        command.add_argument("--json", action="store_true")
    return parser


def run_doctor(options: argparse.Namespace, account: Account) -> int:
    """Exit code 1: a check failed."""
    settings, wrong = None, []
    try:
        settings = read_settings()
    except BadSettings as error:
        wrong = [Finding("error", "settings", str(error), error.advice)]
    regions = (account.home, *HOMES, *(settings.regions if settings else ()))
    home, findings = find_home(account.open_client, regions, lambda: datetime.now(UTC))
    asked = home is not None and all(finding.level != "error" for finding in findings)
    findings += wrong
    if settings:
        url = os.environ.get("SHOESTRING_AGENT_URL", "http://127.0.0.1:8000" if settings.simulated else "")
        findings.append(check_agent_url(url, simulated=settings.simulated))
        if home and asked:
            store = os.environ.get("SHOESTRING_OBJECT_STORE", "")
            findings.append(check_spot_role(account.open_client, home))
            findings += check_bucket(account.open_client, home, store, settings.regions)
            findings.append(check_wheelhouse(account.open_client, home, store, settings.wheelhouse))
            findings += check_data_role(account.open_client, home, settings.data_role)
            for region in settings.regions:
                findings += check_region(account.open_client, settings, region)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{finding.level:8} {finding.subject:14} {finding.text}")
            if finding.advice:
                print(f"{'':24}{finding.advice}")
    return 1 if any(finding.level == "error" for finding in findings) else ExitCode.OK


def run_panic(options: argparse.Namespace, account: Account) -> int:
    """Exit code 1: something is left, or a region could not be asked."""
    aws = Aws(account.endpoint)
    require_regions(aws, options.region or ())
    number, regions = aws.account(), options.region or aws.enabled_regions()
    found = find_everything(aws, regions, options.deployment)
    what = f"tagged `{DEPLOYMENT_TAG}`" + (f" of deployment {options.deployment}" if options.deployment else "")
    if not options.json:
        print_found(found, f"Account {number}, {counted(len(regions), 'region')}: {{}} {what}.")
    if options.dry_run or not any(region.found or region.problems for region in found):
        return finish(options, number, found)
    if not (options.yes or confirmed(number, *END)):
        print("Nothing was changed.", file=sys.stderr)
        return ExitCode.USAGE
    out = sys.stderr if options.json else sys.stdout
    ended = end_everything(
        aws, found, options.deployment, lambda line: print(f"Ending in {line}", file=out, flush=True)
    )
    return finish(options, number, ended)


def run_bootstrap(options: argparse.Namespace, account: Account) -> int:
    """The environment of the service goes to stdout, what was done to stderr."""
    regions = tuple(dict.fromkeys(options.region or [HOME]))
    role = os.environ.get(DATA_ROLE, "")
    wanted = bootstrap.Wanted(regions, options.email, options.monthly, options.image, options.dry_run, role)
    aws, home = Aws(account.endpoint), regions[0]
    require_regions(aws, regions)
    made = bootstrap.bootstrap(aws, wanted, report)
    wheelhouse = ""
    if options.dry_run and not options.image:
        report(f"to create wheelhouse of the machines' Python environment in {made.bucket}, {WHEELHOUSE_SIZE}")
    elif not options.image:
        place = Place.read(home, object_store(made.bucket))
        wheelhouse = WheelhouseMaker(aws, place, report, wheels.OF_MACHINES).make().name
    if options.json:
        print(json.dumps(asdict(made) | {"wheelhouse": wheelhouse}))
    elif options.dry_run:
        for of_whom, policy in made.policies.items():
            print(f"IAM policy for {of_whom}, to review and attach:\n{json.dumps(policy, indent=2)}")
        report(f"{counted(made.created, 'step')} to be done. Nothing was changed.")
    else:
        for name, value in bootstrap.environment(made, wheelhouse).items():
            print(f"export {name}={shlex.quote(value)}")
    return ExitCode.OK


def run_wheelhouse(options: argparse.Namespace, account: Account) -> int:
    """The setting goes to stdout, what was done to stderr."""
    aws = Aws(account.endpoint)
    location = os.environ.get("SHOESTRING_OBJECT_STORE") or object_store(bucket_name(aws.account(), account.home))
    try:
        place = Place.read(account.home, location)
    except ValueError as error:
        raise BadSettings(str(error)) from error
    made = WheelhouseMaker(
        aws, place, report, wheels.OF_MACHINES,
        python=options.python, from_image=options.image_packages, dry_run=options.dry_run,
    ).make()  # fmt: skip
    if options.json:
        print(json.dumps(asdict(made)))
    elif options.dry_run:
        report(f"{counted(made.created, 'step')} to be done. Nothing was changed.")
    else:
        print(f"export SHOESTRING_EC2_WHEELHOUSE={made.name}")
    return ExitCode.OK


def run_up(options: argparse.Namespace, account: Account) -> int:
    """How to reach the service goes to stdout, for the command line that started this; what was done to stderr."""
    wanted = Wanted(
        read_settings(), os.environ, options.budget, options.image, options.python,
        has_ours=bool(options.image) and not options.image_packages, from_image=options.image_packages,
        port=options.port,
    )  # fmt: skip
    print(ServiceInAccount(Aws(account.endpoint), wanted, report).up().model_dump_json())
    return ExitCode.OK


def run_down(options: argparse.Namespace, account: Account) -> int:
    ended = ServiceInAccount(Aws(account.endpoint), Wanted(read_settings(), os.environ), report).down()
    if options.json:
        print(json.dumps({"ended": ended}))
    return ExitCode.OK


def run_teardown(options: argparse.Namespace, account: Account) -> int:
    """Exit code 1: something is left."""
    aws = Aws(account.endpoint)
    found = teardown.find(aws)
    things = found.things
    report(f"Account {aws.account()}: {len(things) or 'nothing'} of ours.")
    for thing in things:
        report(f"  {thing}")
    for what, why in found.unlisted.items():
        report(f"  stays: {what}: {why}")
    if things and not (options.yes or confirmed(aws.account(), *END)):
        print("Nothing was changed.", file=sys.stderr)
        return ExitCode.USAGE
    failed = teardown.teardown(aws, things, report) | found.unlisted
    if options.json:
        print(json.dumps({"removed": [asdict(one) for one in things if str(one) not in failed], "problems": failed}))
    for thing_left, why in failed.items():
        report(f"Error: left: {thing_left}: {why}")
    return 1 if failed else ExitCode.OK


def finish(options: argparse.Namespace, account: str, results: Sequence[RegionResult]) -> int:
    left = [one for region in results for one in region.left]
    problems = [f"{region.region}: {problem}" for region in results for problem in region.problems]
    if options.json:
        ended = [one for region in results for one in region.found if one not in region.left]
        listed = {"ended": list(map(asdict, ended)), "left": list(map(asdict, left))}
        print(json.dumps({"account": account, "regions": [region.region for region in results], **listed,
                          "problems": problems}))  # fmt: skip
    elif not options.dry_run:
        print(f"Left: {count(left)}. Run it again." if left else "Nothing is left.")
    for problem in problems:
        print(f"Error: {problem}", file=sys.stderr)
    return 1 if problems or (left and not options.dry_run) else ExitCode.OK


def print_found(found: Sequence[RegionResult], heading: str) -> None:
    print(heading.format(count([one for region in found for one in region.found])))
    for region in found:
        for one in region.found:
            print(f"  {one.region:15} {one.kind:13} {one.id:22} {one.detail} {one.state}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
