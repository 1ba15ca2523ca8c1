# SPDX-License-Identifier: Apache-2.0
"""The steps of a tick that concern one attempt: it is closed, stopped, restarted, completed and funded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Concatenate, Literal, ParamSpec, TypeVar
from uuid import UUID

from shoestring_core.decide import failures, funding
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import (
    BudgetExceeded,
    InvalidRequest,
    InvalidState,
    NotFound,
    StaleTransition,
    Unavailable,
)
from shoestring_core.states import DesiredState, StopReason
from shoestring_core.store import checkpoints, jobs
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import billing, gangs, launches, planning, queue, rows
from shoestring_core.store.fleet.active_attempts import ActiveAttempt
from shoestring_core.store.fleet.launches import PlannedMachine
from shoestring_core.store.fleet.offers import load_offers
from shoestring_core.store.fleet.open_work import OpenWork
from shoestring_core.store.objects import Objects
from shoestring_core.store.transactions import Write
from shoestring_core.wording import Reason
from shoestring_core.wording.budget import PayerOverdrawn
from shoestring_core.wording.jobs import TimeLimitReached

from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.steps import ItemRunner, find_storage, write

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class AttemptSteps:
    """Each step does what is due for an attempt, which may be nothing."""

    store: Store
    providers: Mapping[str, ManagedProvider]
    objects: Objects
    agent_url: str
    ca: str
    deployment: str
    items: ItemRunner

    def close(self, active: ActiveAttempt) -> None:
        """Begin to close the attempt of a stopping job; finish one of whose machines none is at work."""
        if active.attempt.state == "open" and active.job.state == "stopping":
            self._write(gangs.begin_stopping, active.job.id)
        elif active.attempt.state == "closing" and not active.at_work:
            self._adopt_uncommitted_checkpoint(active)
            self._write(gangs.finish_attempt, active.job.id, active.attempt.number)

    def _adopt_uncommitted_checkpoint(self, active: ActiveAttempt) -> None:
        """Commit a checkpoint whose machine terminated after uploading it and before reporting it, if there is one."""
        with self.store.read() as db:
            place = checkpoints.find_stranded_upload(db, active.job.id, active.attempt.number)
        if place is None:
            return
        try:
            manifest, manifest_sha = checkpoints.read_manifest(self.objects, place.key)
        except NotFound:
            return
        except InvalidRequest as invalid:
            log.warning("checkpoint %s is not adopted: %s", place.key, invalid)
            return
        data = self.objects.head(f"{place.key}/data")
        if data is not None and manifest.describes(data):
            self._write(checkpoints.adopt_upload, place, manifest, manifest_sha)

    def enforce_time_limit(self, active: ActiveAttempt) -> None:
        """Stop a job that has reached limits.time; it saves a checkpoint first."""
        limit = active.spec.limits.time if active.wanted else None
        if limit is not None and active.trained_us >= limit * 1e6:
            self._stop(active, DesiredState.STOP, StopReason.TIME_LIMIT, TimeLimitReached(limit))

    def handle_failures(self, active: ActiveAttempt, now: int) -> None:
        """Restart or end an attempt whose ranks exited or whose machines were lost."""
        if not active.wanted:
            return
        action = failures.decide_attempt(active.gang_status(), now, self._timeouts(active))
        if isinstance(action, failures.NoAction):
            return
        generation = active.generation.number if active.generation else None
        try:
            self._write(gangs.apply_action, active.job.id, active.attempt.number, generation, action)
        except StaleTransition as stale:
            log.info("%s", stale)

    def refill_slots(self, active: ActiveAttempt, now: int) -> list[PlannedMachine]:
        """Plan another machine where a launch was refused (with backoff), or where an elastic gang lost its machine.

        All machines of an attempt are of one provider and region, so that they reach each other.
        """
        slots = active.empty_slots(now, self._timeouts(active)) if active.wanted else []
        if not slots:
            return []
        latest = active.machines[-1]
        wanted = replace(
            Requirements.of(active.spec.resources, queue.chosen_type(active.job.sizing)),
            nodes=1,
            provider=latest.provider,
            regions=(latest.region,),
        )
        if active.spec.limits.deadline is not None:  # it was decided on which machines this attempt runs
            on_spot = latest.market == "spot"
            zones = (latest.zone,) if on_spot and latest.zone else wanted.zones
            wanted = replace(wanted, type=latest.type, zones=zones, spot="only" if on_spot else "never")
        if others := active.live_machines:
            wanted = wanted.beside(rows.offered_hardware(others[0]))
            if wanted.cluster:  # a placement group is in one zone
                wanted = replace(wanted, zones=(others[0].zone,))
        if (rate := active.spec.limits.rate) is not None:
            left = rate - sum(billing.hourly_cost(machine) for machine in others)
            wanted = replace(wanted, rate=max(0, left) // len(slots))
        with self.store.read() as db:
            offer = rank_offers(load_offers(db), wanted, now, launches.load_refusals(db)).best
        storage = find_storage(self.objects)
        if offer is None or storage.problem:
            return []
        machines = [
            self.items.run(f"slot {slot} of job {active.job.id}", self._refill_slot, active, slot, offer, storage.until)
            for slot in slots
        ]
        return [PlannedMachine(offer.provider, machine) for machine in machines if machine is not None]

    def _refill_slot(
        self, active: ActiveAttempt, slot: int, offer: Offer, storable_until: int | None
    ) -> UUID | None:  # fmt: skip
        try:
            return self._write(
                planning.refill_slot,
                active.job.id,
                active.attempt.number,
                slot,
                offer,
                agent_url=self.agent_url,
                ca=self.ca,
                deployment=self.deployment,
                timeouts=self._timeouts(active),
                storable_until=storable_until,
            )
        except BudgetExceeded as short:
            log.info("slot %s of job %s stays empty: %s", slot, active.job.id, short)
            return None

    def extend_holds(self, active: ActiveAttempt, work: OpenWork) -> None:
        """Extend holds before they run out. If there is no money for that, the job checkpoints and pauses, or ends.

        No machine is funded for longer than it could store a checkpoint; the job is told when that comes to an end.
        """
        if not active.wanted:
            return
        account = work.overdrawn.get(active.job.id)
        reserved = active.spec.on_budget == "finish" or active.spec.limits.deadline is not None
        if account and not reserved:  # else it goes on with what it has reserved
            self._stop_for_budget(active, PayerOverdrawn(account))
            return
        storage, timeouts = find_storage(self.objects), self._timeouts(active)
        held = {machine.id: work.fundings[machine.id] for machine in active.machines if machine.id in work.fundings}
        lost = bool(storage.problem) or any(
            funding.is_cut_short(one, work.now, timeouts, storage.until) for one in held.values()
        )
        if lost != bool(active.job.wait_detail):
            self._write(billing.tell_storage, active.job.id, active.attempt.number, storage.problem, lost=lost)
        if storage.problem:
            self.items.warn(f"the funding of job {active.job.id}", storage.problem)
            return
        for machine, one in held.items():
            if funding.due_extension(one, work.now, timeouts, storage.until):
                self.items.run(f"the funding of machine {machine}", self._extend_hold, active, machine, storage.until)

    def _extend_hold(self, active: ActiveAttempt, machine: UUID, storable_until: int | None) -> None:
        try:
            self._write(billing.post_cost, machine)
            self._write(billing.extend_funding, machine, self._timeouts(active), storable_until)
        except BudgetExceeded as short:
            self._stop_for_budget(active, short.reason)
        except StaleTransition:
            pass  # another worker has extended it, or it has just terminated

    def _stop_for_budget(self, active: ActiveAttempt, reason: Reason) -> None:
        self._stop(active, funding.when_budget_exhausted(active.spec.on_budget), StopReason.BUDGET, reason)

    def _stop(self, active: ActiveAttempt, desired: DesiredState, stop_reason: StopReason, reason: Reason) -> None:
        try:
            mode: Literal["pause", "stop"] = "pause" if desired is DesiredState.PAUSE else "stop"
            self._write(jobs.stop, active.job.id, "fleet", mode, stop_reason=stop_reason, reason=reason)
        except (StaleTransition, InvalidState) as stale:
            log.info("%s", stale)

    def _timeouts(self, active: ActiveAttempt) -> Timeouts:
        if active.provider not in self.providers:
            raise Unavailable(f"provider {active.provider} is not served by this worker")
        return self.providers[active.provider].timeouts

    def _write(self, function: Callable[Concatenate[Write, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return write(self.store, function, *args, **kwargs)
