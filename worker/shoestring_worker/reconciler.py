# SPDX-License-Identifier: Apache-2.0
"""Compares one provider's machines with our rows and resolves every difference."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from uuid import UUID

from shoestring_core import wording
from shoestring_core.decide.reconcile import (
    AbandonLaunch,
    Action,
    NotListed,
    PresumeTerminated,
    RecordObservation,
    Terminate,
    reconcile,
)
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import launches, observations, service_heartbeats

from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.steps import ItemRunner, write

log = logging.getLogger(__name__)


@dataclass
class Reconciler:
    """`deployment` is the value of the tag that our machines carry."""

    name: str
    provider: ManagedProvider
    store: Store
    deployment: str
    items: ItemRunner

    _not_listed_since: dict[UUID, int] = field(default_factory=dict)
    """When a machine that was listed before was first missing. In memory: a restart only prolongs the wait."""

    def reconcile(self, listed_at: int) -> None:
        """`listed_at`: a time before this call, by the database's clock (µs UTC)."""
        timeouts = self.provider.timeouts
        listed = self.provider.adapter.list(self.deployment)
        with self.store.read() as db:
            rows = observations.load_tracked_machines(db, self.name)
            leases = service_heartbeats.leases_enforced(db, listed_at, timeouts)
        rows = [replace(row, not_listed_since=self._not_listed_since.get(row.id)) for row in rows]
        actions = reconcile(rows, listed, self.name, self.deployment, listed_at, leases, timeouts)
        tokens = {machine.token for machine in listed}
        still_missing = {
            row.id: row.not_listed_since
            for row in rows
            if row.not_listed_since is not None and str(row.id) not in tokens
        }
        newly_missing = [action.machine for action in actions if isinstance(action, NotListed)]
        self._not_listed_since = still_missing | dict.fromkeys(newly_missing, listed_at)
        for action in actions:
            machine = action.ref.id if isinstance(action, Terminate) else action.machine
            self.items.run(f"{type(action).__name__} of {self.name} machine {machine}", self._apply, action, listed_at)

    def _apply(self, action: Action, listed_at: int) -> None:
        timeouts = self.provider.timeouts
        match action:
            case RecordObservation(machine, observed):
                write(self.store, observations.record_observation, machine, observed, timeouts)
            case AbandonLaunch(machine):
                write(self.store, launches.abandon_launch, machine, listed_at, timeouts)
            case PresumeTerminated(machine):
                write(self.store, observations.presume_terminated, machine)
            case Terminate(ref, None, reason):
                log.warning("%s: terminating machine %s: %s", self.name, ref.id, wording.sentence(reason))
                self.provider.adapter.terminate(ref)
            case Terminate(ref, UUID() as machine, reason):
                if write(self.store, observations.begin_termination, machine, reason, lease=action.lease_expired):
                    self.provider.adapter.terminate(ref)
