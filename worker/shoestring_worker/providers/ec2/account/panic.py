# SPDX-License-Identifier: Apache-2.0
"""End everything that is tagged as ours, in all regions of an account.

Regions are independent: one that doesn't answer, or where a permission is missing, keeps no other from being cleared.
Running it again is safe, and goes on with what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from shoestring_worker.providers.ec2.account.tagged import AT_ONCE, ENDED, KINDS, Kind, Tagged, list_tagged
from shoestring_worker.providers.ec2.errors import read_error

PATIENCE_S = 120.0
"""How long a region's machines may take to end, so that what they hold can be removed."""
POLL_S = 2.0
REGIONS_AT_ONCE = 16

OpenClient = Callable[[str], Any]
"""Open a client of EC2 in a region."""


@dataclass
class RegionResult:
    """What was found in a region, what of it is left, and what went wrong."""

    region: str
    found: list[Tagged] = field(default_factory=list)
    left: list[Tagged] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_regions(ec2: Any) -> list[str]:
    """The account's enabled regions. Raises ClientError and BotoCoreError."""
    return sorted(region["RegionName"] for region in ec2.describe_regions()["Regions"])


def find_everything(open_client: OpenClient, regions: Sequence[str], deployment: str | None) -> list[RegionResult]:
    """What there is, region by region; nothing is changed."""

    def look(region: str) -> RegionResult:
        result = RegionResult(region)
        with _problems_of(result):
            result.found = result.left = list_tagged(open_client(region), region, deployment)
        return result

    with ThreadPoolExecutor(REGIONS_AT_ONCE) as threads:
        return list(threads.map(look, regions))


def end_everything(
    open_client: OpenClient,
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
            ec2 = open_client(result.region)
            while True:
                result.problems.clear()
                for kind in KINDS:
                    _remove(ec2, kind, result, report)
                result.left = list_tagged(ec2, result.region, deployment)
                result.found = [*result.found, *(one for one in result.left if one.id not in _ids(result.found))]
                if not result.left or monotonic() >= until:
                    break
                sleep(POLL_S)
        return result

    with ThreadPoolExecutor(REGIONS_AT_ONCE) as threads:
        return list(threads.map(clear, found))


def _remove(ec2: Any, kind: Kind, result: RegionResult, report: Callable[[str], None]) -> None:
    """Remove what is left of a kind: together, and where EC2 refuses that, one by one."""
    ids = [one.id for one in result.left if one.kind == kind.name and one.state not in kind.busy]
    if ids:
        report(f"{result.region}: {kind.counted(len(ids))}")
    for begin in range(0, len(ids), AT_ONCE):
        some = ids[begin : begin + AT_ONCE]
        try:
            kind.remove(ec2, some)
        except ClientError:
            for id_ in some:
                try:
                    kind.remove(ec2, [id_])
                except ClientError as error:
                    code, message, _ = read_error(error.response)
                    if code not in ENDED:
                        result.problems.append(f"{kind.name} {id_}: {code}: {message}")


@contextmanager
def _problems_of(result: RegionResult) -> Iterator[None]:
    """A failure becomes a problem of the region."""
    try:
        yield
    except ClientError as error:
        code, message, _ = read_error(error.response)
        result.problems.append(f"{code}: {message}")
    except BotoCoreError as error:
        result.problems.append(str(error))


def _ids(things: Sequence[Tagged]) -> set[str]:
    return {one.id for one in things}
