# SPDX-License-Identifier: Apache-2.0
"""Attempts, machines, generations and their members: the only code that writes their rows.

Decisions are fenced: each guarded UPDATE repeats the whole condition of its decision, and does nothing if that no
longer holds. Facts (what a provider says about a machine) are always written, guarded by the machine's id alone.
Whatever decides about a job's gang touches the job's row first, so that two deciders come one after the other.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Update, exists, func, insert, or_, select, update

from shoestring_core import wire
from shoestring_core.decide import bill, funding, losses, orders, reconcile
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, Seen
from shoestring_core.decide.schedule import Balance, Snapshot, Start, Wait, Waiting
from shoestring_core.decide.terms import S, Terms
from shoestring_core.errors import AgentRefused, StaleTransition
from shoestring_core.spec import JobSpec
from shoestring_core.states import (
    AttemptState,
    GenerationState,
    JobState,
    MachineState,
    Want,
)
from shoestring_core.store import jobs, ledger
from shoestring_core.store.engine import Read, Write
from shoestring_core.store.ids import new_id
from shoestring_core.store.tables import (
    Account,
    Attempt,
    Checkpoint,
    Generation,
    Hold,
    Job,
    Machine,
    Member,
    Price,
    Scheduler,
    Service,
)

ALIVE = ("planned", "calling", "up", "ending")
ACTIVE = ("launching", "running", "stopping")


# --- planning ---------------------------------------------------------------------------------------------


def snapshot(db: Read, terms: Terms) -> Snapshot:
    """What the scheduler decides from: the queue in order, the accounts that pay, the machines that live."""
    epoch = db.sql.scalar(select(Scheduler.epoch)) or 0
    queued = list(
        db.sql.scalars(select(Job).where(Job.state == "queued", Job.want == "run").order_by(Job.queued_at, Job.id))
    )
    if not queued:
        return Snapshot(epoch, (), {}, {})
    ids = [job.id for job in queued]
    attempts = _by_job(db.sql.scalars(select(Attempt).where(Attempt.job.in_(ids)).order_by(Attempt.no)))
    machines = _by_job(db.sql.scalars(select(Machine).where(Machine.job.in_(ids))))
    accounts = {
        row.id: row for row in db.sql.scalars(select(Account).where(Account.kind.in_(("org", "team", "member"))))
    }
    leaves = {
        row.owner: row
        for row in db.sql.scalars(
            select(Account).where(Account.kind == "job", Account.owner.in_([str(job) for job in ids]))
        )
    }
    accounts |= {row.id: row for row in leaves.values()}
    queue = tuple(
        _waiting(job, _path(leaves[str(job.id)], accounts), attempts[job.id], machines[job.id], terms) for job in queued
    )
    alive = select(Machine.provider, func.count()).where(Machine.state.in_(ALIVE)).group_by(Machine.provider)
    taken = {provider: count for provider, count in db.sql.execute(alive).all()}  # noqa: C416 - these are rows
    return Snapshot(epoch, queue, {row.id: _balance(db, row) for row in accounts.values()}, taken)


def apply_start(db: Write, start: Start, epoch: int, *, agent_url: str, deployment: str) -> list[UUID] | None:
    """Open the attempt: money held and an intent for each machine, all or nothing. None: somebody else planned since.

    Raises StaleTransition if the job is not queued any more, BudgetExceeded if its money went elsewhere.
    """
    claim = update(Scheduler).where(Scheduler.epoch == epoch).values(epoch=epoch + 1)
    if not _touched(db, claim):
        return None
    job = _job(db, start.job)
    if start.attempt != job.attempt + (not start.reopened):
        raise StaleTransition(f"Job {start.job} has had another attempt since it was planned.")
    job = jobs.transition(
        db,
        job,
        JobState.LAUNCHING,
        actor="scheduler",
        attempt=start.attempt,
        wait_reason=None,
        wait_text=None,
        reason=f"attempt {start.attempt}: {start.nodes} × {start.offer.type} ({start.offer.market})",
    )
    _open_attempt(db, start, epoch)
    machines = [
        _intend(db, job.id, start.attempt, slot, start.offer, start.funded_until, agent_url, deployment)
        for slot in range(start.nodes)
    ]
    account = ledger.job_account(db, job.id).id
    cap, until = start.offer.on_demand_price, start.funded_until
    ledger.place_holds(db, [ledger.Wanted(machine, account, cap, start.hold, until) for machine in machines])
    for machine in machines:
        _machine_event(db, job, start.attempt, machine, "planned")
    return machines


def apply_waits(db: Write, waits: Iterable[Wait]) -> None:
    """Write down why jobs wait, where that has changed. A position in the queue that changes is no event."""
    for wait in sorted(waits, key=lambda wait: wait.job):
        job = db.sql.get(Job, wait.job)
        if job is None or job.state != JobState.QUEUED or (job.wait_reason, job.wait_text) == (wait.reason, wait.text):
            continue
        changed = update(Job).where(Job.id == wait.job, Job.state == "queued")
        if (
            _touched(db, changed.values(wait_reason=wait.reason, wait_text=wait.text))
            and job.wait_reason != wait.reason
        ):
            db.event(
                team=job.team_id,
                kind="wait",
                actor="scheduler",
                reason=wait.text,
                job=job.id,
                data={"from": job.wait_reason, "to": wait.reason},
            )


def refill(
    db: Write, job_id: UUID, attempt_no: int, slot: int, offer: Offer, *, agent_url: str, deployment: str, terms: Terms
) -> UUID | None:
    """Another machine row for a slot whose last one is void. None: not wanted any more, or already there.

    Raises BudgetExceeded.
    """
    job, attempt = _claim(db, job_id), _attempt(db, job_id, attempt_no)
    if not _wanted(job, attempt) or slot in {row.slot for row in _gang(db, job_id, attempt_no)}:
        return None
    until = db.now + terms.fund_lease
    machine = _intend(db, job_id, attempt_no, slot, offer, until, agent_url, deployment)
    ledger.place_hold(
        db,
        machine=machine,
        account=ledger.job_account(db, job_id).id,
        rate_cap=offer.on_demand_price,
        amount=funding.first_hold(offer.on_demand_price, terms),
        funded_until=until,
    )
    _machine_event(db, job, attempt_no, machine, "planned")
    return machine


def record_prices(db: Write, offers: Iterable[Offer]) -> None:
    """Keep each price with its time and source, where it differs from the last one known."""
    for offer in offers:
        place = {
            "provider": offer.provider,
            "region": offer.region,
            "zone": offer.zone,
            "type": offer.type,
            "market": offer.market,
        }
        latest = db.sql.scalar(select(Price.amount).filter_by(**place).order_by(Price.valid_from.desc()).limit(1))
        if latest != offer.price:
            price = {"amount": offer.price, "unit": "hour", "source": offer.source, "simulated": offer.simulated}
            db.add_new(Price, **place, **price, valid_from=db.now, fetched_at=db.now)


def _waiting(
    job: Job, path: tuple[UUID, ...], attempts: list[Attempt], machines: list[Machine], terms: Terms
) -> Waiting:
    spec = JobSpec.from_stored(job.spec)
    bought = {row.attempt for row in machines if row.launched_at is not None}
    last = attempts[-1] if attempts else None
    reopened = last is not None and last.no not in bought
    alive = sum(row.state in ALIVE for row in machines)
    winding_down = last is not None and last.state != AttemptState.CLOSED
    return Waiting(
        job=job.id,
        nodes=spec.resources.nodes,
        provider=spec.resources.provider,
        spot=spec.resources.spot,
        path=path,
        attempt=job.attempt if reopened else job.attempt + 1,
        reopened=reopened,
        ending=alive or int(winding_down),
        not_before=_not_before(attempts, terms),
        delay_text="The last attempt trained nothing. It is tried again by itself, a little later each time.",
    )


CAPACITY_DELAY = 5 * S
"""What a provider could not give a moment ago, it can't give at once; half a gang is paid for while we ask."""


def _not_before(attempts: list[Attempt], terms: Terms) -> int:
    """When the next attempt may open: after a delay that grows with the attempts in a row that trained nothing."""
    failed = []
    for attempt in reversed(attempts):
        if attempt.trained or attempt.reason not in ("lost", "no_answer", "capacity"):
            break
        failed.append(attempt)
    if not failed or failed[0].closed_at is None:
        return 0
    first = CAPACITY_DELAY if failed[0].reason == "capacity" else S // 2
    return failed[0].closed_at + losses.delay(len(failed), terms, first)


def _open_attempt(db: Write, start: Start, epoch: int) -> None:
    opening = {
        "state": AttemptState.OPEN,
        "reason": None,
        "plan_json": start.case.as_json(),
        "epoch": epoch + 1,
        "opened_at": db.now,
        "closed_at": None,
    }
    if start.reopened:
        same = update(Attempt).where(Attempt.job == start.job, Attempt.no == start.attempt, Attempt.state == "closed")
        if not _touched(db, same.values(**opening)):
            raise StaleTransition(f"attempt {start.attempt} of job {start.job} is not closed")
        return
    db.sql.execute(insert(Attempt).values(job=start.job, no=start.attempt, trained=False, **opening))


def _intend(
    db: Write, job: UUID, attempt: int, slot: int, offer: Offer, funded_until: int, agent_url: str, deployment: str
) -> UUID:
    """Insert a machine row: one launch intent, with everything that the call will send but the boot token."""
    machine = new_id()
    last = db.sql.scalar(select(func.max(Machine.ordinal)).where(Machine.job == job, Machine.attempt == attempt))
    launch = {
        "tags": {DEPLOYMENT_TAG: deployment, "job": str(job), "attempt": str(attempt), "slot": str(slot)},
        "type": offer.type,
        "market": offer.market,
        "price": offer.price,
        "user_data": {"server_url": agent_url, "machine": str(machine)},
    }
    db.sql.execute(
        insert(Machine).values(
            id=machine,
            job=job,
            attempt=attempt,
            ordinal=0 if last is None else last + 1,
            slot=slot,
            provider=offer.provider,
            region=offer.region,
            zone=offer.zone,
            type=offer.type,
            market=offer.market,
            price=offer.price,
            on_demand_price=offer.on_demand_price,
            launch_json=launch,
            state=MachineState.PLANNED,
            funded_until=funded_until,
            acked_seq=0,
            created_at=db.now,
        )
    )
    return machine


def _path(leaf: Account, accounts: dict[UUID, Account]) -> tuple[UUID, ...]:
    path = [leaf.id]
    while (parent := accounts[path[-1]].parent) is not None:
        path.append(parent)
    return tuple(path)


def _balance(db: Read, row: Account) -> Balance:
    name = "this job" if row.kind == "job" else ledger.title(db, row)
    return Balance(row.id, name, row.limit_micro, row.posted, row.held, row.overdraft)


# --- launching --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """What the launcher sends, and until when it may. The same bytes each time, once the boot token is filled in."""

    machine: UUID
    provider: str
    region: str
    zone: str
    request: dict[str, Any]
    call_by: int
    """Fences the answer: only the call that still holds the row may say that it was refused."""
    window: int
    """µs from now until `call_by`."""


def to_launch(db: Read) -> list[UUID]:
    """Machines that a launcher should call for now: wanted, and no call under way."""
    return list(db.sql.scalars(select(Machine.id).where(_callable(db.now), _is_wanted()).order_by(Machine.id)))


def begin_call(db: Write, machine: UUID, terms: Terms) -> Launch | None:
    """Say that a provider call is about to be made. None: it isn't wanted, or another launcher is at it."""
    row = db.sql.get(Machine, machine)
    if row is None:
        return None
    call_by = db.now + terms.call
    again = row.state == MachineState.CALLING  # a call was made whose outcome nobody knows
    guarded = update(Machine).where(Machine.id == machine, _callable(db.now), _is_wanted())
    values = {"state": MachineState.CALLING, "call_by": call_by}
    if not _touched(db, guarded.values(**values, refusal=_UNKNOWN if again else None)):
        return None
    return Launch(machine, row.provider, row.region, row.zone, row.launch_json, call_by, terms.call)


def record_launch(db: Write, machine: UUID, seen: Seen, terms: Terms) -> None:
    """The provider made the machine."""
    record_facts(db, machine, seen, terms)


def record_unknown(db: Write, launch: Launch) -> None:
    """The call ended without an answer: the machine may exist. It is called for again, with the same bytes."""
    over = update(Machine).where(
        Machine.id == launch.machine, Machine.state == "calling", Machine.call_by == launch.call_by
    )
    _touched(db, over.values(call_by=db.now, refusal=_UNKNOWN))


def record_refusal(db: Write, launch: Launch, code: str, message: str) -> None:
    """The provider refused. The row is void at once, unless an earlier call may still have made a machine."""
    row = db.sql.get(Machine, launch.machine)
    mine = (Machine.id == launch.machine, Machine.state == "calling", Machine.call_by == launch.call_by)
    if row is None:
        return
    refusal = f"{code}: {message}"
    if row.refusal is not None:
        _touched(db, update(Machine).where(*mine).values(call_by=db.now, refusal=refusal))
        return
    _void(db, row, mine, refusal)


def void(db: Write, machine: UUID, reason: str, listed_at: int, terms: Terms) -> bool:
    """Give up a machine that was never bought: not called for and unwanted, or refused or unwanted and not in the
    provider's list of `listed_at`, when every call was long over."""
    row = db.sql.get(Machine, machine)
    if row is None:
        return False
    unwanted = ~_is_wanted()
    guard = or_(
        (Machine.state == "planned") & unwanted,
        (Machine.state == "calling")
        & (Machine.call_by <= listed_at - terms.consistency)
        & or_(unwanted, Machine.refusal.is_not(None) & (Machine.refusal != _UNKNOWN)),
    )
    return _void(db, row, (Machine.id == machine, guard), row.refusal or reason)


_UNKNOWN = "unknown"


def _callable(now: int) -> Any:
    """Not called yet, or called with an unknown outcome and that call is over."""
    lapsed = (Machine.state == "calling") & (Machine.call_by <= now)
    return or_(Machine.state == "planned", lapsed & or_(Machine.refusal.is_(None), Machine.refusal == _UNKNOWN))


def _is_wanted() -> Any:
    """The machine's attempt is open and its job runs."""
    open_attempt = select(Attempt.no).where(
        Attempt.job == Machine.job, Attempt.no == Machine.attempt, Attempt.state == "open"
    )
    running = select(Job.id).where(Job.id == Machine.job, Job.state.in_(("launching", "running")), Job.want == "run")
    return exists(open_attempt) & exists(running)


def _void(db: Write, row: Machine, guard: tuple[Any, ...], refusal: str) -> bool:
    if not _touched(db, update(Machine).where(*guard).values(state=MachineState.VOID, refusal=refusal)):
        return False
    ledger.release(db, row.id, refusal)
    _machine_event(db, _job(db, row.job), row.attempt, row.id, "void", reason=refusal)
    db.hint()
    return True


# --- what the provider says ---------------------------------------------------------------------------------


def record_facts(db: Write, machine: UUID, seen: Seen, terms: Terms) -> None:
    """Write down what the provider says about a machine. Guarded by its id alone; the dead stay dead."""
    row = db.sql.get(Machine, machine)
    if row is None or row.state in (MachineState.GONE, MachineState.VOID):
        return
    state = MachineState(row.state)
    if seen.state == "ended":
        state = MachineState.GONE
    elif seen.state == "stopping":
        state = MachineState.ENDING
    elif state in (MachineState.PLANNED, MachineState.CALLING):
        state = MachineState.UP
    facts: dict[str, Any] = {"provider_id": seen.id, "launched_at": seen.launched_at, "state": state}
    if row.alive_until is None:
        facts["alive_until"] = db.now + terms.boot
    if state is MachineState.GONE:
        ended_at = max(seen.ended_at or db.now, seen.launched_at)
        facts |= {"ended_at": ended_at, "end_cause": seen.end_cause, "end_evidence": "provider"}
    _touched(db, update(Machine).where(Machine.id == machine, Machine.state.not_in(("gone", "void"))).values(**facts))
    if state != row.state:
        _machine_event(db, _job(db, row.job), row.attempt, machine, state, cause=seen.end_cause)
        db.hint()


def infer_gone(db: Write, machine: UUID) -> None:
    """The provider has forgotten a machine that it once showed: it is gone, at the latest since its funding ended."""
    row = db.sql.get(Machine, machine)
    if row is None or row.state not in ("up", "ending"):
        return
    last = max(row.launched_at or 0, min(db.now, row.funded_until or db.now))
    gone = update(Machine).where(Machine.id == machine, Machine.state.in_(("up", "ending")))
    if _touched(db, gone.values(state=MachineState.GONE, ended_at=last, end_evidence="inferred")):
        _machine_event(
            db, _job(db, row.job), row.attempt, machine, "gone", reason="the provider does not know it any more"
        )
        db.hint()


def begin_end(db: Write, machine: UUID, reason: str, *, lease: bool) -> bool:
    """Decide to end a machine through the provider. False: a report has renewed its lease in the meantime."""
    row = db.sql.get(Machine, machine)
    if row is None:
        return False
    if row.state == MachineState.ENDING:
        return True
    guarded = update(Machine).where(Machine.id == machine, Machine.state == "up")
    if lease:
        guarded = guarded.where(Machine.alive_until <= db.now)
    if not _touched(db, guarded.values(state=MachineState.ENDING)):
        return False
    _machine_event(db, _job(db, row.job), row.attempt, machine, "ending", reason=reason)
    return True


def rows(db: Read) -> list[reconcile.Row]:
    """Every machine that isn't dead, as the reconciler wants it."""
    found = db.sql.execute(
        select(Machine, Attempt, Job)
        .join(Attempt, (Attempt.job == Machine.job) & (Attempt.no == Machine.attempt))
        .join(Job, Job.id == Machine.job)
        .where(Machine.state.in_(ALIVE))
        .order_by(Machine.id)
    )
    return [_row(machine, attempt, job) for machine, attempt, job in found]


def _row(machine: Machine, attempt: Attempt, job: Job) -> reconcile.Row:
    return reconcile.Row(
        id=machine.id,
        provider=machine.provider,
        region=machine.region,
        state=MachineState(machine.state),
        provider_id=machine.provider_id,
        wanted=_wanted(job, attempt),
        unwanted_since=attempt.closed_at or _NEVER,
        refused=machine.refusal not in (None, _UNKNOWN),
        redeemed=machine.redeemed_at is not None,
        call_by=machine.call_by or 0,
        alive_until=machine.alive_until,
        funded_until=machine.funded_until,
    )


_NEVER = 2**62


# --- agents -------------------------------------------------------------------------------------------------


def redeem(
    db: Write, machine_id: UUID, token_ok: bool, session_hash: str, address: str, hardware: dict[str, Any], terms: Terms
) -> Machine | None:
    """Bind a machine's session: the first wins, the same again succeeds. None: refused, and the team is alarmed.

    Commit either way, then answer None with AgentRefused. The gang's first generation opens when its last slot redeems.
    Raises AgentRefused for a machine that doesn't exist.
    """
    found = db.sql.get(Machine, machine_id)
    if found is None:
        raise AgentRefused("No such machine.")
    job = _claim(db, found.job)
    bind = update(Machine).where(
        Machine.id == machine_id, Machine.session_hash.is_(None), Machine.state.in_(("calling", "up"))
    )
    # The job's row is ours now: whoever redeems for the same gang at this moment comes before or after.
    machine = _machine(db, machine_id)
    fresh = machine.session_hash is None and machine.state in ("calling", "up")
    if not token_ok or not (fresh or hmac.compare_digest(machine.session_hash or "", session_hash)):
        why = "a wrong boot token" if not token_ok else "a second session secret"
        db.event(
            team=job.team_id,
            kind="alarm",
            actor="agent",
            reason=f"Refused {why} for a machine.",
            job=job.id,
            attempt=machine.attempt,
            ref=str(machine_id),
        )
        return None
    if not fresh:
        return machine
    attempt = _attempt(db, job.id, machine.attempt)
    others = [row for row in _gang(db, job.id, attempt.no) if row.id != machine_id]
    size = JobSpec.from_stored(job.spec).resources.nodes
    complete = len(others) == size - 1 and all(
        row.redeemed_at is not None and row.state in ("calling", "up") for row in others
    )
    if complete and _wanted(job, attempt):
        open_generation(db, job.id, attempt.no, "the gang is complete")
    _touched(
        db,
        bind.values(
            session_hash=session_hash,
            redeemed_at=db.now,
            address=address,
            hardware=hardware,
            last_report_at=db.now,
            alive_until=db.now + terms.lease,
        ),
    )
    _machine_event(db, job, attempt.no, machine_id, "redeemed")
    return _machine(db, machine_id)


def authenticate(db: Read, machine_id: UUID, session: str) -> Machine:
    """The machine whose session this is. Raises AgentRefused."""
    machine = db.sql.get(Machine, machine_id)
    if machine is None or not hmac.compare_digest(machine.session_hash or "", wire.session_hash(session)):
        raise AgentRefused("This is not the session of that machine.")
    return machine


def renew(db: Write, machine_id: UUID, terms: Terms) -> Machine:
    """A sign of life. Writes the machine's row alone; what is ending is not brought back."""
    renewed = update(Machine).where(Machine.id == machine_id, Machine.state.in_(("calling", "up")))
    _touched(db, renewed.values(last_report_at=db.now, alive_until=db.now + terms.lease))
    return _machine(db, machine_id)


def record_notice(db: Write, machine_id: UUID, at: int) -> None:
    """The provider told the machine that it will be taken at `at` (µs UTC by the machine's clock)."""
    machine = _machine(db, machine_id)
    noticed = update(Machine).where(Machine.id == machine_id, Machine.notice_at.is_(None))
    if _touched(db, noticed.values(notice_at=at)):
        _machine_event(db, _job(db, machine.job), machine.attempt, machine_id, "notice")
        db.hint()


def report_member(db: Write, machine_id: UUID, said: wire.Member) -> bool:
    """What a machine says about its part in a generation. True: the generation formed by it, so all orders changed.

    What is said about an older generation is kept, and moves nothing.
    """
    machine = _machine(db, machine_id)
    job = _claim(db, machine.job)
    member = db.sql.scalar(
        select(Member).where(Member.job == job.id, Member.generation == said.generation, Member.machine == machine_id)
    )
    if member is None:
        return False
    if said.state == "ready" and member.ready_at is None and said.generation == job.generation:
        return _ready(db, job, member, said.port)
    if said.state == "exited" and member.exited_at is None:
        exits = [end.model_dump(mode="json") for end in said.exits]
        _touched(db, _of(member).where(Member.exited_at.is_(None)).values(exited_at=db.now, exits=exits))
        db.event(
            team=job.team_id,
            kind="generation",
            actor="agent",
            job=job.id,
            attempt=machine.attempt,
            generation=said.generation,
            ref=str(machine_id),
            reason="; ".join(sorted({end.outcome for end in said.exits})),
            data={"state": "exited", "exits": exits},
        )
        db.hint()
    return False


def order(db: Read, machine_id: UUID, get_url: Callable[[str], str], reason: str = "") -> tuple[wire.Order, str]:
    """What the service wants of the machine now, and an etag that changes when that does (not when a URL is signed).

    get_url    signs an object's key for download
    """
    machine = _machine(db, machine_id)
    job, attempt = _job(db, machine.job), _attempt(db, machine.job, machine.attempt)
    generation = db.sql.get(Generation, (job.id, job.generation))
    members = _members(db, job.id, job.generation) if generation and generation.attempt == attempt.no else []
    mine = next((member for member in members if member.machine == machine_id), None)
    directive = orders.order_for(
        orders.Standing(
            machine=MachineState(machine.state),
            job=JobState(job.state),
            current=machine.attempt == job.attempt,
            attempt=AttemptState(attempt.state),
            generation=job.generation,
            part=orders.Part(GenerationState(generation.state), mine.exited_at is not None)
            if mine and generation
            else None,
            reason=reason or job.want_reason or attempt.reason or "",
        )
    )
    run = None
    if directive.kind == "run" and mine and generation:
        run = _run(db, job, generation, mine, len(members), get_url)
    tag = f"{machine_id}:{machine.attempt}:{directive.kind}:{directive.generation}"
    etag = hashlib.sha256(tag.encode()).hexdigest()[:16]
    return wire.Order(kind=directive.kind, generation=directive.generation, reason=directive.reason, run=run), etag


def _ready(db: Write, job: Job, member: Member, port: int | None) -> bool:
    generation = db.sql.get(Generation, (job.id, member.generation))
    if generation is None or generation.state != GenerationState.FORMING:
        return False
    others = [row for row in _members(db, job.id, generation.no) if row.node_rank != member.node_rank]
    complete = all(row.ready_at is not None for row in others)
    attempt = _attempt(db, job.id, generation.attempt)
    if complete and _wanted(job, attempt):
        _form(db, job, generation, [*others, member], {member.node_rank: port})
    _touched(db, _of(member).where(Member.ready_at.is_(None)).values(ready_at=db.now, port=port))
    return complete


def _form(db: Write, job: Job, generation: Generation, members: list[Member], ports: dict[int, int | None]) -> None:
    first = min(members, key=lambda row: row.node_rank)
    address = _machine(db, first.machine).address
    port = ports.get(first.node_rank, first.port)
    if job.state == JobState.LAUNCHING:
        jobs.transition(db, job, JobState.RUNNING, actor="fleet", reason=f"generation {generation.no} formed")
    forming = update(Generation).where(
        Generation.job == job.id, Generation.no == generation.no, Generation.state == "forming"
    )
    _touched(db, forming.values(state=GenerationState.FORMED, master=f"{address}:{port}", formed_at=db.now))
    _generation_event(db, job, generation.no, generation.attempt, "formed")
    db.hint()


def _run(
    db: Read, job: Job, generation: Generation, mine: Member, nodes: int, get_url: Callable[[str], str]
) -> wire.Run:
    address, _, port = (generation.master or ":0").rpartition(":")
    start = db.sql.get(Checkpoint, generation.start_checkpoint) if generation.start_checkpoint else None
    resume = None
    if start is not None:
        resume = wire.Resume(
            step=start.step,
            data_url=get_url(f"{start.object_key}/data"),
            manifest_url=get_url(f"{start.object_key}/manifest.json"),
            manifest_sha256=start.manifest_sha,
        )
    return wire.Run(
        node_rank=mine.node_rank,
        nnodes=nodes,
        nproc=mine.nproc,
        master_addr=address,
        master_port=int(port),
        task=task(job, generation.no),
        resume=resume,
    )


AUTO_CHECKPOINT_S = 15.0
"""`checkpoint.every: auto`. Young's rule would wait longer; what is lost with a machine weighs more on short jobs."""


def task(job: Job, generation: int) -> dict[str, Any]:
    """The task of a generation's ranks: task.json without local paths."""
    spec = JobSpec.from_stored(job.spec)
    every = spec.checkpoint.every
    return {
        "format": 1,
        "job": str(job.id),
        "generation": generation,
        "recipe": spec.recipe,
        "params": spec.params,
        "data": {"train": spec.data.train, "format": spec.data.format} if spec.data else None,
        "seed": spec.params.get("seed", 0),
        "precision": spec.params.get("precision", "auto"),
        "resume": None,
        "init": None,
        "checkpoint": {"every_s": AUTO_CHECKPOINT_S if isinstance(every, str) else every, "every_steps": None},
        "goal": spec.goal.model_dump(mode="json", include={"metric", "reach", "then"}) if spec.goal else None,
    }


# --- generations and attempts ---------------------------------------------------------------------------------


def open_generation(db: Write, job_id: UUID, attempt_no: int, reason: str) -> int:
    """The next generation, of all machines of the attempt; the one before is over. Returns its number.

    The caller has claimed the job's row.
    """
    job = _claim(db, job_id)
    spec = JobSpec.from_stored(job.spec)
    number = job.generation + 1
    gang = sorted(_gang(db, job_id, attempt_no), key=lambda row: row.slot)
    start = db.sql.get(Checkpoint, job.checkpoint) if job.checkpoint else None
    _touched(db, update(Job).where(Job.id == job_id, Job.generation == job.generation).values(generation=number))
    _end_generation(db, job_id, reason)
    db.sql.execute(
        insert(Generation).values(
            job=job_id,
            no=number,
            attempt=attempt_no,
            state=GenerationState.FORMING,
            world=len(gang) * spec.resources.procs,
            start_checkpoint=job.checkpoint,
            start_step=start.step if start else 0,
            opened_at=db.now,
        )
    )
    db.sql.execute(
        insert(Member),
        [
            {"job": job_id, "generation": number, "node_rank": rank, "machine": row.id, "nproc": spec.resources.procs}
            for rank, row in enumerate(gang)
        ],
    )
    _generation_event(db, job, number, attempt_no, "forming", reason)
    db.hint()
    return number


def close_attempt(db: Write, job_id: UUID, attempt_no: int, reason: str) -> bool:
    """Let an attempt wind down: its machines are not wanted any more. Its generation stays the current one until they
    are gone, so that a checkpoint that is on its way still counts."""
    trained = exists(
        select(Generation.no).where(
            Generation.job == job_id, Generation.attempt == attempt_no, Generation.last_step > Generation.start_step
        )
    )
    closing = update(Attempt).where(Attempt.job == job_id, Attempt.no == attempt_no, Attempt.state == "open")
    changed = closing.values(
        state=AttemptState.CLOSING, reason=reason, closed_at=db.now, trained=or_(Attempt.trained, trained)
    )
    db.hint()
    return _touched(db, changed)


def carry_out(db: Write, job_id: UUID, attempt_no: int, generation: int | None, verdict: losses.Verdict) -> bool:
    """Do what was judged about a job, if it is still in the attempt and generation that were judged."""
    job, attempt = _claim(db, job_id), _attempt(db, job_id, attempt_no)
    if not _wanted(job, attempt) or (generation or 0) != _generation_of(db, job, attempt_no):
        return False
    if isinstance(verdict, losses.Restart):
        open_generation(db, job_id, attempt_no, verdict.reason)
        return True
    if isinstance(verdict, losses.EndJob):
        _end_job(db, job, verdict)
        return close_attempt(db, job_id, attempt_no, verdict.reason)
    if isinstance(verdict, losses.EndAttempt):
        spec = JobSpec.from_stored(job.spec)
        trained, in_vain = _history(db, job_id, attempt_no)
        end = losses.retry(verdict.reason, trained, in_vain, spec.retry.on, spec.retry.max)
        if end is not None:
            _end_job(db, job, end)
        else:
            jobs.transition(
                db,
                job,
                JobState.QUEUED,
                actor="fleet",
                reason=verdict.text,
                wait_reason="capacity" if verdict.reason == "capacity" else "ending",
                wait_text=verdict.text,
                queued_at=job.queued_at,
            )
        return close_attempt(db, job_id, attempt_no, verdict.reason)
    return False


def begin_stopping(db: Write, job_id: UUID) -> bool:
    """A stopping job's attempt winds down: its ranks are told to drain, then its machines end."""
    job = _claim(db, job_id)
    if job.state != JobState.STOPPING:
        return False
    return close_attempt(db, job_id, job.attempt, "stop")


def finish_attempt(db: Write, job_id: UUID, attempt_no: int) -> bool:
    """An attempt is closed once all its machines are gone; a stopping job ends, pauses or queues with it."""
    job = _claim(db, job_id)
    alive = exists(
        select(Machine.id).where(Machine.job == job_id, Machine.attempt == attempt_no, Machine.state.in_(ALIVE))
    )
    if db.sql.scalar(select(alive)):
        return False
    if job.state == JobState.STOPPING and job.attempt == attempt_no:
        _after_stopping(db, job)
    closed = update(Attempt).where(Attempt.job == job_id, Attempt.no == attempt_no, Attempt.state == "closing", ~alive)
    if not _touched(db, closed.values(state=AttemptState.CLOSED)):
        return False
    if job.attempt == attempt_no:
        _end_generation(db, job_id, "its attempt ended")
    db.hint()
    return True


def resume_paused_below(db: Write, account: UUID, actor: str) -> list[UUID]:
    """Queue the jobs that their budget paused or is pausing: an account that pays for them is about to be raised.

    Call it before `ledger.set_limit`, in the same transaction: jobs are written before accounts.
    """
    pausing = select(Job).where(Job.state.in_(("paused", "stopping")), Job.want == "pause", Job.want_reason == "budget")
    paused = list(db.sql.scalars(pausing.order_by(Job.id)))
    resumed = []
    for job in paused:
        if any(row.id == account for row in ledger.path(db, ledger.job_account(db, job.id).id)):
            jobs.resume(db, job.id, actor, reason="the budget was raised")
            resumed.append(job.id)
    return resumed


def _after_stopping(db: Write, job: Job) -> None:
    end = funding.after_stopping(Want(job.want), job.want_reason)
    if end is not None:
        jobs.transition(db, job, JobState.ENDED, actor="fleet", reason="all machines are gone", end_reason=end)
    elif job.want == Want.PAUSE:
        jobs.transition(db, job, JobState.PAUSED, actor="fleet", reason="all machines are gone")
    else:
        jobs.transition(db, job, JobState.QUEUED, actor="fleet", reason="all machines are gone")


def _end_job(db: Write, job: Job, end: losses.EndJob) -> None:
    """End a job; one that never ran goes back to the queue first, as the table of moves has it."""
    if job.state == JobState.LAUNCHING:
        job = jobs.transition(db, job, JobState.QUEUED, actor="fleet", reason=end.text)
    jobs.transition(db, job, JobState.ENDED, actor="fleet", reason=end.text, end_reason=end.reason, end_text=end.text)


def _history(db: Read, job_id: UUID, attempt_no: int) -> tuple[int, int]:
    """How many attempts trained, and how many in a row, up to this one, bought machines and didn't."""
    now_trained = set(
        db.sql.scalars(
            select(Generation.attempt).where(Generation.job == job_id, Generation.last_step > Generation.start_step)
        )
    )
    bought = set(db.sql.scalars(select(Machine.attempt).where(Machine.job == job_id, Machine.launched_at.is_not(None))))
    in_vain = 0
    for number in range(attempt_no, 0, -1):
        if number in now_trained:
            break
        in_vain += number in bought
    return len(now_trained), in_vain


def _end_generation(db: Write, job_id: UUID, reason: str) -> None:
    over = update(Generation).where(Generation.job == job_id, Generation.state != "over")
    _touched(db, over.values(state=GenerationState.OVER, over_at=db.now, over_reason=reason))


# --- what a tick works on ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unfinished:
    """An attempt that isn't closed, with all that hangs on it."""

    job: Job
    spec: JobSpec
    attempt: Attempt
    machines: list[Machine]
    """All of the attempt, void ones too, by ordinal."""
    generation: Generation | None
    members: list[Member]
    restarts: int
    trained_us: int
    """How long the job's generations have run so far, over all attempts."""

    @property
    def wanted(self) -> bool:
        return _wanted(self.job, self.attempt)

    @property
    def gang(self) -> dict[int, Machine]:
        """The machine of each slot: the latest that isn't void."""
        return {machine.slot: machine for machine in self.machines if machine.state != MachineState.VOID}

    @property
    def alive(self) -> bool:
        return any(machine.state in ALIVE for machine in self.machines)

    def empty_slots(self, now: int, terms: Terms) -> list[int]:
        """Slots whose machines so far are all void, and that may be asked for again by now."""
        slots = []
        for slot in set(range(self.spec.resources.nodes)) - set(self.gang):
            tries = [row for row in self.machines if row.slot == slot and row.created_at >= self.attempt.opened_at]
            last = max((row.created_at for row in tries), default=0)
            if now >= last + losses.delay(len(tries), terms):
                slots.append(slot)
        return slots

    def for_judging(self) -> losses.Gang:
        parts = {member.machine: member for member in self.members}
        fates = [_fate(machine, parts.get(machine.id)) for _, machine in sorted(self.gang.items())]
        generation = self.generation
        return losses.Gang(
            size=self.spec.resources.nodes,
            fates=tuple(fates),
            opened_at=self.attempt.opened_at,
            generation=generation.no if generation else None,
            state=GenerationState(generation.state) if generation else None,
            generation_at=generation.opened_at if generation else 0,
            restarts=self.restarts,
        )


@dataclass(frozen=True)
class Work:
    """All that is not at rest. Falsy when everything is."""

    now: int = 0
    queued: int = 0
    attempts: list[Unfinished] = field(default_factory=list)
    alive: int = 0
    unbilled: list[UUID] = field(default_factory=list)
    unsettled: list[UUID] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.queued or self.attempts or self.alive or self.unbilled or self.unsettled)


def work(db: Read) -> Work:
    """What there is to do. A few indexed reads when there is nothing."""
    attempts = list(db.sql.scalars(select(Attempt).where(Attempt.state != "closed").order_by(Attempt.job)))
    return Work(
        now=db.now,
        queued=db.sql.scalar(select(func.count()).select_from(Job).where(Job.state == "queued")) or 0,
        attempts=_unfinished(db, attempts) if attempts else [],
        alive=db.sql.scalar(select(func.count()).select_from(Machine).where(Machine.state.in_(ALIVE))) or 0,
        unbilled=list(
            db.sql.scalars(
                select(Machine.id).where(Machine.state == "gone", Machine.billed_at.is_(None)).order_by(Machine.id)
            )
        ),
        unsettled=list(db.sql.scalars(select(Job.id).where(Job.state == "ended", Job.settled_at.is_(None)))),
    )


def _unfinished(db: Read, attempts: list[Attempt]) -> list[Unfinished]:
    ids = {attempt.job for attempt in attempts}
    owners = {job.id: job for job in db.sql.scalars(select(Job).where(Job.id.in_(ids)))}
    machines = _by_job(
        db.sql.scalars(select(Machine).where(Machine.job.in_(ids)).order_by(Machine.attempt, Machine.ordinal))
    )
    generations = _by_job(db.sql.scalars(select(Generation).where(Generation.job.in_(ids)).order_by(Generation.no)))
    members = _by_job(db.sql.scalars(select(Member).where(Member.job.in_(ids)).order_by(Member.node_rank)))
    return [
        _one(db, owners[attempt.job], attempt, machines[attempt.job], generations[attempt.job], members[attempt.job])
        for attempt in attempts
    ]


def _one(
    db: Read, job: Job, attempt: Attempt, machines: list[Machine], generations: list[Generation], members: list[Member]
) -> Unfinished:
    own = [row for row in generations if row.attempt == attempt.no]
    current = own[-1] if own and own[-1].no == job.generation else None
    return Unfinished(
        job=job,
        spec=JobSpec.from_stored(job.spec),
        attempt=attempt,
        machines=[row for row in machines if row.attempt == attempt.no],
        generation=current,
        members=[row for row in members if current is not None and row.generation == current.no],
        restarts=max(0, sum(row.start_checkpoint == job.checkpoint for row in own) - 1),
        trained_us=sum((row.over_at or db.now) - row.formed_at for row in generations if row.formed_at is not None),
    )


def _fate(machine: Machine, member: Member | None) -> losses.Fate:
    exits = tuple(wire.RankExit.model_validate(end) for end in (member.exits or [])) if member else ()
    return losses.Fate(
        slot=machine.slot,
        state=MachineState(machine.state),
        end_cause=machine.end_cause,
        notice_at=machine.notice_at,
        last_report_at=machine.last_report_at,
        ready_at=member.ready_at if member else None,
        exited_at=member.exited_at if member else None,
        exits=exits,
    )


# --- money of machines --------------------------------------------------------------------------------------------


def fundings(db: Read, machines: Iterable[UUID]) -> dict[UUID, funding.Funding]:
    """The open holds of machines."""
    held = db.sql.scalars(select(Hold).where(Hold.machine.in_(list(machines)), Hold.state == "open"))
    return {
        row.machine: funding.Funding(row.rate_cap, row.amount - row.consumed, row.funded_until)
        for row in held
        if row.funded_until is not None
    }


def fund(db: Write, machine_id: UUID, terms: Terms) -> bool:
    """Extend a machine's hold, if that is due; post its cost first. The agent hears of it after the commit.

    Raises BudgetExceeded: then nothing is changed, and its job must be wound down.
    """
    machine = _machine(db, machine_id)
    job, attempt = _job(db, machine.job), _attempt(db, machine.job, machine.attempt)
    now = fundings(db, [machine_id]).get(machine_id)
    if now is None or not _wanted(job, attempt) or machine.state not in ("planned", "calling", "up"):
        return False
    due = funding.extension(now, db.now, terms)
    if due is None:
        return False
    funded = update(Machine).where(Machine.id == machine_id, Machine.funded_until == now.funded_until)
    if not _touched(db, funded.values(funded_until=due.funded_until)):
        return False
    ledger.extend_hold(db, machine_id, due.more, due.funded_until, seen_until=now.funded_until)
    return True


def post_cost(db: Write, machine_id: UUID) -> None:
    """Post what a living machine has cost so far, as far as its hold covers it."""
    machine = _machine(db, machine_id)
    if machine.state in ("up", "ending"):
        ledger.settle(db, machine_id, bill.bill(evidence(machine), db.now), final=False)


def overdrawn(db: Read, job_ids: Iterable[UUID]) -> dict[UUID, str]:
    """Jobs that draw on an account in overdraft, and its name: their machines can't be funded any further."""
    red = {row.id: row for row in db.sql.scalars(select(Account).where(Account.overdraft > 0))}
    if not red:
        return {}
    accounts = {
        row.id: row for row in db.sql.scalars(select(Account).where(Account.kind.in_(("org", "team", "member", "job"))))
    }
    leaves = {row.owner: row for row in accounts.values() if row.kind == "job"}
    names: dict[UUID, str] = {}
    for job in job_ids:
        if leaf := leaves.get(str(job)):
            short = next((red[account] for account in _path(leaf, accounts) if account in red), None)
            if short is not None:
                names[job] = ledger.title(db, short)
    return names


def settle_machine(db: Write, machine_id: UUID) -> bool:
    """The final bill of a machine that is gone, once. A transaction of its own: it may make an overdraft."""
    billed = update(Machine).where(Machine.id == machine_id, Machine.state == "gone", Machine.billed_at.is_(None))
    if not _touched(db, billed.values(billed_at=db.now)):
        return False
    machine = _machine(db, machine_id)
    job, lines = _job(db, machine.job), bill.bill(evidence(machine), db.now)
    ledger.settle(db, machine_id, lines, final=True)
    db.event(
        team=job.team_id,
        kind="cost",
        actor="fleet",
        job=job.id,
        attempt=machine.attempt,
        ref=str(machine_id),
        reason="; ".join(line.text for line in lines) or "it never ran",
        data={"state": "billed"},
    )
    db.hint()
    return True


def settle_job(db: Write, job_id: UUID) -> bool:
    """A job that has ended is settled once each of its machines is billed or was never bought."""
    unpaid = exists(
        select(Machine.id).where(Machine.job == job_id, Machine.state != "void", Machine.billed_at.is_(None))
    )
    unclosed = exists(select(Attempt.no).where(Attempt.job == job_id, Attempt.state != "closed"))
    job = _job(db, job_id)
    settled = update(Job).where(Job.id == job_id, Job.state == "ended", Job.settled_at.is_(None), ~unpaid, ~unclosed)
    if not _touched(db, settled.values(settled_at=db.now)):
        return False
    db.event(
        team=job.team_id, kind="cost", actor="fleet", job=job_id, reason="the job is settled", data={"state": "settled"}
    )
    return True


def evidence(machine: Machine) -> bill.Evidence:
    """What the bill of a machine is made from."""
    return bill.Evidence(
        provider=machine.provider,
        type=machine.type,
        market=machine.market,
        price=machine.price,
        launched_at=machine.launched_at,
        ended_at=machine.ended_at,
        end_cause=machine.end_cause,
    )


# --- services -------------------------------------------------------------------------------------------------------


def service_seen(db: Write, name: str, gap: int) -> None:
    """A service says that it answers. A silence of more than `gap` µs breaks its uptime."""
    if db.add_new(Service, name=name, up_since=db.now, seen_at=db.now):
        return
    known = db.sql.get_one(Service, name)
    since = db.now if db.now - known.seen_at > gap else known.up_since
    _touched(db, update(Service).where(Service.name == name).values(up_since=since, seen_at=db.now))


def leases_count(db: Read, terms: Terms) -> bool:
    """Whether the API has answered without a break for one lease length: only then is silence the machines' own."""
    api = db.sql.get(Service, "api")
    return api is not None and db.now - api.seen_at <= terms.lease // 2 and db.now - api.up_since >= terms.lease


# --- small things ---------------------------------------------------------------------------------------------------


def _touched(db: Write, statement: Update) -> bool:
    """Run a guarded UPDATE; whether its guard still held."""
    return db.count(statement) == 1


def _claim(db: Write, job_id: UUID) -> Job:
    """The job's row, which nobody else decides about until this transaction ends."""
    _touched(db, update(Job).where(Job.id == job_id).values(generation=Job.generation))
    return _job(db, job_id)


def _job(db: Read, job_id: UUID) -> Job:
    return db.sql.scalars(select(Job).where(Job.id == job_id)).one()


def _attempt(db: Read, job_id: UUID, number: int) -> Attempt:
    return db.sql.scalars(select(Attempt).where(Attempt.job == job_id, Attempt.no == number)).one()


def _machine(db: Read, machine_id: UUID) -> Machine:
    machine = db.sql.scalar(select(Machine).where(Machine.id == machine_id))
    if machine is None:
        raise AgentRefused("No such machine.")
    return machine


def _gang(db: Read, job_id: UUID, attempt_no: int) -> list[Machine]:
    """The machines of an attempt that aren't dead."""
    return list(
        db.sql.scalars(
            select(Machine)
            .where(Machine.job == job_id, Machine.attempt == attempt_no, Machine.state.in_(ALIVE))
            .order_by(Machine.slot)
        )
    )


def _members(db: Read, job_id: UUID, generation: int) -> list[Member]:
    found = select(Member).where(Member.job == job_id, Member.generation == generation)
    return list(db.sql.scalars(found.order_by(Member.node_rank)))


def _of(member: Member) -> Update:
    return update(Member).where(
        Member.job == member.job, Member.generation == member.generation, Member.node_rank == member.node_rank
    )


def _generation_of(db: Read, job: Job, attempt_no: int) -> int:
    """The job's current generation if it belongs to this attempt, else 0."""
    generation = db.sql.get(Generation, (job.id, job.generation))
    return generation.no if generation is not None and generation.attempt == attempt_no else 0


def _wanted(job: Job, attempt: Attempt) -> bool:
    return (
        job.attempt == attempt.no
        and attempt.state == AttemptState.OPEN
        and job.state in (JobState.LAUNCHING, JobState.RUNNING)
        and job.want == Want.RUN
    )


def _by_job(rows: Iterable[Any]) -> dict[UUID, list[Any]]:
    groups: dict[UUID, list[Any]] = defaultdict(list)
    for row in rows:
        groups[row.job].append(row)
    return groups


def _machine_event(
    db: Write, job: Job, attempt: int, machine: UUID, state: str, *, reason: str = "", cause: str | None = None
) -> None:
    db.event(
        team=job.team_id,
        kind="machine",
        actor="fleet",
        reason=reason,
        job=job.id,
        attempt=attempt,
        ref=str(machine),
        data={"state": str(state)} | ({"cause": cause} if cause else {}),
    )


def _generation_event(db: Write, job: Job, number: int, attempt: int, state: str, reason: str = "") -> None:
    db.event(
        team=job.team_id,
        kind="generation",
        actor="fleet",
        reason=reason,
        job=job.id,
        attempt=attempt,
        generation=number,
        data={"state": state},
    )
