# SPDX-License-Identifier: Apache-2.0
"""One tick: bring what runs in line with what is wanted. Safe to repeat, to race, to be killed anywhere.

Each step loads, decides or calls the provider, then applies; no database session is open during a provider call. What a
step could not do (the provider is silent, another worker was first, the money went elsewhere), the next tick does.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Concatenate, Literal, ParamSpec, TypeVar
from uuid import UUID

from shoestring_core import wire
from shoestring_core.decide import failures, funding
from shoestring_core.decide.offers import Offer, cheapest_offer
from shoestring_core.decide.reconcile import (
    Action,
    NotListed,
    PresumeTerminated,
    RecordObservation,
    Terminate,
    VoidLaunch,
    reconcile,
)
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import BudgetExceeded, NotFound, StaleTransition, Unavailable, WrongState
from shoestring_core.states import DesiredState
from shoestring_core.store import checkpoints, jobs, ledger
from shoestring_core.store.db import CommitInfo, Store, Write
from shoestring_core.store.fleet import billing, gangs, heartbeats, launches, observations, planning
from shoestring_core.store.fleet.active_attempts import ActiveAttempt, OpenWork, load_open_work
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.objects import Objects

from shoestring_worker.providers.base import Cloud, Intent, Refused, Unknown

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

LAUNCHES_AT_ONCE = 8
"""A tick makes so many launch calls side by side; the rest it hands to `offload`."""

SWEEP_S = 10.0
"""How often an idle service looks for machines that no row wants."""

AUDIT_S = 3600.0
"""How often the ledger's totals are compared with the sums of its lines."""

MOST_ROUNDS = 10
"""A tick looks again when what it did made more work, so often at most; then the next tick goes on."""

MANIFEST_BYTES = 1 << 20


@dataclass
class ControlLoop:
    """What a worker process needs to tick. Any number of them may run over one database."""

    store: Store
    cloud: Cloud
    objects: Objects
    timeouts: Timeouts
    secret: str
    agent_url: str
    offload: Callable[[UUID], None] = lambda _: None
    """Asks another worker to launch a machine; the next tick does it if nobody did."""
    monotonic: Callable[[], float] = time.monotonic

    _ticking: threading.Lock = field(default_factory=threading.Lock)
    _again: threading.Event = field(default_factory=threading.Event)
    _swept: float = float("-inf")
    _audited: float = float("-inf")
    _prices: list[Offer] = field(default_factory=list)
    _not_listed: dict[UUID, int] = field(default_factory=dict)
    """When a machine that was seen before was first not found. Kept in memory: a restart only makes it wait longer."""

    def __post_init__(self) -> None:
        self.store.on_commit.append(self._on_commit)
        self._launchers = ThreadPoolExecutor(LAUNCHES_AT_ONCE, thread_name_prefix="launch")

    @property
    def deployment(self) -> str:
        """What machines of this deployment are tagged with."""
        return hashlib.sha256(f"deployment:{self.secret}".encode()).hexdigest()[:16]

    def tick(self) -> bool:
        """Do all there is to do now. False: a tick is running in this process; it will look again before it ends."""
        self._again.set()
        if not self._ticking.acquire(blocking=False):
            return False
        try:
            for _ in range(MOST_ROUNDS):
                if not self._again.is_set():
                    break
                self._again.clear()
                self._run_steps()
        finally:
            self._ticking.release()
        return True

    def launch(self, machine: UUID) -> None:
        """Rent one machine. Whoever else launches it gets the same one, or finds that it's being done."""
        begun = self.monotonic()
        order = self._write(launches.begin_launch, machine, self.timeouts)
        if order is None:
            return
        if (self.monotonic() - begun) * 1e6 > self.timeouts.launch_call / 5:
            return  # the commit took so long that the answer might come after call_deadline; the next tick calls
        token = wire.derive_boot_token(self.secret, machine)
        request = order.request
        intent = Intent(
            token=str(machine),
            region=order.region,
            zone=order.zone,
            tags=request["tags"],
            type=request["type"],
            market=request["market"],
            price=request["price"],
            user_data=request["user_data"] | {"boot_token": token},
        )
        try:
            seen = self.cloud.launch(intent)
        except Refused as refused:
            self._write(launches.record_refusal, order, refused.code, str(refused))
        except Unknown as unknown:
            log.warning("launch of %s: %s", machine, unknown)
            self._write(launches.record_no_answer, order)
        else:
            self._write(observations.record_observation, machine, seen, self.timeouts)

    def close(self) -> None:
        self._launchers.shutdown(wait=False, cancel_futures=True)

    def _run_steps(self) -> None:
        """Each step makes work for the next ones; what a step makes for those before it, the next round does."""
        work = self._work()
        sweeping = self.monotonic() >= self._swept + SWEEP_S
        if not work and not sweeping:
            return
        if sweeping:
            self._step(self._heartbeat)
            self._step(self._refresh_offers)
            self._step(self._audit)
        if work.alive_machines or sweeping:
            self._step(self._reconcile)
            work = self._work()
        self._step(self._wind_down, work)
        self._step(self._enforce_limits, work)
        self._step(self._decide_attempts, work)
        self._step(self._plan)
        self._step(self._refill, work)
        self._step(self._launch)
        self._step(self._fund, work)
        self._step(self._settle, work)

    def _step(self, step: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """A step that fails for want of the provider or the database is done by the next tick; the others go on."""
        try:
            step(*args, **kwargs)
        except (Unknown, Unavailable) as failure:
            log.warning("%s: %s", step.__name__.strip("_"), failure)

    def _heartbeat(self) -> None:
        self._write(heartbeats.record_heartbeat, "worker", int(3 * SWEEP_S * 1e6))

    def _refresh_offers(self) -> None:
        """Users may ask what a job would run on before any is queued."""
        self._offers()

    def _audit(self) -> None:
        """Totals that differ from the sums of their lines are a defect of ours: say so, change nothing."""
        if self.monotonic() < self._audited + AUDIT_S:
            return
        with self.store.read() as db:
            discrepancies = ledger.find_discrepancies(db)
        for discrepancy in discrepancies:
            log.error("the ledger disagrees with itself: %s", discrepancy)
        self._audited = self.monotonic()

    def _reconcile(self) -> None:
        """Compare what the provider runs with what we have, and make the difference go away."""
        with self.store.read() as db:
            listed_at = db.now
        seen = self.cloud.list()
        with self.store.read() as db:
            rows, leases = observations.load_tracked_machines(db), heartbeats.leases_enforced(db, self.timeouts)
        rows = [replace(row, not_listed_since=self._not_listed.get(row.id)) for row in rows]
        actions = reconcile(rows, seen, self.deployment, listed_at, leases, self.timeouts)
        missed = {action.machine for action in actions if isinstance(action, NotListed)}
        found = {one.token for one in seen}
        still = {
            row.id: row.not_listed_since
            for row in rows
            if row.not_listed_since is not None and str(row.id) not in found
        }
        self._not_listed = still | dict.fromkeys(missed, listed_at)
        self._swept = self.monotonic()
        for action in actions:
            self._step(self._apply, action, listed_at)

    def _apply(self, action: Action, listed_at: int) -> None:
        match action:
            case RecordObservation(machine, seen):
                self._write(observations.record_observation, machine, seen, self.timeouts)
            case VoidLaunch(machine, reason):
                self._write(launches.void_machine, machine, reason, listed_at, self.timeouts)
            case PresumeTerminated(machine):
                self._write(observations.presume_terminated, machine)
            case Terminate(provider_id, None, reason):
                log.warning("machine %s: %s; ending it", provider_id, reason)
                self.cloud.terminate(provider_id)
            case Terminate(provider_id, UUID() as machine, reason, lease):
                if self._write(observations.begin_termination, machine, reason, lease=lease):
                    self.cloud.terminate(provider_id)

    def _wind_down(self, work: OpenWork) -> None:
        """Begin the end of attempts whose job was stopped; close those whose machines are all terminated."""
        for one in work.attempts:
            if one.attempt.state == "open" and one.job.state == "stopping":
                self._write(gangs.begin_stopping, one.job.id)
            elif one.attempt.state == "closing" and not one.alive:
                self._adopt_stranded(one)
                self._write(gangs.finish_attempt, one.job.id, one.attempt.no)

    def _adopt_stranded(self, one: ActiveAttempt) -> None:
        """A machine may have died between its upload and its word of it: look where that would lie."""
        with self.store.read() as db:
            place = checkpoints.find_stranded_upload(db, one.job.id, one.attempt.no)
        if place is None:
            return
        try:
            text = self.objects.read(f"{place.key}/manifest.json", MANIFEST_BYTES)
            data = self.objects.head(f"{place.key}/data")
            manifest = checkpoints.Manifest.model_validate_json(text)
        except (NotFound, ValueError):
            return
        if data is not None and (data.bytes, data.sha256) == (manifest.bytes, manifest.sha256):
            self._write(checkpoints.adopt_upload, place, manifest, hashlib.sha256(text).hexdigest())

    def _enforce_limits(self, work: OpenWork) -> None:
        """Stop jobs that have run for as long as they may; what they have learned is kept."""
        for one in work.attempts:
            limit = one.spec.limits.time
            if one.wanted and limit is not None and one.trained_us >= limit * 1e6:
                self._stop(one, DesiredState.STOP, "time_limit", f"It has run for {limit:g} s, its limits.time.")

    def _decide_attempts(self, work: OpenWork) -> None:
        """See to ranks that died and machines that were lost."""
        for one in work.attempts:
            action = (
                failures.decide_attempt(one.gang_status(), work.now, self.timeouts)
                if one.wanted
                else failures.NoAction()
            )
            if isinstance(action, failures.NoAction):
                continue
            generation = one.generation.no if one.generation else None
            try:
                self._write(gangs.apply_action, one.job.id, one.attempt.no, generation, action)
            except StaleTransition as stale:
                log.info("%s", stale)

    def _plan(self) -> None:
        """Start who is next and can be paid for; write down why the others wait."""
        with self.store.read() as db:
            snapshot, now = planning.load_snapshot(db, self.timeouts), db.now
        if not snapshot.queue:
            return
        decided = schedule_jobs(snapshot, self._offers(), now, self.timeouts)
        for epoch, start in enumerate(decided.starts, snapshot.epoch):
            try:
                applied = self._write(
                    planning.apply_start, start, epoch, agent_url=self.agent_url, deployment=self.deployment
                )
            except (StaleTransition, BudgetExceeded) as changed:
                log.info("the plan is out of date: %s", changed)
                self._again.set()
                return
            if applied is None:
                return  # another worker planned since; its plan stands
        if decided.waits:
            self._write(planning.apply_waits, decided.waits)

    def _refill(self, work: OpenWork) -> None:
        """Ask again for slots whose machine was refused, a little later each time; and for those whose machine was
        lost, where the others go on meanwhile."""
        for one in work.attempts:
            slots = one.empty_slots(work.now, self.timeouts) if one.wanted else []
            if not slots:
                continue
            wanted = one.spec.resources
            offer = cheapest_offer(self._offers(), wanted.provider, wanted.spot, planning.chosen_type(one.job))
            for slot in slots:
                if offer is None:
                    break
                try:
                    self._write(
                        planning.refill_slot,
                        one.job.id,
                        one.attempt.no,
                        slot,
                        offer,
                        agent_url=self.agent_url,
                        deployment=self.deployment,
                        timeouts=self.timeouts,
                    )
                except BudgetExceeded as short:
                    log.info("slot %s of job %s stays empty: %s", slot, one.job.id, short)

    def _launch(self) -> None:
        with self.store.read() as db:
            machines = launches.load_launchable(db)
        for machine in machines[LAUNCHES_AT_ONCE:]:
            self.offload(machine)
        calls = [self._launchers.submit(self.launch, machine) for machine in machines[:LAUNCHES_AT_ONCE]]
        for call in calls:
            call.result()

    def _fund(self, work: OpenWork) -> None:
        """Extend holds before they run out. A job that can't be funded further checkpoints and pauses, or ends."""
        wanted = [one for one in work.attempts if one.wanted]
        if not wanted:
            return
        with self.store.read() as db:
            held = billing.load_fundings(db, [machine.id for one in wanted for machine in one.machines])
            red = billing.overdrawn_jobs(db, [one.job.id for one in wanted])
        for one in wanted:
            if name := red.get(one.job.id):
                self._out_of_money(one, f"The budget of {name} is overdrawn.")
                continue
            for machine in one.machines:
                if machine.id in held and funding.due_extension(held[machine.id], work.now, self.timeouts):
                    self._extend(one, machine.id)

    def _extend(self, one: ActiveAttempt, machine: UUID) -> None:
        try:
            self._write(billing.post_cost, machine)
            self._write(billing.extend_funding, machine, self.timeouts)
        except BudgetExceeded as short:
            self._out_of_money(one, short.message)
        except StaleTransition:
            pass  # another worker extended it, or it has just ended

    def _out_of_money(self, one: ActiveAttempt, reason: str) -> None:
        self._stop(one, funding.when_budget_exhausted(one.spec.on_budget), "budget", reason)

    def _stop(self, one: ActiveAttempt, desired: DesiredState, stop_reason: jobs.StopReason, reason: str) -> None:
        try:
            mode: Literal["pause", "stop"] = "pause" if desired is DesiredState.PAUSE else "stop"
            self._write(jobs.stop, one.job.id, "fleet", mode, stop_reason=stop_reason, reason=reason)
        except (StaleTransition, WrongState) as stale:
            log.info("%s", stale)

    def _settle(self, work: OpenWork) -> None:
        for machine in work.unbilled:
            self._write(billing.settle_machine, machine)
        for job in work.unsettled:
            self._write(billing.settle_job, job)

    def _work(self) -> OpenWork:
        with self.store.read() as db:
            return load_open_work(db)

    def _offers(self) -> list[Offer]:
        offers = self.cloud.offers()
        if offers != self._prices:
            self._write(save_offers, offers)
            self._prices = offers
        return offers

    def _write(self, function: Callable[Concatenate[Write, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function of the store in a transaction of its own."""
        return self.store.write(lambda db: function(db, *args, **kwargs))

    def _on_commit(self, committed: CommitInfo) -> None:
        if committed.tick_requested:
            self._again.set()
