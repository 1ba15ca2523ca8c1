# SPDX-License-Identifier: Apache-2.0
"""Jobs: submitted, moved from state to state, stopped, resumed and retried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import bindparam, select, update

from shoestring_core import money
from shoestring_core.decide.deadlines import DeadlinePlan
from shoestring_core.decide.funding import end_reason_after_stopping
from shoestring_core.decide.quotes import QuotedOffer
from shoestring_core.decide.sizing import SizingRecord
from shoestring_core.errors import BudgetExceeded, DeadlineUnmet, InvalidState, NotFound, StaleTransition
from shoestring_core.events import JobChange, MachinesChosen
from shoestring_core.spec import JobSpec, has_deadline
from shoestring_core.states import JOB_TRANSITIONS, DesiredState, EndReason, JobState, JobStatus, StopReason
from shoestring_core.store import deadlines, ledger, transitions
from shoestring_core.store.identity import Principal
from shoestring_core.store.tables import AccountRow, JobRow
from shoestring_core.store.transactions import Read, Write
from shoestring_core.store.uuid7 import uuid7
from shoestring_core.wording import Reason, budget
from shoestring_core.wording import jobs as job_reasons
from shoestring_core.wording.deadlines import DeadlinePromised, DeadlineUnaffordable, DurationUnknown


@dataclass(frozen=True)
class NewJob:
    """A job as it was queued, whose rows are written at the transaction's end. accounts: those that pay for it, its own
    first; promise: what its deadline commits."""

    job: JobRow
    accounts: Sequence[AccountRow]
    promise: DeadlinePromised | None = None


def submit(
    db: Write,
    principal: Principal,
    spec: JobSpec,
    *,
    min_hold: int,
    sizing: SizingRecord | None = None,
    quote: QuotedOffer | None = None,
    deadline: DeadlinePlan | None = None,
    retried_from: JobRow | None = None,
    init: UUID | None = None,
) -> NewJob:
    """Queue a job of the principal's, with an account of its own below its member's.

    min_hold       least micro-dollars to hold for its first machines
    sizing         why it runs on its machines
    quote          of the offer that it would get, kept to be compared with what it takes
    deadline       how it is to keep limits.deadline, if it has one
    retried_from   an ended job from whose last checkpoint it starts, unless that job succeeded
    init           the checkpoint that its weights are initialized from

    Raises BudgetExceeded only if a *limit* above it could never cover it; a job that must wait for budget is queued.
    Only the worst case of one with a deadline has to be there now.
    """
    paying = db.once(ledger.ensure_member_accounts, principal.team, principal.user)
    check_affordable(db, paying, spec.limits.cost, min_hold)
    if spec.limits.deadline is not None and deadline is None:
        raise DeadlineUnmet(DurationUnknown())
    promise = None
    if deadline is not None:
        check_worst_case(db, paying, spec.limits.cost, deadline.worst_case)
        promise = promise_deadline(db, paying, deadline)
    start = _start_checkpoint(retried_from)
    job = JobRow(
        id=uuid7(),
        team_id=principal.team,
        user_id=principal.user,
        name=spec.name or "job",
        spec=spec.submitted_at(db.now).resolved(),
        sizing=sizing.as_json() if sizing else None,
        quote=quote.as_json() if quote else None,
        state=JobState.QUEUED,
        checkpoint=start,
        init_checkpoint=init,
        skipped_step_spans=retried_from.skipped_step_spans if retried_from and start else None,
        retried_from=retried_from.id if retried_from else None,
        created_at=db.now,
        queued_at=db.now,
    )
    at_the_end = deadline is None  # what is committed needs the rows
    db.insert(job, defer=at_the_end)
    account = ledger.create_job_account(db, job.id, paying[0], spec.limits.cost, defer=at_the_end)
    if deadline is not None:
        deadlines.open_deadline(db, job.id, account.id, deadline)
        account = ledger.job_account(db, job.id)
    _record_submission(db, job, principal, sizing if retried_from is None else None)
    if deadline is not None and promise is not None:
        chosen = MachinesChosen(outcome="deadline", nodes=deadline.nodes, type=deadline.type)
        db.event(chosen, team=principal.team, actor="scheduler", reason=promise, job=job.id)
    db.request_tick()
    return NewJob(job, (account, *paying), promise)


def check_affordable(db: Read, paying: Sequence[AccountRow], cost_limit: int | None, min_hold: int) -> None:
    """Raise BudgetExceeded if a limit could never cover the job, however much is spent already."""
    tightest = ledger.tightest_account(paying)
    if cost_limit is not None and min_hold > cost_limit:
        raise BudgetExceeded(
            budget.CostLimitTooLow(limit=money.to_decimal(cost_limit), need=money.to_decimal(min_hold))
        )
    need = max(cost_limit or 0, min_hold)
    limit = None if tightest is None else ledger.period_limit(tightest)
    if tightest is None or limit is None or need <= limit:
        return
    raise BudgetExceeded(
        budget.AccountLimitTooLow(
            account=str(tightest.id),
            account_title=ledger.title(db, tightest),
            limit=money.to_decimal(limit),
            need=money.to_decimal(need),
            short_by=money.to_decimal(need - limit),
            first_machines=need == min_hold,
        )
    )


def check_worst_case(db: Read, paying: Sequence[AccountRow], cost_limit: int | None, need: int) -> None:
    """Raise BudgetExceeded if limits.cost, or what a budget has left, doesn't cover what a deadline commits."""
    if cost_limit is not None and need > cost_limit:
        amounts = money.to_decimal(need), money.to_decimal(cost_limit)
        raise BudgetExceeded(DeadlineUnaffordable("limits.cost", *amounts, own_limit=True))
    left = [(max(0, row.limit_micro - row.posted - row.held), row) for row in paying if row.limit_micro is not None]
    least, tightest = min(left, key=lambda pair: pair[0], default=(need, None))
    if tightest is not None and (need > least or tightest.overdraft):
        amounts = money.to_decimal(need), money.to_decimal(0 if tightest.overdraft else least)
        raise BudgetExceeded(DeadlineUnaffordable(ledger.title(db, tightest), *amounts, own_limit=False))


def promise_deadline(db: Read, paying: Sequence[AccountRow], plan: DeadlinePlan) -> DeadlinePromised:
    """What a deadline commits, and what the budget that has least has left after that."""
    left = [(row.limit_micro - row.posted - row.held, row) for row in paying if row.limit_micro is not None]
    least, tightest = min(left, key=lambda pair: pair[0], default=(0, None))
    return DeadlinePromised(
        deadline=plan.deadline,
        worst_case=money.to_decimal(plan.worst_case),
        left=money.to_decimal(least - plan.worst_case) if tightest else None,
        account_title=ledger.title(db, tightest) if tightest else "",
        work_us=plan.work,
        runs=plan.runs,
    )


def _record_submission(db: Write, job: JobRow, principal: Principal, sizing: SizingRecord | None) -> None:
    """`sizing`: if machines were chosen now."""
    retried_from = job.retried_from
    reason: Reason = job_reasons.RetryOf(str(retried_from)) if retried_from else job_reasons.Submitted()
    submitted = JobChange(from_state=None, to=JobState.QUEUED)
    db.event(submitted, team=principal.team, actor=principal.actor, reason=reason, job=job.id)
    if sizing is not None:
        choice = sizing.choice
        chosen = MachinesChosen(outcome=choice.outcome, nodes=choice.nodes, type=choice.type)
        db.event(chosen, team=principal.team, actor="scheduler", reason=sizing.reason, job=job.id)


def transition(db: Write, job: JobRow, to: JobState, *, actor: str, reason: Reason, **columns: Any) -> JobRow:
    """Move a job to another state: the only writer of `jobs.state`.

    job      as the caller read it: its state, desired state, attempt and generation must be unchanged
    columns  further columns to set; ENDED needs `end_reason`

    Raises StaleTransition if the move isn't legal or the job has changed; then nothing is written.
    """
    before = JobState(job.state)
    if to not in JOB_TRANSITIONS[before]:
        raise StaleTransition(job_reasons.CannotMove(before, to))
    if to is JobState.LAUNCHING and job.desired_state != DesiredState.RUN:
        raise StaleTransition(job_reasons.BeingStopped())
    unchanged = [JobRow.state == before, JobRow.desired_state == job.desired_state]
    unchanged += [JobRow.attempt == job.attempt, JobRow.generation == job.generation]
    move = transitions.move_job(job.id, to).where(*unchanged)
    if db.execute(move.values(_columns_of_move(db, job, to) | columns)) != 1:
        raise StaleTransition(job_reasons.ChangedMeanwhile())
    after = _load(db, job.id)
    end_reason = EndReason(after.end_reason) if after.end_reason else None
    db.event(
        JobChange(from_state=before, to=to, end_reason=end_reason),
        team=after.team_id, actor=actor, reason=reason, job=after.id, attempt=after.attempt,
        generation=after.generation,
    )  # fmt: skip
    if to not in (JobState.LAUNCHING, JobState.RUNNING):
        db.request_tick()
    return after


def _columns_of_move(db: Write, before: JobRow, to: JobState) -> dict[str, Any]:
    """The columns that every move to `to` sets, besides the state."""
    not_waiting = {"wait_reason": None, "wait_detail": None}
    if to is JobState.QUEUED:
        return not_waiting | {"queued_at": db.now}
    if to is JobState.RUNNING:
        return not_waiting | {"started_at": before.started_at or db.now}
    return not_waiting | ({"ended_at": db.now} if to is JobState.ENDED else {})


def stop(
    db: Write,
    job: UUID,
    actor: str,
    mode: Literal["stop", "pause"] = "stop",
    *,
    stop_reason: StopReason = StopReason.USER,
    reason: Reason | None = None,
) -> JobRow:
    """End a job, or pause it, after a checkpoint if it runs. Only sets the desired state: the reconciler acts on it.

    Again: no effect. A stop overrides a pause. Raises InvalidState for a pause of a job that is ending or has ended.
    """
    for _ in range(3):
        try:
            return _stop(
                db, _load(db, job), actor, DesiredState(mode), stop_reason, reason or job_reasons.StopRequested()
            )
        except StaleTransition:  # it has just moved: read it again
            continue
    raise StaleTransition(job_reasons.ChangedMeanwhile())


def resume(db: Write, job: UUID, actor: str, *, reason: Reason | None = None) -> JobRow:
    """Queue a paused job again; it resumes from its last checkpoint. Again: no effect.

    A job still stopping for its pause is queued once its machines are terminated. Raises InvalidState if it is ending
    or has ended.
    """
    before = _load(db, job)
    desired, reason = {"desired_state": DesiredState.RUN, "stop_reason": ""}, reason or job_reasons.ResumeRequested()
    if before.state == JobState.PAUSED:
        resumed = transition(db, before, JobState.QUEUED, actor=actor, reason=reason, **desired)
        if has_deadline(resumed.spec):
            deadlines.decide_now(db, job)
        return resumed
    if before.state == JobState.STOPPING and before.desired_state == DesiredState.PAUSE:
        return _set_desired(db, before, desired, actor, reason)
    if before.state == JobState.ENDED or before.desired_state != DesiredState.RUN:
        raise InvalidState(job_reasons.CannotResume(before.state))
    return before


def retry(db: Write, principal: Principal, job: UUID, *, min_hold: int, deadline: DeadlinePlan | None = None) -> NewJob:
    """Submit an ended job again, from its stored spec and its last checkpoint; one that succeeded starts over.

    Raises InvalidState if it has not ended, NotFound, BudgetExceeded.
    """
    old = get(db, principal.team, job)
    if old.state != JobState.ENDED:
        raise InvalidState(job_reasons.CannotRetry(old.state))
    spec = JobSpec.from_stored(old.spec)
    sizing = SizingRecord.from_json(old.sizing) if old.sizing else None
    return submit(
        db, principal, spec, min_hold=min_hold, sizing=sizing, deadline=deadline, retried_from=old,
        init=old.init_checkpoint,
    )  # fmt: skip


# Reading


def get(db: Read, team: UUID, job: UUID) -> JobRow:
    """A job of the team. Raises NotFound, for another team's job as well."""
    row = db.sql.scalar(select(JobRow).where(JobRow.id == job, JobRow.team_id == team))
    if row is None:
        raise no_such_job()
    return row


def no_such_job() -> NotFound:
    return NotFound("There is no such job.", hint="`shoestring ls` lists the jobs of your team.")


# Submitting


def _start_checkpoint(old: JobRow | None) -> UUID | None:
    """The checkpoint that a retry starts from."""
    if old is None or EndReason(old.end_reason or "").status is JobStatus.SUCCEEDED:
        return None
    return old.checkpoint


# Stopping


def _stop(
    db: Write, before: JobRow, actor: str, target: DesiredState, stop_reason: StopReason, reason: Reason
) -> JobRow:
    state = JobState(before.state)
    if state is JobState.ENDED or (state is JobState.STOPPING and before.desired_state == DesiredState.STOP):
        return _already_ending(before, target)
    if target is DesiredState.PAUSE and before.desired_state == DesiredState.PAUSE:
        return before
    desired = {"desired_state": target, "stop_reason": stop_reason}
    if state is JobState.STOPPING:
        return _set_desired(db, before, desired, actor, reason)
    if state in (JobState.LAUNCHING, JobState.RUNNING):
        return transition(db, before, JobState.STOPPING, actor=actor, reason=reason, **desired)
    if target is DesiredState.PAUSE and state is JobState.QUEUED:
        return transition(db, before, JobState.PAUSED, actor=actor, reason=reason, **desired)
    if target is DesiredState.PAUSE:
        raise InvalidState(job_reasons.CannotPause(state))
    end = end_reason_after_stopping(DesiredState.STOP, stop_reason)
    return transition(db, before, JobState.ENDED, actor=actor, reason=reason, end_reason=end, **desired)


def _already_ending(job: JobRow, target: DesiredState) -> JobRow:
    if target is DesiredState.PAUSE:
        raise InvalidState(job_reasons.CannotPause(job.state))
    return job


def _set_desired(db: Write, job: JobRow, desired: dict[str, Any], actor: str, reason: Reason) -> JobRow:
    """Change the desired state of a job that is already stopping."""
    unchanged = (JobRow.id == job.id, JobRow.state == JobState.STOPPING, JobRow.desired_state == job.desired_state)
    if db.execute(update(JobRow).where(*unchanged).values(desired)) != 1:
        raise StaleTransition(job_reasons.ChangedMeanwhile())
    state = JobState(job.state)
    data = JobChange(from_state=state, to=state, desired_state=desired["desired_state"])
    db.event(data, team=job.team_id, actor=actor, reason=reason, job=job.id, attempt=job.attempt)
    db.request_tick()
    return _load(db, job.id)


def _load(db: Read, job: UUID) -> JobRow:
    row = db.sql.scalar(_BY_ID, {"job": job})
    if row is None:
        raise NotFound("There is no such job.")
    return row


_BY_ID = select(JobRow).where(JobRow.id == bindparam("job"))
