# SPDX-License-Identifier: Apache-2.0
"""What the commands of `shoestring aws` share: settings, progress on stderr, and the question before what costs."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

from pydantic import ValidationError

from shoestring_worker.providers.ec2 import settings
from shoestring_worker.providers.ec2.account.aws import Aws


class BadSettings(Exception):
    """SHOESTRING_EC2_… variables, or options, that are missing or wrong. `advice`: what to do."""

    advice = (
        "`shoestring aws bootstrap` prints SHOESTRING_EC2_REGIONS and the others: load them into this shell, and run "
        "this again. docs/aws.md explains them."
    )


def read_settings() -> settings.Ec2Settings:
    """Raises BadSettings."""
    try:
        return settings.read_settings()
    except ValueError as error:
        raise BadSettings(str(error).rstrip(".")) from error


def read_endpoint() -> str | None:
    """Raises BadSettings."""
    try:
        return settings.Ec2Endpoint().endpoint_url
    except ValidationError as error:
        wrong = BadSettings(f"SHOESTRING_EC2_ENDPOINT_URL: {error.errors()[0]['msg']}")
        wrong.advice = "Correct it; without it, AWS is asked."
        raise wrong from error


def require_regions(aws: Aws, regions: Iterable[str]) -> None:
    """Raises BadSettings for one that this account can't use, AwsError."""
    enabled = aws.enabled_regions()
    for region in regions:
        if region not in enabled:
            near = difflib.get_close_matches(region, enabled, n=1)
            error = BadSettings(f"{region} is no region that is enabled in this account")
            error.advice = (f"Did you mean {near[0]}? " if near else "") + f"There are: {', '.join(enabled)}."
            raise error


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def confirmed(account: str, what: str, warning: str) -> bool:
    """Whether somebody at the terminal types the account's number. `what`: such as "to end them"."""
    if not sys.stdin.isatty():
        report(f"Error: there is no terminal to ask. {what.capitalize()}, repeat it with --yes.")
        return False
    report(warning)
    report(f"Type the account's number {what} ({account}): ")
    return sys.stdin.readline().strip() == account
