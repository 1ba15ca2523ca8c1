# SPDX-License-Identifier: Apache-2.0
"""Compares the provider's machines with our rows and resolves every difference."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from uuid import UUID

from shoestring_core.decide.reconcile import (
    AbandonLaunch,
    Action,
    NotListed,
    PresumeTerminated,
    RecordObservation,
    Terminate,
    reconcile,
)
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import heartbeats, launches, observations

from shoestring_worker.providers.base import Provider
from shoestring_worker.steps import ItemRunner, write

log = logging.getLogger(__name__)


@dataclass
class Reconciler:
    """`deployment` is the value of the tag that our machines carry."""

    store: Store
    provider: Provider
    timeouts: Timeouts
    deployment: str
    items: ItemRunner

    _not_listed_since: dict[UUID, int] = field(default_factory=dict)
    """When a machine that was listed before was first missing. In memory: a restart only prolongs the wait."""

    def reconcile(self) -> None:
        with self.store.read() as db:
            listed_at = db.now
        listed = self.provider.list()
        with self.store.read() as db:
            rows, leases = observations.load_tracked_machines(db), heartbeats.leases_enforced(db, self.timeouts)
        rows = [replace(row, not_listed_since=self._not_listed_since.get(row.id)) for row in rows]
        actions = reconcile(rows, listed, self.deployment, listed_at, leases, self.timeouts)
        tokens = {machine.token for machine in listed}
        still_missing = {
            row.id: row.not_listed_since
            for row in rows
            if row.not_listed_since is not None and str(row.id) not in tokens
        }
        newly_missing = [action.machine for action in actions if isinstance(action, NotListed)]
        self._not_listed_since = still_missing | dict.fromkeys(newly_missing, listed_at)
        for action in actions:
            what = action.provider_id if isinstance(action, Terminate) else action.machine
            self.items.run(f"machine {what}", self._apply, action, listed_at)

    def _apply(self, action: Action, listed_at: int) -> None:
        match action:
            case RecordObservation(machine, observed):
                write(self.store, observations.record_observation, machine, observed, self.timeouts)
            case AbandonLaunch(machine, reason):
                write(self.store, launches.abandon_launch, machine, reason, listed_at, self.timeouts)
            case PresumeTerminated(machine):
                write(self.store, observations.presume_terminated, machine)
            case Terminate(provider_id, None, reason):
                log.warning("machine %s: %s; terminating it", provider_id, reason)
                self.provider.terminate(provider_id)
            case Terminate(provider_id, UUID() as machine, reason, lease_expired):
                if write(self.store, observations.begin_termination, machine, reason, lease=lease_expired):
                    self.provider.terminate(provider_id)
