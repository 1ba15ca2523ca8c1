# SPDX-License-Identifier: Apache-2.0
"""Jobs with a deadline: what is decided about them in each interval."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from uuid import UUID

from sqlalchemy import bindparam, select, update

from shoestring_core import money
from shoestring_core.decide import deadlines
from shoestring_core.decide.billing import bill
from shoestring_core.decide.conditions import unmet_conditions
from shoestring_core.decide.deadlines import (
    DeadlineCase,
    DeadlineDecision,
    DeadlinePlan,
    Market,
    Seen,
    zone_of,
)
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.placement import is_stale
from shoestring_core.decide.refusals import RecentRefusal, RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.spec import JobSpec
from shoestring_core.states import JobState, StopReason
from shoestring_core.store import jobs, ledger
from shoestring_core.store.fleet import billing, rows
from shoestring_core.store.fleet.launches import load_refusals
from shoestring_core.store.tables import (
    AccountRow,
    AttemptRow,
    CheckpointRow,
    DeadlineRow,
    GenerationRow,
    HoldRow,
    JobRow,
    MachineRow,
)
from shoestring_core.store.transactions import Read, Write
from shoestring_core.wording.deadlines import MarketChanged

MIN_STEPS = 20
"""A job's own pace counts once it has trained so many steps."""

PACE_MARGIN = 1.05
"""How much longer the rest may take than at the pace so far."""

USUAL_RATIO = 3.0
"""On-demand / spot, while no spot machine of the type was ever offered."""

TOLERANCE = 0.01
"""Of the worst case: what is committed is changed by no less."""


@dataclass(frozen=True)
class Observed:
    """What a decision begins with: all but what this interval's zones add to what was seen.

    next_at    of the row as it was read
    available  by zone, as far as can be told before a machine is launched there
    corrected  the same of the last interval, as it turned out; None: there was none
    committed  micro-dollars, now; `needed`: by on-demand machines from now on
    """

    job: UUID
    next_at: int
    case: DeadlineCase
    available: dict[str, bool]
    corrected: dict[str, bool] | None
    committed: int
    needed: int


def load_due(db: Read, providers: Collection[str]) -> list[UUID]:
    """Jobs on machines of these providers about which it is to be decided now."""
    return [job for job, provider in db.rows(_DUE, now=db.now) if provider in providers]


def observe(db: Read, job_id: UUID, offers: Sequence[Offer], timeouts: Mapping[str, Timeouts]) -> Observed | None:
    """What there is to decide about a job. None: nothing, as it is paused or over.

    offers  of providers that are served now; timeouts: of these, by name
    """
    row = _load(db, job_id)
    plan, job = DeadlinePlan.from_json(row.plan), rows.load_job(db, job_id)
    if row.next_at is None or job.state in _AT_REST or job.desired_state != "run":
        return None
    run, refusals = _load_run(db, job, plan), load_refusals(db)
    last = DeadlineCase.from_json(row.inputs) if row.inputs else None
    quoted = _read_quotes(job, plan, run, offers, refusals, db.now)
    spot, on_demand = quoted.spot, quoted.on_demand
    account = ledger.job_account(db, job_id)
    committed = ledger.load_commitments(db, [account.id]).get(account.id, 0)
    reserved = committed + _held(db, run.machines)
    case = DeadlineCase(
        plan=plan,
        now=db.now,
        market=run.market,
        zone=run.zone,
        work_left=run.work_left,
        changeover=run.changeover,
        changeover_left=run.changeover_left,
        seen=Seen(),
        seen_before=last.seen_before if last else Seen(),
        price_ratio=_price_ratio(spot) if spot else last.price_ratio if last else USUAL_RATIO,
        on_demand_rate=_rate(on_demand.rate_cap, plan.nodes) if on_demand else last.on_demand_rate if last else 0,
        spot_rate=_rate(spot.price, plan.nodes) if spot else last.spot_rate if last else 0,
        money_left=_money_left(ledger.ancestors(db, account.id), reserved),
        interval=deadlines.INTERVAL,
    )
    needed = committed
    if on_demand is not None:
        whole = deadlines.cost_on_demand(on_demand, plan.nodes, run.work_left, run.changeover, timeouts[plan.provider])
        needed = max(0, whole - (reserved - committed))
    return Observed(
        job=job_id,
        next_at=row.next_at,
        case=case,
        available=quoted.available,
        corrected=_as_it_was(last, refusals, plan) if last else None,
        committed=committed,
        needed=needed,
    )


def record_decision(db: Write, observed: Observed, case: DeadlineCase, decision: DeadlineDecision) -> bool:
    """Keep a decision, and what on-demand machines need from now on; a job that is to train elsewhere leaves its
    machines after a checkpoint. False: another worker has decided, or the job has moved."""
    job = rows.lock_job(db, observed.job)
    mine = update(DeadlineRow).where(DeadlineRow.job == job.id, DeadlineRow.next_at == observed.next_at)
    row = _load(db, job.id)
    changed = (row.market, row.zone) != (decision.market, decision.zone)
    values = {
        "market": decision.market,
        "zone": decision.zone,
        "because": decision.because,
        "inputs": case.as_json(),
        "changes": row.changes + changed,
        "next_at": _next_at(case),
    }
    if job.state in _AT_REST or job.desired_state != "run" or row.next_at != observed.next_at:
        return False
    if leaves := case.market not in ("wait", decision.market) and job.state in (JobState.RUNNING, JobState.LAUNCHING):
        reason = MarketChanged(decision.market, decision.because, case.plan.deadline)
        jobs.transition(db, job, JobState.STOPPING, actor="scheduler", reason=reason, stop_reason=StopReason.MARKET)
    if not rows.try_update(db, mine.values(**values)):
        return False
    if leaves:
        attempt = update(AttemptRow).where(AttemptRow.job == job.id, AttemptRow.number == job.attempt)
        db.execute(attempt.values(market_change=case.as_json()))
    if abs(observed.needed - observed.committed) >= TOLERANCE * case.plan.worst_case:
        ledger.adjust_commitment(db, ledger.job_account(db, job.id).id, observed.needed)
    if changed:
        db.request_tick()
    return True


def postpone(db: Write, job: UUID) -> None:
    """Look at a job again after an interval, about which there is nothing to decide now."""
    later = update(DeadlineRow).where(DeadlineRow.job == job, DeadlineRow.next_at <= db.now)
    rows.try_update(db, later.values(next_at=db.now + deadlines.INTERVAL, market="wait", zone=""))


_AT_REST = (JobState.PAUSED, JobState.ENDED, JobState.AWAITING_APPROVAL)


@dataclass(frozen=True)
class _Run:
    """Where a job is: as the fields of DeadlineCase. `machines`: those that are alive or not billed yet."""

    market: Market
    zone: str
    machines: tuple[MachineRow, ...]
    work_left: int
    changeover: int
    changeover_left: int


def _load_run(db: Read, job: JobRow, plan: DeadlinePlan) -> _Run:
    machines = list(db.sql.scalars(select(MachineRow).where(MachineRow.job == job.id).order_by(MachineRow.id)))
    generations = list(
        db.sql.scalars(select(GenerationRow).where(GenerationRow.job == job.id).order_by(GenerationRow.number))
    )
    closed = dict(db.sql.execute(select(AttemptRow.number, AttemptRow.closed_at).where(AttemptRow.job == job.id)).all())
    alive = [one for one in machines if one.state in rows.ALIVE]
    in_use = [one for one in alive if one.attempt == job.attempt] if job.state in _WITH_MACHINES else []
    began = [one.first_step_at for one in generations if one.attempt == job.attempt and one.first_step_at]
    elapsed = 0
    if in_use and not began:
        elapsed = db.now - min(one.launched_at or one.created_at for one in in_use)
    measured = _measured_changeover(machines, generations, closed, plan)
    changeover = max(measured or plan.changeover, deadlines.rounded_up(elapsed))
    return _Run(
        market="wait" if not in_use else "spot" if in_use[0].market == "spot" else "on_demand",
        zone=zone_of(in_use[0].region, in_use[0].zone) if in_use and in_use[0].market == "spot" else "",
        machines=tuple(one for one in machines if one.billed_at is None),
        work_left=_work_left(db, job, plan, generations),
        changeover=changeover,
        changeover_left=0 if began or not in_use else max(0, changeover - elapsed),
    )


_WITH_MACHINES = (JobState.LAUNCHING, JobState.RUNNING)


def _measured_changeover(
    machines: Iterable[MachineRow],
    generations: Iterable[GenerationRow],
    closed: Mapping[int, int | None],
    plan: DeadlinePlan,
) -> int | None:
    """The longest that a start took, of the last three attempts, with the time that the machines before take to end.
    None: there was no start yet."""
    launched: dict[int, int] = {}
    ended: dict[int, int] = {}
    for one in machines:
        if one.launched_at is not None:
            launched[one.attempt] = min(one.launched_at, launched.get(one.attempt, one.launched_at))
        if one.ended_at is not None:
            ended[one.attempt] = max(one.ended_at, ended.get(one.attempt, 0))
    first_steps: dict[int, int] = {}
    for generation in generations:
        if generation.first_step_at is not None:
            first_steps.setdefault(generation.attempt, generation.first_step_at)
    starts = [first_steps[number] - at for number, at in sorted(launched.items()) if number in first_steps][-3:]
    if not starts:
        return None
    ends = [at - since for number, at in sorted(ended.items()) if (since := closed.get(number)) is not None][-3:]
    return deadlines.rounded_up(max(starts) + max([plan.teardown, *ends]))


def _work_left(db: Read, job: JobRow, plan: DeadlinePlan, generations: Sequence[GenerationRow]) -> int:
    """What is left of the work by the steps that count; at the job's own pace, once it is known."""
    current = generations[-1] if generations else None
    if current is not None and current.number == job.generation and current.state == "formed":
        step = max(current.start_step, current.last_step or 0)
    else:
        checkpoint = db.sql.get(CheckpointRow, job.checkpoint) if job.checkpoint else None
        step = checkpoint.step if checkpoint else 0
    if not job.steps_total:
        return plan.work
    steps, spent = 0, 0
    for one in generations:
        if one.first_step_at is not None and one.last_step is not None and one.last_step > one.start_step:
            steps, spent = steps + one.last_step - one.start_step, spent + (one.ended_at or db.now) - one.first_step_at
    left = max(0, job.steps_total - step)
    if steps < max(MIN_STEPS, job.steps_total // 20):
        return round(plan.work * left / job.steps_total)
    return round(PACE_MARGIN * left * spent / steps)


@dataclass(frozen=True)
class _Quotes:
    """What machines of the job's type are offered at now.

    spot       the cheapest offer below the on-demand price, of a zone with machines if there is one
    on_demand  the cheapest
    available  as `Observed.available`
    """

    spot: Offer | None
    on_demand: Offer | None
    available: dict[str, bool]


def _read_quotes(
    job: JobRow, plan: DeadlinePlan, run: _Run, offers: Iterable[Offer], refusals: Collection[RecentRefusal], now: int
) -> _Quotes:
    spec = JobSpec.from_stored(job.spec)
    requirements = Requirements.of(spec.resources, rate=spec.limits.rate)
    own = [one for one in offers if one.provider == plan.provider and one.type == plan.type]
    on_demand = _offers_of(own, replace(requirements, spot="never"), now)
    spot = [] if requirements.spot == "never" else _offers_of(own, replace(requirements, spot="only"), now)
    worthwhile = [one for one in spot if Decimal(one.price) < Decimal(one.on_demand_price)]
    available = {zone_of(one.region, one.zone): not _is_refused(one, refusals, now) for one in worthwhile}
    if run.market == "spot":
        available[run.zone] = True
    best = min(
        worthwhile,
        key=lambda one: (not available[zone_of(one.region, one.zone)], Decimal(one.price)),
        default=None,
    )
    return _Quotes(best, min(on_demand, key=lambda one: Decimal(one.price), default=None), available)


def _offers_of(offers: Iterable[Offer], requirements: Requirements, now: int) -> list[Offer]:
    return [one for one in offers if not is_stale(one, now) and not any(unmet_conditions(one, requirements))]


def _is_refused(offer: Offer, refusals: Collection[RecentRefusal], now: int) -> bool:
    return any(one.concerns(offer) and now < one.at + one.kind.memory for one in refusals)


def _as_it_was(last: DeadlineCase, refusals: Collection[RecentRefusal], plan: DeadlinePlan) -> dict[str, bool]:
    """The zones of the last interval: one that refused a launch since then had no machines."""
    refused = {
        zone_of(one.region, one.zone)
        for one in refusals
        if one.at >= last.now and one.kind in _NONE_THERE
        and (one.provider, one.type, one.market) == (plan.provider, plan.type, "spot")
    }  # fmt: skip
    return {zone.name: zone.available and zone.name not in refused for zone in last.seen.zones}


_NONE_THERE = (RefusalKind.CAPACITY, RefusalKind.PRICE)


def _held(db: Read, machines: Sequence[MachineRow]) -> int:
    """What is held for machines and not spent yet, posted or not."""
    spent = {one.id: sum(line.amount for line in bill(billing.evidence(one), db.now)) for one in machines}
    holds = db.sql.scalars(select(HoldRow).where(HoldRow.machine.in_(spent), HoldRow.state == "open"))
    return sum(max(0, one.amount - max(one.consumed, spent[one.machine])) for one in holds)


def _price_ratio(offer: Offer) -> float:
    """On-demand / spot, rounded so that what was computed for a price serves for those near it."""
    return max(1.05, round(float(Decimal(offer.on_demand_price) / Decimal(offer.price)) * 20) / 20)


def _rate(price: str, nodes: int) -> int:
    return nodes * money.cost(price, money.HOUR)


def _money_left(accounts: Iterable[AccountRow], reserved: int) -> int | None:
    """What is reserved for a job, and free in the budget that has least; None: none has a limit."""
    free = [row.limit_micro - row.posted - row.held for row in accounts if row.limit_micro is not None]
    return reserved + max(0, min(free)) if free else None


def _next_at(case: DeadlineCase) -> int:
    """The next moment that is whole intervals before the deadline."""
    left = case.plan.deadline - case.now
    if left <= 0:
        return case.now + case.interval
    return case.plan.deadline - (-(-left // case.interval) - 1) * case.interval


def _load(db: Read, job: UUID) -> DeadlineRow:
    return db.values(DeadlineRow, _BY_JOB, job=job)[0]


_BY_JOB = select(DeadlineRow).where(DeadlineRow.job == bindparam("job"))
_DUE = (
    select(DeadlineRow.job, DeadlineRow.plan["provider"].as_string())
    .where(DeadlineRow.next_at <= bindparam("now"))
    .order_by(DeadlineRow.job)
)
