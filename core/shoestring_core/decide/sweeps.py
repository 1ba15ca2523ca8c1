# SPDX-License-Identifier: Apache-2.0
"""Where a provider with regions is swept, and which leftovers in a region are deleted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from shoestring_core.decide.reconcile import ProviderMachine, carries_our_tags
from shoestring_core.decide.timeouts import S, Timeouts

IN_USE, CONFIGURED, ENABLED = 30 * S, 300 * S, 3_600 * S
"""How often a region is swept (µs): with machines of ours, one where they may be launched, any other of the account."""
SILENT = 8 * S
"""A machine that has not reported for this long may have ended; it reports at least every 5 s, once it has booted."""


@dataclass(frozen=True)
class Leftover:
    """What a machine leaves behind and nobody uses, or what may still launch one.

    machine     the provider's id of the machine that it is for; None: of none
    created_at  µs UTC; None: the provider doesn't tell
    hourly      what it costs, in dollars per hour as a decimal
    """

    kind: Literal["volume", "network_interface", "spot_request", "address", "placement_group"]
    provider: str
    region: str
    id: str
    tags: Mapping[str, str] = field(hash=False)
    machine: str | None = None
    created_at: int | None = None
    hourly: str = "0"


def due_regions(
    in_use: Mapping[str, bool],
    configured: Collection[str],
    enabled: Collection[str],
    swept_at: Mapping[str, int],
    now: int,
) -> dict[str, bool]:
    """The regions to list now; True: a sweep, that is with their leftovers.

    in_use    regions with machines of ours; True: one of them changes or may have ended: the region is listed at once
    swept_at  when each was swept last (µs UTC)
    """
    intervals = dict.fromkeys(enabled, ENABLED) | dict.fromkeys(configured, CONFIGURED) | dict.fromkeys(in_use, IN_USE)
    sweeps = {
        region: region not in swept_at or abs(now - swept_at[region]) >= interval
        for region, interval in intervals.items()
    }
    return {region: sweep for region, sweep in sweeps.items() if sweep or in_use.get(region)}


def stray_leftovers(
    found: Iterable[Leftover],
    machines: Iterable[ProviderMachine],
    stray_since: Mapping[str, int],
    provider: str,
    deployment: str,
    listed_at: int,
    timeouts: Timeouts,
) -> tuple[list[Leftover], dict[str, int]]:
    """Those to delete now, and since when each has been stray, by id. What isn't ours is left alone.

    machines     the region's list, requested at the same time; it may lack a fresh machine, and what belongs to it
                 looks stray until the provider's answers are consistent
    stray_since  as returned by the region's last sweep: nothing is deleted that was not stray then
    """
    alive = {machine.id: _attempt(machine.tags) for machine in machines if machine.state != "ended"}

    def is_used(one: Leftover) -> bool:
        of_attempt = one.kind == "placement_group" and _attempt(one.tags) in alive.values()
        return of_attempt or one.machine in alive

    stray = [one for one in found if carries_our_tags(one.tags, provider, deployment) and not is_used(one)]
    since = {one.id: stray_since.get(one.id, listed_at) for one in stray}
    window = timeouts.consistency_window
    due = [
        one
        for one in stray
        if one.id in stray_since and listed_at >= min(since[one.id], one.created_at or listed_at) + window
    ]
    return due, since


def _attempt(tags: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The job and its attempt that something is for."""
    return tags.get("job"), tags.get("attempt")
