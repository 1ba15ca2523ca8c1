# SPDX-License-Identifier: Apache-2.0
"""The control loop: each tick moves machines and jobs towards their desired state.

A tick may be repeated, run concurrently with others and be killed at any point. Each step reads, decides or calls a
provider, then writes; no database session is open during a provider call. What a step could not do (a provider is
unavailable, another worker was first, the budget was spent elsewhere), the next tick does.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Concatenate, Literal, ParamSpec, TypeVar
from uuid import UUID

from shoestring_core.decide import failures, funding
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
from shoestring_core.store import checkpoints, jobs, ledger
from shoestring_core.store.db import CommitInfo, Store, Write
from shoestring_core.store.fleet import billing, gangs, launches, planning, queue, service_heartbeats
from shoestring_core.store.fleet.active_attempts import ActiveAttempt, Demand, OpenWork, load_demand, load_open_work
from shoestring_core.store.fleet.offers import load_offers
from shoestring_core.store.objects import Objects
from shoestring_core.wording import Reason
from shoestring_core.wording.budget import PayerOverdrawn
from shoestring_core.wording.jobs import TimeLimitReached

from shoestring_worker.job_scheduler import JobScheduler
from shoestring_worker.provider_lane import ProviderLane, wait_for_answers
from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.steps import ItemRunner, write

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

HEARTBEAT_S = 10.0

AUDIT_S = 3600.0
"""How often the ledger's totals are compared with the sums of its lines."""

ANSWER_WAIT_S = 0.5
"""How long a tick waits for the providers' answers."""

MAX_ROUNDS = 10
"""A tick repeats its steps while they make more work, at most this often; the next tick continues."""


@dataclass
class ControlLoop:
    """What a worker process needs to tick. Any number of control loops may share a database.

    providers  by name; their timeouts hold for their machines, `timeouts` for what concerns no provider
    """

    store: Store
    providers: Mapping[str, ManagedProvider]
    objects: Objects
    timeouts: Timeouts
    secret: str
    agent_url: str
    offload_launch: Callable[[UUID], None] = lambda _: None
    monotonic: Callable[[], float] = time.monotonic
    answer_wait_s: float = ANSWER_WAIT_S

    _ticking: threading.Lock = field(default_factory=threading.Lock)
    _more_work: threading.Event = field(default_factory=threading.Event)
    _heartbeat_at: float = float("-inf")
    _audited_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.store.on_commit.append(self._on_commit)
        self._items = ItemRunner(self.monotonic)
        self._lanes = {
            name: ProviderLane(
                name,
                provider,
                self.store,
                self.deployment,
                self.secret,
                self._items,
                self.offload_launch,
                self.monotonic,
                self.answer_wait_s,
            )
            for name, provider in self.providers.items()
        }
        self._scheduler = JobScheduler(
            self.store, self.providers, self.timeouts, self.agent_url, self.deployment, self._items,
            schedule_again=self._more_work.set, monotonic=self.monotonic,
        )  # fmt: skip

    @property
    def deployment(self) -> str:
        """The value of the tag on this deployment's machines."""
        return hashlib.sha256(f"deployment:{self.secret}".encode()).hexdigest()[:16]

    def tick(self) -> bool:
        """Do everything that is due. False: a tick runs in this process already; it will check again before it ends."""
        self._more_work.set()
        if not self._ticking.acquire(blocking=False):
            return False
        try:
            for rounds_left in reversed(range(MAX_ROUNDS)):
                if not self._more_work.is_set():
                    break
                self._more_work.clear()
                self._run_steps(last_round=not rounds_left)
        finally:
            self._ticking.release()
        return True

    def launch(self, machine: UUID) -> None:
        """Launch one machine that is planned."""
        with self.store.read() as db:
            provider = launches.load_provider(db, machine)
        if provider in self._lanes:
            self._lanes[provider].launcher.launch(machine)

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.close()

    def _run_steps(self, *, last_round: bool) -> None:
        """Each step makes work for the next ones; work for earlier steps is done in the next round."""
        items = self._items
        if self.monotonic() >= self._heartbeat_at + HEARTBEAT_S:
            items.run("the heartbeat", self._heartbeat)
        if self.monotonic() >= self._audited_at + AUDIT_S:
            items.run("the audit of the ledger", self._audit)
        with self.store.read() as db:
            demand = load_demand(db)
        self._poll_providers(demand)
        with self.store.read() as db:
            work = load_open_work(db)
        if not (work or demand.jobs_queued):
            return
        self._for_each("closing", self._close_attempt, work.attempts)
        self._for_each("the time limit", self._enforce_time_limit, work.attempts)
        self._for_each("failures", self._handle_failures, work.attempts, work.now)
        if last_round or not self._more_work.is_set():  # else it would be made again in the next round
            items.run("the schedule", self._scheduler.schedule_jobs)
        self._for_each("empty slots", self._refill_slots, work.attempts, work.now)
        self._launch_machines()
        items.run("the funding", self._extend_holds, work)
        for machine in work.unbilled:
            items.run(f"the bill of machine {machine}", self._settle_machine, machine)
        for job in work.unsettled:
            items.run(f"the settlement of job {job}", self._settle_job, job)

    def _for_each(
        self,
        step: str,
        function: Callable[Concatenate[ActiveAttempt, P], None],
        attempts: Iterable[ActiveAttempt],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        for active in attempts:
            item = f"{step} of job {active.job.id}, attempt {active.attempt.number}"
            self._items.run(item, function, active, *args, **kwargs)

    # Steps

    def _heartbeat(self) -> None:
        self._write(service_heartbeats.record_heartbeat, "worker", int(3 * HEARTBEAT_S * 1e6))
        self._heartbeat_at = self.monotonic()

    def _audit(self) -> None:
        """Log totals that differ from the sums of their lines: these are bugs, nothing is corrected."""
        with self.store.read() as db:
            discrepancies = ledger.find_discrepancies(db)
        for discrepancy in discrepancies:
            log.error("ledger totals are inconsistent: %s", discrepancy)
        self._audited_at = self.monotonic()

    def _poll_providers(self, demand: Demand) -> None:
        """Reconcile with the providers and refresh their offers, where that is due."""
        for name in demand.alive_machines.keys() - self._lanes.keys():
            self._items.warn(f"provider {name}", "it has machines, and this worker does not serve it")
        due = [
            lane
            for name, lane in self._lanes.items()
            if lane.is_due or demand.jobs_queued or demand.alive_machines.get(name)
        ]
        polls = [call for lane in due for call in lane.begin_poll(self._scheduler.requirements)]
        wait_for_answers(polls, self.answer_wait_s)

    def _launch_machines(self) -> None:
        calls = [call for lane in self._lanes.values() for call in lane.begin_launches()]
        wait_for_answers(calls, self.answer_wait_s)

    def _close_attempt(self, active: ActiveAttempt) -> None:
        """Begin to close the attempt of a stopping job; finish one whose machines have all terminated."""
        if active.attempt.state == "open" and active.job.state == "stopping":
            self._write(gangs.begin_stopping, active.job.id)
        elif active.attempt.state == "closing" and not active.alive:
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
        if data is not None and (data.bytes, data.sha256) == (manifest.bytes, manifest.sha256):
            self._write(checkpoints.adopt_upload, place, manifest, manifest_sha)

    def _enforce_time_limit(self, active: ActiveAttempt) -> None:
        """Stop a job that has reached limits.time; it saves a checkpoint first."""
        limit = active.spec.limits.time if active.wanted else None
        if limit is not None and active.trained_us >= limit * 1e6:
            self._stop(active, DesiredState.STOP, StopReason.TIME_LIMIT, TimeLimitReached(limit))

    def _handle_failures(self, active: ActiveAttempt, now: int) -> None:
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

    def _refill_slots(self, active: ActiveAttempt, now: int) -> None:
        """Plan another machine where a launch was refused (with backoff), or where an elastic gang lost its machine.

        All machines of an attempt are of one provider and region, so that they reach each other.
        """
        slots = active.empty_slots(now, self._timeouts(active)) if active.wanted else []
        if not slots:
            return
        latest = active.machines[-1]
        wanted = replace(
            Requirements.of(active.spec.resources, queue.chosen_type(active.job.sizing)),
            nodes=1,
            provider=latest.provider,
            regions=(latest.region,),
        )
        with self.store.read() as db:
            offer = rank_offers(load_offers(db), wanted, now, launches.load_refusals(db)).best
        if offer is None:
            return
        for slot in slots:
            try:
                self._write(
                    planning.refill_slot,
                    active.job.id,
                    active.attempt.number,
                    slot,
                    offer,
                    agent_url=self.agent_url,
                    deployment=self.deployment,
                    timeouts=self._timeouts(active),
                )
            except BudgetExceeded as short:
                log.info("slot %s of job %s stays empty: %s", slot, active.job.id, short)

    def _extend_holds(self, work: OpenWork) -> None:
        """Extend holds before they run out."""
        wanted = [active for active in work.attempts if active.wanted]
        if not wanted:
            return
        with self.store.read() as db:
            held = billing.load_fundings(db, [machine.id for active in wanted for machine in active.machines])
            overdrawn = billing.overdrawn_jobs(db, [active.job.id for active in wanted])
        for active in wanted:
            account = overdrawn.get(active.job.id)
            self._items.run(f"the funding of job {active.job.id}", self._fund, active, held, account, work.now)

    def _fund(
        self, active: ActiveAttempt, held: Mapping[UUID, funding.MachineFunding], overdrawn: str | None, now: int
    ) -> None:
        """Extend the holds of an attempt. If it can't be funded further, its job checkpoints and pauses, or ends."""
        if overdrawn:
            self._stop_for_budget(active, PayerOverdrawn(overdrawn))
            return
        for machine in active.machines:
            if machine.id in held and funding.due_extension(held[machine.id], now, self._timeouts(active)):
                self._items.run(f"the funding of machine {machine.id}", self._extend_hold, active, machine.id)

    def _extend_hold(self, active: ActiveAttempt, machine: UUID) -> None:
        try:
            self._write(billing.post_cost, machine)
            self._write(billing.extend_funding, machine, self._timeouts(active))
        except BudgetExceeded as short:
            self._stop_for_budget(active, short.reason)
        except StaleTransition:
            pass  # another worker has extended it, or it has just terminated

    def _settle_machine(self, machine: UUID) -> None:
        self._write(billing.settle_machine, machine)

    def _settle_job(self, job: UUID) -> None:
        self._write(billing.settle_job, job)

    # What steps share

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

    def _on_commit(self, committed: CommitInfo) -> None:
        if committed.tick_requested:
            self._more_work.set()
