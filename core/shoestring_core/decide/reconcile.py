# SPDX-License-Identifier: Apache-2.0
"""Compare the machine rows of one provider with the machines that it lists: what to record, terminate and give up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from shoestring_core.decide.billing import CLOCK_STEP, PriceChange
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.states import MachineState
from shoestring_core.wording import Reason, machines

DEPLOYMENT_TAG = "shoestring"
"""The tag on every machine that we launch; its value identifies the deployment."""

PROVIDER_TAG = "provider"
"""The tag with the provider's name: two providers of a deployment may share one account, so that each lists all."""


@dataclass(frozen=True)
class MachineRef:
    """A machine, as its provider identifies it."""

    region: str
    id: str


@dataclass(frozen=True)
class ProviderMachine:
    """A machine as its provider describes it. Times are µs UTC by the provider's clock; `token` is our machine id.

    end_cause    requested | preempted | exited | crashed; or a RefusalKind: refused after all, while it was launching;
                 also of one that is stopping, if the provider reports it already
    clock_shift  how far the computer's clock was set forward since the launch (negative: back), in µs; 0 unless the
                 provider's clock is tied to it
    ended_at     when it began to end, if the provider reports it
    price_changes  decide.billing.Evidence.price_changes, as far as they are known
    rate_cap     dollars per hour that it never exceeds; "0": not known
    image        id of the image that it boots; "": not known
    rests        stopped by its owner: it ends no further by itself, and its disk costs
    """

    provider: str
    region: str
    id: str
    token: str
    tags: dict[str, str]
    state: Literal["pending", "running", "stopping", "ended"]
    launched_at: int
    ended_at: int | None = None
    end_cause: str | None = None
    clock_shift: int = 0
    price_changes: tuple[PriceChange, ...] = ()
    rate_cap: str = "0"
    image: str = ""
    rests: bool = False

    @property
    def ref(self) -> MachineRef:
        return MachineRef(self.region, self.id)


@dataclass(frozen=True)
class TrackedMachine:
    """A machine as our row has it. `wanted`: its attempt is open and its job runs; else unwanted since then (µs UTC).

    provider_id       its provider's id of it; None: it was never listed, and is planned or launching
    refused           the provider refused to launch it, but the outcome of an earlier call is unknown
    clock_shift       the last that we recorded of ProviderMachine.clock_shift
    priced_until      the time of the last that we recorded of ProviderMachine.price_changes
    left_until        decide.billing.free_if_left_until; None: it has no notice, or is wanted
    save_time         how long its job takes to save its work, by its newest checkpoint, if the job is stopping (µs)
    not_listed_since  the provider has omitted it since then, though it listed it before (µs UTC)
    """

    id: UUID
    region: str
    state: MachineState
    provider_id: str | None
    wanted: bool
    unwanted_since: int
    refused: bool
    registered: bool
    call_deadline: int
    alive_until: int | None
    funded_until: int | None
    clock_shift: int = 0
    priced_until: int = 0
    left_until: int | None = None
    save_time: int = 0
    not_listed_since: int | None = None


@dataclass(frozen=True)
class RecordObservation:
    """Record what the provider reports about a machine."""

    machine: UUID
    observed: ProviderMachine


@dataclass(frozen=True)
class AbandonLaunch:
    """No machine was ever launched for this row: release its hold."""

    machine: UUID


@dataclass(frozen=True)
class Terminate:
    """Terminate a machine through the provider. `machine` is None if no row wants it or knows it.

    lease_expired  the reason is its expired lease, which a report may have renewed in the meantime
    """

    ref: MachineRef
    machine: UUID | None
    reason: Reason

    @property
    def lease_expired(self) -> bool:
        return isinstance(self.reason, machines.LeaseExpired)


@dataclass(frozen=True)
class PresumeTerminated:
    """The provider has omitted a machine that it once listed for too long: it has terminated, at an unknown time."""

    machine: UUID


@dataclass(frozen=True)
class NotListed:
    """The provider omits a machine that it listed before: list again before concluding anything."""

    machine: UUID


Action = RecordObservation | AbandonLaunch | Terminate | PresumeTerminated | NotListed


def reconcile(
    rows: Iterable[TrackedMachine],
    listed: Iterable[ProviderMachine],
    provider: str,
    deployment: str,
    listed_at: int,
    leases_enforced: bool,
    timeouts: Timeouts,
) -> list[Action]:
    """The action for every difference. Machines of other deployments and providers are left alone.

    rows             those of the provider alone
    listed           the provider's list, requested at `listed_at` (µs UTC), before the rows were read: each machine in
                     it that carries our tag has a row, if it ever had one
    leases_enforced  the API has been up without a break for one lease: a machine without reports is silent itself
    """
    ours = [machine for machine in listed if _is_ours(machine, provider, deployment)]
    by_token = {machine.token: machine for machine in ours}
    by_ref = {machine.ref: machine for machine in ours}
    actions: list[Action] = []
    tracked: set[MachineRef] = set()
    for row in rows:
        machine = by_token.get(str(row.id)) or by_ref.get(MachineRef(row.region, row.provider_id or ""))
        if machine is not None:
            tracked.add(machine.ref)
        actions += _actions_for(row, machine, listed_at, leases_enforced, timeouts)
    for machine in ours:
        if machine.ref not in tracked and (machine.state in ("pending", "running") or machine.rests):
            actions.append(Terminate(machine.ref, None, machines.Untracked()))
    return actions


def carries_our_tags(tags: Mapping[str, str], provider: str, deployment: str) -> bool:
    """Whether this deployment made what has these tags, through this provider."""
    return tags.get(PROVIDER_TAG, provider) == provider and tags.get(DEPLOYMENT_TAG) == deployment


def _is_ours(machine: ProviderMachine, provider: str, deployment: str) -> bool:
    return machine.provider == provider and carries_our_tags(machine.tags, provider, deployment)


def _actions_for(
    row: TrackedMachine, machine: ProviderMachine | None, listed_at: int, leases_enforced: bool, timeouts: Timeouts
) -> list[Action]:
    if machine is None:
        return _if_not_listed(row, listed_at, timeouts)
    actions: list[Action] = []
    if _has_changed(row, machine):
        actions.append(RecordObservation(row.id, machine))
    if machine.state == "ended" or _clock_was_set(row, machine):  # leases are renewed first
        return actions
    if reason := _reason_to_terminate(row, listed_at, leases_enforced, timeouts):
        actions.append(Terminate(machine.ref, row.id, reason))
    return actions


def _has_changed(row: TrackedMachine, machine: ProviderMachine) -> bool:
    if machine.state in ("pending", "ended") or row.provider_id is None:
        return True
    if machine.price_changes and machine.price_changes[-1][0] > row.priced_until:
        return True
    return _clock_was_set(row, machine) or (machine.state == "stopping" and row.state is MachineState.RUNNING)


def _clock_was_set(row: TrackedMachine, machine: ProviderMachine) -> bool:
    """Whether the computer's clock was set since the machine was observed: stored times are off by as much."""
    return abs(machine.clock_shift - row.clock_shift) >= CLOCK_STEP


def _reason_to_terminate(row: TrackedMachine, now: int, leases_enforced: bool, timeouts: Timeouts) -> Reason | None:
    if row.state is MachineState.TERMINATING:
        return machines.TerminationRequested()
    if not row.wanted and row.left_until is not None and now < min(row.left_until, row.unwanted_since + timeouts.drain):
        return machines.FundingExpired() if row.funded_until is not None and now >= row.funded_until else None
    window = timeouts.self_exit_window + row.save_time  # however long that is, no longer than it is funded
    if not row.wanted and (not row.registered or now >= row.unwanted_since + window):
        return machines.NotNeeded()
    if row.funded_until is not None and now >= row.funded_until:
        return machines.FundingExpired()
    if leases_enforced and row.alive_until is not None and now > row.alive_until:
        return machines.LeaseExpired()
    return None


def _if_not_listed(row: TrackedMachine, listed_at: int, timeouts: Timeouts) -> list[Action]:
    if row.state is MachineState.PLANNED:
        return [] if row.wanted else [AbandonLaunch(row.id)]
    if row.state is MachineState.LAUNCHING:
        # The machine may still appear until the call is over and the provider's list is consistent.
        settled = listed_at >= row.call_deadline + timeouts.consistency_window
        return [AbandonLaunch(row.id)] if settled and (row.refused or not row.wanted) else []
    if row.not_listed_since is None:
        return [NotListed(row.id)]
    # one that reports runs, though somebody may have removed its tags: it ends with its job, or with its funding
    reports = row.wanted and row.alive_until is not None and listed_at < row.alive_until
    presumed = listed_at >= row.not_listed_since + timeouts.presumed_terminated_after
    return [PresumeTerminated(row.id)] if presumed and not reports else []
