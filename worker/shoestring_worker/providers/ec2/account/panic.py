# SPDX-License-Identifier: Apache-2.0
"""End all machines that are tagged as ours, and what they hold, in all regions of an account.

Regions are independent: one that doesn't answer, or where a permission is missing, keeps no other from being cleared.
Running it again is safe, and continues with what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from shoestring_worker.providers.ec2.account import inventory
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.inventory import Thing
from shoestring_worker.providers.ec2.account.removal import remove_all

PATIENCE_S = 120.0
"""How long a region's machines may take to end, so that what they hold can be removed."""
POLL_S = 2.0
REGIONS_AT_ONCE = 16


@dataclass
class RegionResult:
    """What was found in a region, what of it is left, and what went wrong."""

    region: str
    found: list[Thing] = field(default_factory=list)
    left: list[Thing] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_everything(aws: Aws, regions: Sequence[str], deployment: str | None) -> list[RegionResult]:
    """What there is, region by region; nothing is changed."""

    def look(region: str) -> RegionResult:
        result = RegionResult(region)
        with _problems_of(result):
            result.found = result.left = _list(aws, region, deployment)
        return result

    with ThreadPoolExecutor(REGIONS_AT_ONCE) as threads:
        return list(threads.map(look, regions))


def end_everything(
    aws: Aws,
    found: Sequence[RegionResult],
    deployment: str | None,
    report: Callable[[str], None],
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[RegionResult]:
    """End what was found, and what appears meanwhile. Regions that could not be listed are tried again."""

    def clear(region: RegionResult) -> RegionResult:
        if not region.found and not region.problems:
            return region
        result = RegionResult(region.region, region.found, region.left)
        until = monotonic() + PATIENCE_S
        with _problems_of(result):
            while True:
                result.problems = _end(aws, result, report)
                result.left = _list(aws, result.region, deployment)
                known = {thing.id for thing in result.found}
                result.found = [*result.found, *(thing for thing in result.left if thing.id not in known)]
                if all(thing.held_by for thing in result.left) or monotonic() >= until:
                    break
                sleep(POLL_S)
        result.problems += [f"{thing.kind} {thing.id}: {thing.held}" for thing in result.left if thing.held_by]
        return result

    with ThreadPoolExecutor(REGIONS_AT_ONCE) as threads:
        return list(threads.map(clear, found))


def _list(aws: Aws, region: str, deployment: str | None) -> list[Thing]:
    """In the order of removal: requests first, or they launch again; what machines hold last. Raises AwsError.

    Of all deployments also the machine that runs the service, which would launch again; its volume and address stay.
    """
    listed = [thing for list_ in inventory.OF_MACHINES for thing in list_(aws, region)]
    if deployment is not None:
        return [thing for thing in listed if thing.deployment == deployment]
    return [thing for thing in listed if thing.deployment or thing.kind == "machine"]


def _end(aws: Aws, result: RegionResult, report: Callable[[str], None]) -> list[str]:
    """End what is left; returns what went wrong."""
    things = [thing for thing in result.left if not thing.busy]
    if things:
        report(f"{result.region}: {inventory.count(things)}")
    return [f"{thing.kind} {thing.id}: {error}" for thing, error in remove_all(aws, things).items()]


@contextmanager
def _problems_of(result: RegionResult) -> Iterator[None]:
    """A failure becomes a problem of the region."""
    try:
        yield
    except AwsError as error:
        result.problems.append(str(error))
