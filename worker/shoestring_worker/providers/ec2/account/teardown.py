# SPDX-License-Identifier: Apache-2.0
"""Remove everything of ours from an account: machines of all deployments, their data, and what `bootstrap` made."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shoestring_worker.providers.ec2.account import inventory
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.inventory import Thing
from shoestring_worker.providers.ec2.account.removal import remove_all
from shoestring_worker.providers.ec2.account.service_role import list_service_role

REGIONAL = (*inventory.OF_MACHINES, inventory.images, inventory.network)
END_S, PAUSE_S = 300.0, 5.0
"""How long machines may take to end, before what they use is removed, and how often they are asked for."""
FREE_S = 60.0
"""How long what machines used may stay in use after they have ended."""
IN_USE = {
    "VolumeInUse", "IncorrectState", "InvalidNetworkInterface.InUse", "InvalidIPAddress.InUse",
    "InvalidPlacementGroup.InUse", "DependencyViolation",
}  # fmt: skip
REGIONS_AT_ONCE = 16


@dataclass(frozen=True)
class Found:
    """
    things    in the order in which they can be removed
    unlisted  what isn't among them: regions that could not be listed, and what stays because of that, with the reason
    """

    things: list[Thing]
    unlisted: dict[str, str]


def find(aws: Aws) -> Found:
    """All of it. Raises AwsError.

    A region that refuses hides no other. While one doesn't answer, what is of the account stays: something of ours may
    run there, which the bucket, the alarm and the role are for.
    """
    regions = aws.enabled_regions()

    def look(region: str) -> list[Thing] | AwsError:
        try:
            return [thing for list_ in REGIONAL for thing in list_(aws, region)]
        except AwsError as error:
            return error

    with ThreadPoolExecutor(REGIONS_AT_ONCE) as threads:
        lists = dict(zip(regions, threads.map(look, regions), strict=True))
    failed = {region: found for region, found in lists.items() if isinstance(found, AwsError)}
    if len(failed) == len(regions):
        raise next(iter(failed.values()))
    things = [thing for found in lists.values() if not isinstance(found, AwsError) for thing in found]
    unlisted = {f"all in {region}": f"it can't be listed: {error}" for region, error in failed.items()}
    of_account = [*inventory.of_account(aws), *list_service_role(aws)]
    if silent := [region for region, error in failed.items() if error.is_silence]:
        why = f"it stays until {', '.join(silent)} can be listed. Run this again then."
        return Found(things, unlisted | {str(thing): why for thing in of_account})
    return Found([*things, *of_account], unlisted)


def teardown(
    aws: Aws,
    things: list[Thing],
    report: Callable[[str], None],
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, str]:
    """Remove them; returns what could not be, with the reason. Run again, it continues from there."""
    machines = [thing for thing in things if thing.kind in ("spot request", "machine")]
    failed = _remove(aws, [thing for thing in machines if not thing.busy], report)
    deadline, regions = monotonic() + END_S, {thing.region for thing in machines}
    while any(_has_machines(aws, region) for region in sorted(regions)):
        if monotonic() > deadline:
            return failed | {"machines": f"They have not ended within {END_S:.0f} s. Run this again in some minutes."}
        sleep(PAUSE_S)
    rest, deadline = [thing for thing in things if thing not in machines], monotonic() + FREE_S

    def wait() -> bool:
        sleep(PAUSE_S)
        return monotonic() < deadline

    return failed | _remove(aws, rest, report, wait)


def _remove(
    aws: Aws, things: list[Thing], report: Callable[[str], None], wait: Callable[[], bool] = lambda: False
) -> dict[str, str]:
    """`wait`: for what is still in use; whether to try it again then."""
    failed = {}
    for thing in things:
        if thing.held_by:
            failed[str(thing)] = thing.held
            continue
        error = remove_all(aws, [thing]).get(thing)
        while error is not None and error.code in IN_USE and wait():
            error = remove_all(aws, [thing]).get(thing)
        if error is None:
            report(f"removed {thing}")
            continue
        in_use = " Something that isn't ours uses it." if error.code == "DependencyViolation" else ""
        failed[str(thing)] = f"{error}{in_use}"
    return failed


def _has_machines(aws: Aws, region: str) -> bool:
    """Raises AwsError."""
    return any(thing.kind == "machine" for thing in inventory.machines(aws, region))
