# SPDX-License-Identifier: Apache-2.0
"""The control loop: each tick moves machines and jobs towards their desired state.

A tick may be repeated, run concurrently with others and be killed at any point. Each step reads, decides or calls the
provider, then writes; no database session is open during a provider call. What a step could not do (the provider is
unavailable, another worker was first, the budget was spent elsewhere), the next tick does.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Concatenate, Literal, ParamSpec, TypeVar
from uuid import UUID

from shoestring_core.decide import failures, funding
from shoestring_core.decide.offers import Offer, cheapest_offer
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import BudgetExceeded, InvalidState, NotFound, StaleTransition
from shoestring_core.states import DesiredState
from shoestring_core.store import checkpoints, jobs, ledger
from shoestring_core.store.db import CommitInfo, Store, Write
from shoestring_core.store.fleet import billing, gangs, heartbeats, planning
from shoestring_core.store.fleet.active_attempts import ActiveAttempt, OpenWork, load_open_work
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.objects import Objects

from shoestring_worker.launcher import Launcher
from shoestring_worker.providers.base import Provider
from shoestring_worker.reconciler import Reconciler
from shoestring_worker.steps import run_step, write

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

IDLE_RECONCILE_S = 10.0
"""How often an idle service looks for machines that no row wants."""

AUDIT_S = 3600.0
"""How often the ledger's totals are compared with the sums of its lines."""

MAX_ROUNDS = 10
"""A tick repeats its steps while they make more work, at most this often; the next tick continues."""

MAX_MANIFEST_BYTES = 1 << 20


@dataclass
class ControlLoop:
    """What a worker process needs to tick. Any number of control loops may share a database."""

    store: Store
    provider: Provider
    objects: Objects
    timeouts: Timeouts
    secret: str
    agent_url: str
    offload_launch: Callable[[UUID], None] = lambda _: None
    monotonic: Callable[[], float] = time.monotonic

    _ticking: threading.Lock = field(default_factory=threading.Lock)
    _more_work: threading.Event = field(default_factory=threading.Event)
    _reconciled_at: float = float("-inf")
    _audited_at: float = float("-inf")
    _recorded_offers: list[Offer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store.on_commit.append(self._on_commit)
        self.launcher = Launcher(
            self.store, self.provider, self.timeouts, self.secret, self.offload_launch, self.monotonic
        )
        self._reconciler = Reconciler(self.store, self.provider, self.timeouts, self.deployment)

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
            for _ in range(MAX_ROUNDS):
                if not self._more_work.is_set():
                    break
                self._more_work.clear()
                self._run_steps()
        finally:
            self._ticking.release()
        return True

    def close(self) -> None:
        self.launcher.close()

    def _run_steps(self) -> None:
        """Each step makes work for the next ones; work for earlier steps is done in the next round."""
        work = self._find_work()
        idle_reconcile_due = self.monotonic() >= self._reconciled_at + IDLE_RECONCILE_S
        if not work and not idle_reconcile_due:
            return
        if idle_reconcile_due:
            run_step(self._heartbeat)
            run_step(self._refresh_offers)
            run_step(self._audit)
        if work.alive_machines or idle_reconcile_due:
            run_step(self._reconcile)
            work = self._find_work()
        run_step(self._close_attempts, work)
        run_step(self._enforce_time_limits, work)
        run_step(self._handle_failures, work)
        run_step(self._schedule_jobs)
        run_step(self._refill_slots, work)
        run_step(self.launcher.launch_pending)
        run_step(self._extend_holds, work)
        run_step(self._settle, work)

    # Steps

    def _heartbeat(self) -> None:
        self._write(heartbeats.record_heartbeat, "worker", int(3 * IDLE_RECONCILE_S * 1e6))

    def _refresh_offers(self) -> None:
        """Keep offers current without queued jobs too, because users may ask for a plan."""
        self._offers()

    def _audit(self) -> None:
        """Log totals that differ from the sums of their lines: these are bugs, nothing is corrected."""
        if self.monotonic() < self._audited_at + AUDIT_S:
            return
        with self.store.read() as db:
            discrepancies = ledger.find_discrepancies(db)
        for discrepancy in discrepancies:
            log.error("ledger totals are inconsistent: %s", discrepancy)
        self._audited_at = self.monotonic()

    def _reconcile(self) -> None:
        self._reconciler.reconcile()
        self._reconciled_at = self.monotonic()

    def _close_attempts(self, work: OpenWork) -> None:
        """Begin to close the attempts of stopping jobs; finish attempts whose machines have all terminated."""
        for active in work.attempts:
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
            text = self.objects.read(f"{place.key}/manifest.json", MAX_MANIFEST_BYTES)
            data = self.objects.head(f"{place.key}/data")
            manifest = checkpoints.Manifest.model_validate_json(text)
        except (NotFound, ValueError):
            return
        if data is not None and (data.bytes, data.sha256) == (manifest.bytes, manifest.sha256):
            self._write(checkpoints.adopt_upload, place, manifest, hashlib.sha256(text).hexdigest())

    def _enforce_time_limits(self, work: OpenWork) -> None:
        """Stop jobs that have reached limits.time; they save a checkpoint first."""
        for active in work.attempts:
            limit = active.spec.limits.time
            if active.wanted and limit is not None and active.trained_us >= limit * 1e6:
                self._stop(active, DesiredState.STOP, "time_limit", f"It has run for {limit:g} s, its limits.time.")

    def _handle_failures(self, work: OpenWork) -> None:
        """Restart or end the attempts whose ranks exited or whose machines were lost."""
        for active in work.attempts:
            if not active.wanted:
                continue
            action = failures.decide_attempt(active.gang_status(), work.now, self.timeouts)
            if isinstance(action, failures.NoAction):
                continue
            generation = active.generation.number if active.generation else None
            try:
                self._write(gangs.apply_action, active.job.id, active.attempt.number, generation, action)
            except StaleTransition as stale:
                log.info("%s", stale)

    def _schedule_jobs(self) -> None:
        """Start the queued jobs whose turn it is; record why the others wait."""
        with self.store.read() as db:
            snapshot, now = planning.load_snapshot(db, self.timeouts), db.now
        if not snapshot.queue:
            return
        schedule = schedule_jobs(snapshot, self._offers(), now, self.timeouts)
        for epoch, start in enumerate(schedule.starts, snapshot.epoch):
            try:
                applied = self._write(
                    planning.apply_start, start, epoch, agent_url=self.agent_url, deployment=self.deployment
                )
            except (StaleTransition, BudgetExceeded) as changed:
                log.info("the schedule is out of date: %s", changed)
                self._more_work.set()
                return
            if applied is None:
                return  # another worker has applied a newer schedule
        if schedule.waits:
            self._write(planning.apply_waits, schedule.waits)

    def _refill_slots(self, work: OpenWork) -> None:
        """Plan another machine where a launch was refused (with backoff), or where an elastic gang lost its machine."""
        for active in work.attempts:
            slots = active.empty_slots(work.now, self.timeouts) if active.wanted else []
            if not slots:
                continue
            resources = active.spec.resources
            offer = cheapest_offer(self._offers(), resources.provider, resources.spot, planning.chosen_type(active.job))
            for slot in slots:
                if offer is None:
                    break
                try:
                    self._write(
                        planning.refill_slot,
                        active.job.id,
                        active.attempt.number,
                        slot,
                        offer,
                        agent_url=self.agent_url,
                        deployment=self.deployment,
                        timeouts=self.timeouts,
                    )
                except BudgetExceeded as short:
                    log.info("slot %s of job %s stays empty: %s", slot, active.job.id, short)

    def _extend_holds(self, work: OpenWork) -> None:
        """Extend holds before they run out. A job that can't be funded further checkpoints and pauses, or ends."""
        wanted = [active for active in work.attempts if active.wanted]
        if not wanted:
            return
        with self.store.read() as db:
            held = billing.load_fundings(db, [machine.id for active in wanted for machine in active.machines])
            overdrawn = billing.overdrawn_jobs(db, [active.job.id for active in wanted])
        for active in wanted:
            if name := overdrawn.get(active.job.id):
                self._stop_for_budget(active, f"The budget of {name} is overdrawn.")
                continue
            for machine in active.machines:
                if machine.id in held and funding.due_extension(held[machine.id], work.now, self.timeouts):
                    self._extend_hold(active, machine.id)

    def _extend_hold(self, active: ActiveAttempt, machine: UUID) -> None:
        try:
            self._write(billing.post_cost, machine)
            self._write(billing.extend_funding, machine, self.timeouts)
        except BudgetExceeded as short:
            self._stop_for_budget(active, short.message)
        except StaleTransition:
            pass  # another worker has extended it, or it has just terminated

    def _settle(self, work: OpenWork) -> None:
        for machine in work.unbilled:
            self._write(billing.settle_machine, machine)
        for job in work.unsettled:
            self._write(billing.settle_job, job)

    # What steps share

    def _stop_for_budget(self, active: ActiveAttempt, reason: str) -> None:
        self._stop(active, funding.when_budget_exhausted(active.spec.on_budget), "budget", reason)

    def _stop(self, active: ActiveAttempt, desired: DesiredState, stop_reason: jobs.StopReason, reason: str) -> None:
        try:
            mode: Literal["pause", "stop"] = "pause" if desired is DesiredState.PAUSE else "stop"
            self._write(jobs.stop, active.job.id, "fleet", mode, stop_reason=stop_reason, reason=reason)
        except (StaleTransition, InvalidState) as stale:
            log.info("%s", stale)

    def _find_work(self) -> OpenWork:
        with self.store.read() as db:
            return load_open_work(db)

    def _offers(self) -> list[Offer]:
        """The provider's offers; recorded when they have changed."""
        offers = self.provider.offers()
        if offers != self._recorded_offers:
            self._write(save_offers, offers)
            self._recorded_offers = offers
        return offers

    def _write(self, function: Callable[Concatenate[Write, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return write(self.store, function, *args, **kwargs)

    def _on_commit(self, committed: CommitInfo) -> None:
        if committed.tick_requested:
            self._more_work.set()
