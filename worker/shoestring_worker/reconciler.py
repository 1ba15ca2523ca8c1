# SPDX-License-Identifier: Apache-2.0
"""Compares one provider's machines with our rows and resolves every difference.

A provider with regions is listed region by region, each when it is due, so that one that is silent hides no other. What
is ours there without a row is terminated or deleted, and counted as a leak.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from uuid import UUID

from shoestring_core import wording
from shoestring_core.decide.reconcile import (
    AbandonLaunch,
    Action,
    MachineRef,
    NotListed,
    PresumeTerminated,
    ProviderMachine,
    RecordObservation,
    Terminate,
    reconcile,
)
from shoestring_core.decide.sweeps import ENABLED, SILENT, Leftover, due_regions, stray_leftovers
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import launches, leaks, observations, service_heartbeats

from shoestring_worker.failpoints import around
from shoestring_worker.providers.base import ManagedProvider, RegionalProvider
from shoestring_worker.steps import ItemRunner, write

log = logging.getLogger(__name__)

CONCURRENT_REGIONS = 8
Listing = tuple[list[ProviderMachine], list[Leftover] | None]
"""Of a region: its machines, and its leftovers if it is swept."""


@dataclass
class Reconciler:
    """`deployment` is the value of the tag that our machines carry."""

    name: str
    provider: ManagedProvider
    store: Store
    deployment: str
    items: ItemRunner

    _not_listed_since: dict[UUID, int] = field(default_factory=dict)
    """When a machine that was listed before was first missing, until it is listed again. In memory: a restart only
    prolongs the wait."""

    _enabled_regions: Collection[str] = ()
    _enabled_at: int | None = None
    _swept_at: dict[str, int] = field(default_factory=dict)
    """When each region was swept last. In memory: a worker that starts sweeps all."""
    _stray_since: dict[str, dict[str, int]] = field(default_factory=dict)
    """By region and id: since when a leftover is stray."""

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(CONCURRENT_REGIONS, thread_name_prefix=f"regions-{self.name}")

    def reconcile(self, listed_at: int) -> None:
        """`listed_at`: a time before this call, by the database's clock (µs UTC)."""
        adapter = self.provider.adapter
        if isinstance(adapter, RegionalProvider):
            self._reconcile_regions(adapter, listed_at)
        else:
            self._resolve(around("list", lambda: adapter.list(self.deployment)), None, listed_at)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _reconcile_regions(self, adapter: RegionalProvider, listed_at: int) -> None:
        if self._enabled_at is None or abs(listed_at - self._enabled_at) >= ENABLED:
            self.items.run(f"the regions of {self.name}", self._find_regions, adapter, listed_at)
        with self.store.read() as db:
            # without the API no machine is heard of
            api_is_up = service_heartbeats.leases_enforced(db, listed_at, self.provider.timeouts)
            in_use = observations.load_regions_in_use(db, self.name, listed_at - SILENT if api_is_up else 0)
            leaking = leaks.load_open(db, self.name)
        expected = in_use | {region: in_use.get(region, False) for region in leaking}
        due = due_regions(expected, adapter.configured_regions, self._enabled_regions, self._swept_at, listed_at)
        calls = {
            self._threads.submit(self._list_region, adapter, region, sweep): region for region, sweep in due.items()
        }
        for call in as_completed(calls):
            region = calls[call]
            item = f"the machines of {self.name} in {region}"
            self.items.run(item, self._reconcile_region, adapter, region, call, listed_at)

    def _find_regions(self, adapter: RegionalProvider, asked_at: int) -> None:
        self._enabled_regions, self._enabled_at = around("enabled_regions", adapter.enabled_regions), asked_at

    def _list_region(self, adapter: RegionalProvider, region: str, sweep: bool) -> Listing:
        """Leftovers first: what the machines of the later list have is theirs."""
        leftovers = None
        if sweep:
            leftovers = around("list_leftovers", lambda: adapter.list_leftovers(self.deployment, region))
        return around("list_region", lambda: adapter.list_region(self.deployment, region)), leftovers

    def _reconcile_region(
        self, adapter: RegionalProvider, region: str, listing: Future[Listing], listed_at: int
    ) -> None:
        machines, leftovers = listing.result()
        self._resolve(machines, region, listed_at)
        present = [machine.id for machine in machines if machine.state != "ended"]
        write(self.store, leaks.end_leaks, self.name, region, ["machine"], present)
        if leftovers is None:
            return
        stray, self._stray_since[region] = stray_leftovers(
            leftovers, machines, self._stray_since.get(region, {}), self.name, self.deployment, listed_at,
            self.provider.timeouts,
        )  # fmt: skip
        for one in stray:
            self.items.run(f"stray {one.kind} {one.id} of {self.name}", self._delete, adapter, one, listed_at)
        ids = [one.id for one in leftovers]
        kinds = ["volume", "network_interface", "spot_request", "address"]
        write(self.store, leaks.end_leaks, self.name, region, kinds, ids)
        self._swept_at[region] = listed_at

    def _delete(self, adapter: RegionalProvider, stray: Leftover, listed_at: int) -> None:
        if stray.kind != "placement_group":  # it costs nothing, and each attempt leaves its own to the sweep
            self._record_leak(stray.region, stray.id, stray.kind, stray.hourly, stray.created_at or listed_at)
        around("delete", lambda: adapter.delete(stray))

    def _record_leak(self, region: str, id_: str, kind: str, hourly: str, since: int) -> None:
        if write(self.store, leaks.record_leak, self.name, region, id_, kind, hourly, since):
            log.error("%s: %s %s in %s is ours and no job has it: it is ended", self.name, kind, id_, region)

    def _resolve(self, listed: list[ProviderMachine], region: str | None, listed_at: int) -> None:
        """`listed`: the machines in a region, or all."""
        timeouts = self.provider.timeouts
        with self.store.read() as db:
            rows = observations.load_tracked_machines(db, self.name, region)
            leases = service_heartbeats.leases_enforced(db, listed_at, timeouts)
        rows = [replace(row, not_listed_since=self._not_listed_since.get(row.id)) for row in rows]
        actions = reconcile(rows, listed, self.name, self.deployment, listed_at, leases, timeouts)
        tokens = {machine.token for machine in listed}
        missing = {id_: at for id_, at in self._not_listed_since.items() if str(id_) not in tokens}
        newly_missing = [action.machine for action in actions if isinstance(action, NotListed)]
        self._not_listed_since = missing | dict.fromkeys(newly_missing, listed_at)
        by_ref = {machine.ref: machine for machine in listed}
        for action in actions:
            machine = action.ref.id if isinstance(action, Terminate) else action.machine
            item = f"{type(action).__name__} of {self.name} machine {machine}"
            self.items.run(item, self._apply, action, by_ref, listed_at)

    def _apply(self, action: Action, listed: Mapping[MachineRef, ProviderMachine], listed_at: int) -> None:
        timeouts = self.provider.timeouts
        match action:
            case RecordObservation(machine, observed):
                write(self.store, observations.record_observation, machine, observed, timeouts)
            case AbandonLaunch(machine):
                write(self.store, launches.abandon_launch, machine, listed_at, timeouts)
            case PresumeTerminated(machine):
                write(self.store, observations.presume_terminated, machine)
                del self._not_listed_since[machine]
            case Terminate(ref, None, reason):
                found = listed[ref]
                self._record_leak(found.region, found.id, "machine", found.rate_cap, found.launched_at)
                log.warning("%s: terminating machine %s: %s", self.name, ref.id, wording.sentence(reason))
                around("terminate", lambda: self.provider.adapter.terminate(ref))
            case Terminate(ref, UUID() as machine, reason):
                if write(self.store, observations.begin_termination, machine, reason, lease=action.lease_expired):
                    around("terminate", lambda: self.provider.adapter.terminate(ref))
