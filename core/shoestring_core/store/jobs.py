# SPDX-License-Identifier: Apache-2.0
"""Jobs: submitted, moved from state to state, stopped, resumed, retried, found. Each in its own team."""

from __future__ import annotations

import base64
import binascii
import difflib
import re
import shlex
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, insert, not_, or_, select, tuple_, update

from shoestring_core import money
from shoestring_core.decide.funding import after_stopping
from shoestring_core.errors import BudgetExceeded, InvalidRequest, NotFound, StaleTransition, WrongState
from shoestring_core.spec import JobSpec
from shoestring_core.states import JOB_MOVES, SUCCESS, EndReason, JobState, Want
from shoestring_core.store import ledger
from shoestring_core.store.db import Read, Write
from shoestring_core.store.ids import new_id
from shoestring_core.store.tables import AccountRow, JobRow, UserRow

WantReason = Literal["user", "budget", "time_limit", "goal"]


def submit(
    db: Write,
    team: UUID,
    user: UUID,
    spec: JobSpec,
    *,
    smallest_hold: int,
    sizing: dict[str, Any] | None = None,
    retried_from: JobRow | None = None,
    init: UUID | None = None,
) -> JobRow:
    """Queue a job, with an account of its own below its member's.

    smallest_hold  micro-dollars that its first machines take at least
    sizing         the case and the choice by which its machines were chosen (decide.sizing)
    retried_from   an ended job whose last checkpoint it starts from, unless that succeeded
    init           the checkpoint with whose weights it starts

    Raises BudgetExceeded only if a *limit* on the path could never cover it; a job that must wait for money queues.
    """
    _refuse_the_impossible(db, ledger.create_member_account(db, team, user), spec.limits.cost, smallest_hold)
    job_id = new_id()
    db.sql.execute(
        insert(JobRow).values(
            id=job_id,
            team_id=team,
            user_id=user,
            name=spec.name or "job",
            spec=spec.resolved(),
            sizing=sizing,
            state=JobState.QUEUED,
            checkpoint=_start_of(retried_from),
            init=init,
            skips=retried_from.skips if retried_from and _start_of(retried_from) else None,
            retried_from=retried_from.id if retried_from else None,
            created_at=db.now,
            queued_at=db.now,
        )
    )
    job = db.sql.get_one(JobRow, job_id)
    ledger.create_job_account(db, job, spec.limits.cost)
    actor = db.sql.scalar(select(UserRow.name).where(UserRow.id == user)) or ""
    reason = f"retry of {retried_from.id}" if retried_from else "submitted"
    db.event(team=team, kind="job", actor=actor, reason=reason, job=job_id, data={"from": None, "to": "queued"})
    if sizing is not None and retried_from is None:
        choice = sizing["choice"]
        said = {name: choice[name] for name in ("verdict", "nodes", "type", "why")}
        db.event(team=team, kind="sizing", actor="scheduler", reason=choice["text"], job=job_id, data=said)
    db.hint()
    return job


def transition(db: Write, job: JobRow, to: JobState, *, actor: str, reason: str, **columns: Any) -> JobRow:
    """Move a job: the only writer of `jobs.state`.

    job      as the caller saw it: its state, attempt, generation and wish must still be the same
    columns  further columns to set; ENDED needs `end_reason`

    Raises StaleTransition if the move isn't legal, or the job is elsewhere by now; then nothing is changed.
    """
    before = JobState(job.state)
    if to not in JOB_MOVES[before]:
        raise StaleTransition(f"The job is {before}; it can't become {to} now.")
    if to is JobState.LAUNCHING and job.want != Want.RUN:
        raise StaleTransition("The job isn't wanted to run any more.")
    seen = [JobRow.id == job.id, JobRow.state == before, JobRow.want == job.want]
    seen += [JobRow.attempt == job.attempt, JobRow.generation == job.generation]
    values = {"state": to} | _times(db, job, to) | columns
    if db.count(update(JobRow).where(*seen).values(values)) != 1:
        raise StaleTransition(f"Another moved or changed the job while it was {before}.")
    after = _get(db, job.id)
    data = {"from": before.value, "to": to.value} | ({"end_reason": after.end_reason} if after.end_reason else {})
    db.event(
        team=after.team_id, kind="job", actor=actor, reason=reason, job=after.id, attempt=after.attempt,
        generation=after.generation, data=data,
    )  # fmt: skip
    if to not in (JobState.LAUNCHING, JobState.RUNNING):
        db.hint()
    return after


def _times(db: Write, before: JobRow, to: JobState) -> dict[str, Any]:
    """What every move to `to` sets, besides the state."""
    silent = {"wait_reason": None, "wait_text": None}
    if to is JobState.QUEUED:
        return silent | {"queued_at": db.now}
    if to is JobState.RUNNING:
        return silent | {"started_at": before.started_at or db.now}
    return silent | ({"ended_at": db.now} if to is JobState.ENDED else {})


def stop(
    db: Write,
    job: UUID,
    actor: str,
    mode: Literal["stop", "pause"] = "stop",
    *,
    why: WantReason = "user",
    reason: str = "",
) -> JobRow:
    """End a job, or pause it, after a checkpoint if it runs. Touches no machine: the reconciler does what is wanted.

    Again: nothing. A stop overrides a pause; a pause of what has ended, or is ending, is WrongState.
    """
    for _ in range(3):
        try:
            return _stop(db, _get(db, job), actor, Want.PAUSE if mode == "pause" else Want.STOP, why, reason)
        except StaleTransition:  # another moved it just now: look again
            continue
    raise StaleTransition("The job keeps moving.", hint="Try again.")


def resume(db: Write, job: UUID, actor: str, *, reason: str = "resumed") -> JobRow:
    """Queue a paused job again; it goes on from its last checkpoint. Again: nothing.

    A job still stopping for its pause is queued once its machines are terminated. Raises WrongState if it is ending or
    has ended.
    """
    before = _get(db, job)
    wish = {"want": Want.RUN, "want_reason": ""}
    if before.state == JobState.PAUSED:
        return transition(db, before, JobState.QUEUED, actor=actor, reason=reason, **wish)
    if before.state == JobState.STOPPING and before.want == Want.PAUSE:
        return _change_wish(db, before, wish, actor, reason)
    if before.state == JobState.ENDED or before.want != Want.RUN:
        raise WrongState(
            f"The job is {_words(before.state)}; it can't go on.", hint="`shoestring retry` submits it anew."
        )
    return before


def retry(db: Write, team: UUID, job: UUID, user: UUID, *, smallest_hold: int) -> JobRow:
    """Submit an ended job again, from its stored spec and its last checkpoint; one that succeeded starts as it did.

    Raises WrongState if it has not ended, NotFound, BudgetExceeded.
    """
    old = get(db, team, job)
    if old.state != JobState.ENDED:
        raise WrongState(f"The job is {_words(old.state)}; only an ended job can be retried.", hint="Stop it first.")
    spec = JobSpec.from_stored(old.spec)
    return submit(db, team, user, spec, smallest_hold=smallest_hold, sizing=old.sizing, retried_from=old, init=old.init)


# Finding


def get(db: Read, team: UUID, job: UUID) -> JobRow:
    """A job of the team. Raises NotFound, for another team's job as well."""
    found = db.sql.scalar(select(JobRow).where(JobRow.id == job, JobRow.team_id == team))
    if found is None:
        raise NotFound("There is no such job.", hint="`shoestring ls` lists the jobs of your team.")
    return found


def page(db: Read, team: UUID, filter_text: str = "", cursor: str | None = None, limit: int = 50) -> Page:
    """The team's jobs, newest first. Raises InvalidRequest for a filter or a cursor that makes no sense.

    The filter is words, all of which must hold: FIELD=VALUE, FIELD!=VALUE, or FIELD~PART (contains, in any case).
    Fields: state, end, name, recipe, user, tag.NAME; VALUE may be several, with commas between. Quotes keep blanks.

        state=queued,running name~digits tag.team!=vision user=ann
    """
    query = select(JobRow).where(JobRow.team_id == team, *(_condition(word) for word in _words_of(filter_text)))
    if cursor is not None:
        query = query.where(tuple_(JobRow.created_at, JobRow.id) < tuple_(*_position(cursor)))
    rows = list(db.sql.scalars(query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)))
    return Page(rows[:limit], _cursor(rows[limit - 1]) if len(rows) > limit else None)


@dataclass(frozen=True)
class Page:
    jobs: list[JobRow]
    next_cursor: str | None


# Submitting


def _refuse_the_impossible(db: Write, account: AccountRow, cost_limit: int | None, smallest_hold: int) -> None:
    tightest = ledger.tightest_account(db, account.id)
    if cost_limit is not None and smallest_hold > cost_limit:
        raise BudgetExceeded(
            f"limits.cost is ${money.to_decimal(cost_limit)}, "
            f"but its first machines take ${money.to_decimal(smallest_hold)}.",
            hint="Raise limits.cost, or use fewer machines.",
            need=money.to_decimal(smallest_hold),
            limit=money.to_decimal(cost_limit),
        )
    need = max(cost_limit or 0, smallest_hold)
    if tightest is None or tightest.limit_micro is None or need <= tightest.limit_micro:
        return
    name, limit = ledger.title(db, tightest), money.to_decimal(tightest.limit_micro)
    what = "its first machines take" if need == smallest_hold else "limits.cost is"
    raise BudgetExceeded(
        f"The limit of the {name} is ${limit}, but {what} ${money.to_decimal(need)}.",
        hint=f"Set limits.cost to at most {limit}, or have the limit raised: shoestring budget set.",
        account=str(tightest.id),
        account_title=name,
        need=money.to_decimal(need),
        limit=limit,
        short_by=money.to_decimal(need - tightest.limit_micro),
    )


def _start_of(old: JobRow | None) -> UUID | None:
    """The checkpoint that a retry starts from."""
    return None if old is None or old.end_reason in SUCCESS else old.checkpoint


# Stopping

_REASONS: dict[WantReason, str] = {
    "user": "asked to",
    "budget": "the money ran out",
    "time_limit": "its time is up",
    "goal": "its goal is reached",
}


def _stop(db: Write, before: JobRow, actor: str, want: Want, why: WantReason, reason: str) -> JobRow:
    state = JobState(before.state)
    if state is JobState.ENDED or (state is JobState.STOPPING and before.want == Want.STOP):
        return _already(before, want)
    if want is Want.PAUSE and before.want == Want.PAUSE:
        return before
    wish = {"want": want, "want_reason": why}
    reason = reason or _REASONS[why]
    if state is JobState.STOPPING:
        return _change_wish(db, before, wish, actor, reason)
    if state in (JobState.LAUNCHING, JobState.RUNNING):
        return transition(db, before, JobState.STOPPING, actor=actor, reason=reason, **wish)
    if want is Want.PAUSE and state is JobState.QUEUED:
        return transition(db, before, JobState.PAUSED, actor=actor, reason=reason, **wish)
    if want is Want.PAUSE:
        raise WrongState(f"The job is {_words(state)}; only a job that is queued or runs can be paused.")
    end = after_stopping(Want.STOP, why)
    return transition(db, before, JobState.ENDED, actor=actor, reason=reason, end_reason=end, **wish)


def _already(job: JobRow, want: Want) -> JobRow:
    if want is Want.PAUSE:
        raise WrongState(f"The job is {_words(job.state)}; it can't be paused.")
    return job


def _change_wish(db: Write, job: JobRow, wish: dict[str, Any], actor: str, reason: str) -> JobRow:
    """Want something else of a job that is stopping already."""
    seen = (JobRow.id == job.id, JobRow.state == JobState.STOPPING, JobRow.want == job.want)
    if db.count(update(JobRow).where(*seen).values(wish)) != 1:
        raise StaleTransition("Another changed the job at the same time.")
    data = {"from": job.state, "to": job.state, "want": str(wish["want"])}
    db.event(team=job.team_id, kind="job", actor=actor, reason=reason, job=job.id, attempt=job.attempt, data=data)
    db.hint()
    return _get(db, job.id)


def _words(state: str) -> str:
    return state.replace("_", " ")


def _get(db: Read, job: UUID) -> JobRow:
    found = db.sql.scalar(select(JobRow).where(JobRow.id == job))
    if found is None:
        raise NotFound("There is no such job.")
    return found


# Filters and cursors

_FIELDS = ("state", "end", "name", "recipe", "user", "tag.NAME")
_WORD = re.compile(r"(?P<field>[a-z]+|tag\.[^=!~]+)(?P<operator>=|!=|~)(?P<value>.*)", re.DOTALL)


def _words_of(text: str) -> list[str]:
    if len(text) > 1_000 or not text.isprintable():
        raise InvalidRequest("A filter has at most 1000 printable characters.")
    try:
        return shlex.split(text)
    except ValueError:
        raise InvalidRequest("The filter has a quote that is never closed.") from None


def _condition(word: str) -> ColumnElement[bool]:
    parts = _WORD.fullmatch(word)
    if parts is None:
        hint = f"Write FIELD=VALUE, FIELD!=VALUE or FIELD~PART; fields: {', '.join(_FIELDS)}."
        raise InvalidRequest(f"{word!r} is not a condition.", hint=hint)
    column = _column(parts["field"])
    if parts["operator"] == "~":
        return column.icontains(parts["value"], autoescape=True)
    values = _values(parts["field"], parts["value"])
    among = or_(*(_equals(parts["field"], column, value) for value in values))
    return among if parts["operator"] == "=" else or_(column.is_(None), not_(among))


def _column(field: str) -> ColumnElement[Any]:
    if field.startswith("tag."):
        tag: ColumnElement[Any] = JobRow.spec[("tags", field.removeprefix("tag."))].as_string()
        return tag
    columns: dict[str, ColumnElement[Any]] = {
        "state": JobRow.state.expression,
        "end": JobRow.end_reason.expression,
        "name": JobRow.name.expression,
        "recipe": JobRow.spec["recipe"].as_string(),
        "user": select(UserRow.name).where(UserRow.id == JobRow.user_id).scalar_subquery(),
    }
    if field not in columns:
        near = difflib.get_close_matches(field, list(columns), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Fields: {', '.join(_FIELDS)}."
        raise InvalidRequest(f"Jobs can't be filtered by {field!r}.", hint=hint)
    return columns[field]


def _values(field: str, text: str) -> list[str]:
    values = text.split(",")
    known: list[str] | None = {"state": [*map(str, JobState)], "end": [*map(str, EndReason)]}.get(field)
    for value in values:
        if known is not None and value not in known:
            raise InvalidRequest(f"No job is ever {field}={value}.", hint=f"Known: {', '.join(known)}.")
    return values


def _equals(field: str, column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    """A recipe is meant in any version, unless one is named."""
    if field == "recipe" and "@" not in value:
        return or_(column == value, column.startswith(f"{value}@", autoescape=True))
    return column == value


def _cursor(job: JobRow) -> str:
    return base64.urlsafe_b64encode(job.created_at.to_bytes(8, "big") + job.id.bytes).decode()


def _position(cursor: str) -> tuple[int, UUID]:
    try:
        raw = base64.b64decode(cursor, altchars=b"-_", validate=True)
        return int.from_bytes(raw[:8], "big", signed=True), UUID(bytes=raw[8:])
    except (binascii.Error, ValueError):
        raise InvalidRequest("This cursor is not one that this service gave you.", hint="Start without one.") from None
