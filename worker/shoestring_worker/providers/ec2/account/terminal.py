# SPDX-License-Identifier: Apache-2.0
"""What the commands of `shoestring aws` share: settings, progress on stderr, and the question before what costs."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from shoestring_worker.providers.ec2.settings import Ec2Settings


class BadSettings(Exception):
    """SHOESTRING_EC2_… variables that are missing or wrong."""

    advice = (
        "`shoestring aws bootstrap` prints SHOESTRING_EC2_REGIONS and the others: load them into this shell, and run "
        "this again. docs/aws.md explains them."
    )


def read_settings() -> Ec2Settings:
    """Raises BadSettings."""
    try:
        return Ec2Settings()
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise BadSettings(f"SHOESTRING_EC2_…: {problems}") from error


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
