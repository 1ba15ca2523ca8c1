# SPDX-License-Identifier: Apache-2.0
"""`shoestring aws verify`, its part that tries the rules of AWS on the smallest machines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from shoestring_core.exit_codes import ExitCode

from shoestring_worker.providers.ec2.account import verify
from shoestring_worker.providers.ec2.account.aws import Aws
from shoestring_worker.providers.ec2.account.ownership import bucket_name
from shoestring_worker.providers.ec2.account.terminal import confirmed, read_settings, report
from shoestring_worker.providers.ec2.account.verify_trial import TYPE


def run_verify(options: argparse.Namespace, account: Any) -> int:
    """The report goes to a file. Exit code 1: a rule does not hold, was not tried, or something is left."""
    with verify.interruptible():
        try:
            return _run(options, account)
        except KeyboardInterrupt:
            report("Interrupted. Nothing was launched.")
            return ExitCode.DETACHED


def _run(options: argparse.Namespace, account: Any) -> int:
    settings, aws = read_settings(), Aws(account.endpoint)
    number, region = aws.account(), next(iter(settings.regions))
    warning = (
        f"This launches {verify.MACHINES} spot machines ({TYPE}) in {region}, for ${verify.CAP_USD} at most, and ends "
        "them again."
    )
    if not (options.yes or confirmed(number, "to verify it", warning)):
        print("Nothing was launched.", file=sys.stderr)
        return ExitCode.USAGE
    result = verify.verify(aws, settings, bucket_name(number, region), report)
    Path(options.report).write_text(verify.render(result))
    if options.json:
        print(json.dumps(verify.as_json(result)))
    report(f"The report is in {options.report}.")
    return ExitCode.OK if result.holds else 1
