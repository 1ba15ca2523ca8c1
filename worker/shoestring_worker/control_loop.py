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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar
from uuid import UUID

from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.store import audit, audit_seals, budget_periods, idempotency, ledger, queries
from shoestring_core.store.db import Store
from shoestring_core.store.fleet import billing, launches, service_heartbeats
from shoestring_core.store.fleet.active_attempts import ActiveAttempt
from shoestring_core.store.fleet.launches import PlannedMachine
from shoestring_core.store.fleet.open_work import Demand, load_demand, load_open_work
from shoestring_core.store.objects import Objects
from shoestring_core.store.transactions import CommitInfo, Write

from shoestring_worker.attempt_steps import AttemptSteps
from shoestring_worker.deadlines import DeadlineStep
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

DELETE_EXPIRED_S = 600.0
"""How often the responses to old requests are deleted, which nobody repeats any more."""

BORDERS_S = 10.0
"""How often budgets are looked for whose period has ended."""

FORECASTS_S = 600.0
"""How often it is forecast whether limits last."""

SEALS_S = 60.0
"""How often new entries of audit logs are chained and sealed."""

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
    ca: str = ""
    """By which agents verify the service: see wire.BootData."""
    offload_launch: Callable[[UUID], None] = lambda _: None
    monotonic: Callable[[], float] = time.monotonic
    answer_wait_s: float = ANSWER_WAIT_S

    _ticking: threading.Lock = field(default_factory=threading.Lock)
    _more_work: threading.Event = field(default_factory=threading.Event)
    _heartbeat_at: float = float("-inf")
    _audited_at: float = float("-inf")
    _deleted_expired_at: float = float("-inf")
    _rolled_over_at: float = float("-inf")
    _forecast_at: float = float("-inf")
    _sealed_at: float = float("-inf")

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
            self.store, self.providers, self.objects, self.timeouts, self.agent_url, self.ca, self.deployment,
            self._items, schedule_again=self._more_work.set, find_unanswered=self._find_unanswered,
            monotonic=self.monotonic,
        )  # fmt: skip
        self._deadlines = DeadlineStep(self.store, self.providers, self._items)
        self._attempts = AttemptSteps(
            self.store, self.providers, self.objects, self.agent_url, self.ca, self.deployment, self._items
        )

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
        if self.monotonic() >= self._deleted_expired_at + DELETE_EXPIRED_S:
            items.run("the old responses", self._delete_expired_responses)
        if self.monotonic() >= self._rolled_over_at + BORDERS_S:
            items.run("the borders of budgets", self._roll_over_budgets)
        if self.monotonic() >= self._forecast_at + FORECASTS_S:
            items.run("the forecasts of budgets", self._tell_forecasts)
        if self.monotonic() >= self._sealed_at + SEALS_S:
            items.run("the seals of audit logs", self._seal_audit_logs)
        with self.store.read() as db:
            demand = load_demand(db)
        self._poll_providers(demand)
        if demand.deadlines_due:
            items.run("the deadlines", self._deadlines.decide_due)
        with self.store.read() as db:
            work = load_open_work(db)
        if not work:
            return
        self._for_each("closing", self._attempts.close, work.attempts)
        self._for_each("the time limit", self._attempts.enforce_time_limit, work.attempts)
        self._for_each("failures", self._attempts.handle_failures, work.attempts, work.now)
        planned = [*work.launchable]
        if last_round or not self._more_work.is_set():  # else it would be made again in the next round
            mark, offers = work.queue, work.offer_versions
            planned += items.run("the schedule", self._scheduler.schedule_jobs, mark, offers, work.now) or []
        for refilled in self._for_each("empty slots", self._attempts.refill_slots, work.attempts, work.now):
            planned += refilled
        self._launch_machines(planned)
        self._for_each("the funding", self._attempts.extend_holds, work.attempts, work)
        for machine in work.unbilled:
            items.run(f"the bill of machine {machine}", self._settle_machine, machine)
        for job in work.unsettled:
            items.run(f"the settlement of job {job}", self._settle_job, job)

    def _for_each(
        self,
        step: str,
        function: Callable[Concatenate[ActiveAttempt, P], T],
        attempts: Iterable[ActiveAttempt],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[T]:
        """Returns the results of those that did not fail."""
        results = []
        for active in attempts:
            item = f"{step} of job {active.job.id}, attempt {active.attempt.number}"
            result = self._items.run(item, function, active, *args, **kwargs)
            if result is not None:
                results.append(result)
        return results

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

    def _delete_expired_responses(self) -> None:
        self._write(idempotency.delete_expired)
        self._deleted_expired_at = self.monotonic()

    def _roll_over_budgets(self) -> None:
        """Roll over the budgets whose period has ended; border after border if no worker ran for longer."""
        self._rolled_over_at = self.monotonic()
        with self.store.read() as db:
            due = ledger.due_borders(db)
        for account, border in due:
            if self._items.run(f"the border of budget {account}", self._write_border, account, border):
                self._rolled_over_at = float("-inf")
                self._more_work.set()

    def _write_border(self, account: UUID, border: int) -> bool:
        return self._write(budget_periods.roll_over, account, border)

    def _tell_forecasts(self) -> None:
        self._forecast_at = self.monotonic()
        with self.store.read() as db:
            due = ledger.due_forecasts(db)
        for account in due:
            self._items.run(f"the forecast of budget {account}", self._tell_forecast, account)

    def _tell_forecast(self, account: UUID) -> None:
        self._write(ledger.tell_forecast, account)

    def _seal_audit_logs(self) -> None:
        first = self._sealed_at == float("-inf")
        self._sealed_at = self.monotonic()
        with self.store.read() as db:
            due = queries.load_team_ids(db) if first else audit.unchained_teams(db)
        for team in due:
            self._items.run(f"the seal of the audit log of team {team}", self._seal_audit_log, team)

    def _seal_audit_log(self, team: UUID) -> None:
        """Store the newest seal, which a worker that was killed may not have done; then chain and seal what is new."""
        with self.store.read() as db:
            seal = audit.last_seal(db, team)
        while True:
            if seal is not None:
                audit_seals.store_seal(self.objects, self.secret, seal)
            seal = self._write(audit.chain_batch, team)
            if seal is None:
                return

    def _poll_providers(self, demand: Demand) -> None:
        """Reconcile with the providers and refresh their offers, where that is due."""
        for name in demand.in_use - self._lanes.keys():
            self._items.warn(f"provider {name}", "it has machines, and this worker does not serve it")
        due = [lane for name, lane in self._lanes.items() if lane.is_due or demand.jobs_queued or name in demand.in_use]
        polls = [call for lane in due for call in lane.begin_poll(self._scheduler.requirements, demand.now)]
        wait_for_answers(polls, self.answer_wait_s)

    def _find_unanswered(self) -> dict[str, str]:
        """As `decide.schedule.schedule_jobs` takes them."""
        return {name: lane.problem for name, lane in self._lanes.items() if lane.problem or not lane.has_answered}

    def _launch_machines(self, planned: Sequence[PlannedMachine]) -> None:
        by_provider = {name: [machine.id for machine in planned if machine.provider == name] for name in self._lanes}
        calls = [call for name, machines in by_provider.items() for call in self._lanes[name].begin_launches(machines)]
        wait_for_answers(calls, self.answer_wait_s)

    def _settle_machine(self, machine: UUID) -> None:
        self._write(billing.settle_machine, machine)

    def _settle_job(self, job: UUID) -> None:
        self._write(billing.settle_job, job)

    def _write(self, function: Callable[Concatenate[Write, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return write(self.store, function, *args, **kwargs)

    def _on_commit(self, committed: CommitInfo) -> None:
        if committed.tick_requested:
            self._more_work.set()
