# SPDX-License-Identifier: Apache-2.0
"""Our machine rows beside what the provider really runs: what to write down, what to end, what to give up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from shoestring_core.decide.timeouts import Terms
from shoestring_core.states import MachineState

DEPLOYMENT_TAG = "shoestring"
"""The tag that every machine of ours is born with; its value tells this deployment from others."""


@dataclass(frozen=True)
class Seen:
    """A machine as its provider shows it. Times are µs UTC by the provider's clock; `token` is our machine's id."""

    provider: str
    region: str
    id: str
    token: str
    tags: dict[str, str]
    state: Literal["pending", "running", "stopping", "ended"]
    launched_at: int
    ended_at: int | None = None
    end_cause: str | None = None


@dataclass(frozen=True)
class Row:
    """A machine as we have it. `wanted`: its attempt is open and its job runs; else unwanted since `unwanted_since`.

    refused       the provider refused for good, but an earlier call's outcome is unknown
    missed_since  sweeps have not found it since then, though it was seen before (µs UTC)
    """

    id: UUID
    provider: str
    region: str
    state: MachineState
    provider_id: str | None
    wanted: bool
    unwanted_since: int
    refused: bool
    redeemed: bool
    call_by: int
    alive_until: int | None
    funded_until: int | None
    missed_since: int | None = None


@dataclass(frozen=True)
class Record:
    """Write down what the provider says."""

    machine: UUID
    seen: Seen


@dataclass(frozen=True)
class Void:
    """No machine was ever bought for this row: give its money back."""

    machine: UUID
    reason: str


@dataclass(frozen=True)
class End:
    """End a machine through the provider. `machine` is None where no row wants it or knows it.

    lease  the reason is its expired lease, which a report may have renewed in the meantime
    """

    provider_id: str
    machine: UUID | None
    reason: str
    lease: bool = False


@dataclass(frozen=True)
class Infer:
    """The provider has forgotten a machine that it once showed: it is gone, when exactly nobody knows."""

    machine: UUID


@dataclass(frozen=True)
class Missed:
    """Seen before, not found now: look again before concluding anything."""

    machine: UUID


Action = Record | Void | End | Infer | Missed


def reconcile(
    rows: Iterable[Row], seen: Iterable[Seen], deployment: str, listed_at: int, leases_count: bool, terms: Terms
) -> list[Action]:
    """What to do about every difference.

    seen          the provider's list, asked for at `listed_at` (µs UTC), before the rows were read: each machine in it
                  that carries our tag has a row, if it ever had one
    leases_count  the API has answered without a break for one lease length: silence is the machine's, not ours
    """
    listed = list(seen)
    by_token, by_id = {one.token: one for one in listed}, {(one.region, one.id): one for one in listed}
    actions: list[Action] = []
    known: set[str] = set()
    for row in rows:
        one = by_token.get(str(row.id)) or by_id.get((row.region, row.provider_id or ""))
        if one is not None:
            known.add(one.id)
        actions += _about(row, one, listed_at, leases_count, terms)
    for one in listed:
        ours = one.tags.get(DEPLOYMENT_TAG) == deployment
        if ours and one.id not in known and one.state in ("pending", "running"):
            actions.append(End(one.id, None, "no row wants it"))
    return actions


def _about(row: Row, one: Seen | None, listed_at: int, leases_count: bool, terms: Terms) -> list[Action]:
    if one is None:
        return _absent(row, listed_at, terms)
    actions: list[Action] = []
    if _is_news(row, one):
        actions.append(Record(row.id, one))
    if one.state != "ended" and (reason := _reason_to_end(row, listed_at, leases_count, terms)):
        actions.append(End(one.id, row.id, reason, lease=reason == _SILENT))
    return actions


def _is_news(row: Row, one: Seen) -> bool:
    if one.state == "ended" or row.provider_id is None or row.state in (MachineState.PLANNED, MachineState.CALLING):
        return True
    return one.state == "stopping" and row.state is MachineState.UP


_SILENT = "it has been silent for too long"


def _reason_to_end(row: Row, now: int, leases_count: bool, terms: Terms) -> str | None:
    if row.state is MachineState.ENDING:
        return "it was told to end"
    if not row.wanted and (not row.redeemed or now >= row.unwanted_since + terms.patience):
        return "its job does not want it any more"
    if row.funded_until is not None and now >= row.funded_until:
        return "its funding has ended"
    if leases_count and row.alive_until is not None and now > row.alive_until:
        return _SILENT
    return None


def _absent(row: Row, listed_at: int, terms: Terms) -> list[Action]:
    if row.state is MachineState.PLANNED:
        return [] if row.wanted else [Void(row.id, "not wanted any more")]
    if row.state is MachineState.CALLING:
        # What was asked for may still appear, until the call is over and the provider can't be hiding it any more.
        over = listed_at >= row.call_by + terms.consistency
        if over and (row.refused or not row.wanted):
            return [Void(row.id, "refused" if row.refused else "not wanted any more")]
        return []
    if row.missed_since is None:
        return [Missed(row.id)]
    return [Infer(row.id)] if listed_at >= row.missed_since + terms.inferred else []
