# SPDX-License-Identifier: Apache-2.0
"""Decides, once in each interval, where each job with a deadline is to train; the schedule starts it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import UUID

from shoestring_core.decide.deadlines import Seen
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import deadlines
from shoestring_core.store.fleet.offers import load_offers

from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.steps import ItemRunner, write

if TYPE_CHECKING:
    from shoestring_core.decide.spot.policies import Policy

MAX_POLICIES = 100
"""Jobs whose value tables are kept, of some MB each: the others' are computed again."""


@dataclass
class DeadlineStep:
    """What is remembered only saves computing: every decision can be made from its stored case."""

    store: Store
    providers: Mapping[str, ManagedProvider]
    items: ItemRunner
    _policies: dict[UUID, Policy] = field(default_factory=dict)

    def decide_due(self) -> None:
        with self.store.read() as db:
            due = deadlines.load_due(db, self.providers)
        for job in due:
            self.items.run(f"the deadline of job {job}", self._decide, job)

    def _decide(self, job: UUID) -> None:
        from shoestring_core.decide.spot import live  # numpy takes long to import, and few services have deadlines
        from shoestring_core.decide.spot.policies import Adaptive

        timeouts = {name: provider.timeouts for name, provider in self.providers.items()}
        with self.store.read() as db:
            observed = deadlines.observe(db, job, load_offers(db), timeouts)
        if observed is None:
            self._policies.pop(job, None)
            write(self.store, deadlines.postpone, job)
            return
        case, interval = observed.case, observed.case.interval
        before = case.seen_before
        if observed.corrected is not None:
            before = live.observe(before, observed.corrected, interval)
        seen = live.observe(before, observed.available, interval)
        case = replace(case, seen_before=before if before.zones else Seen(), seen=seen)
        if job not in self._policies and len(self._policies) >= MAX_POLICIES:
            self._policies.clear()
        decision = live.decide_deadline(case, self._policies.setdefault(job, Adaptive()))
        write(self.store, deadlines.record_decision, observed, case, decision)
