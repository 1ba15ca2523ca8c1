# SPDX-License-Identifier: Apache-2.0
"""Budgets: the accounts that a team spends from, their limits, weights, guaranteed rates and concurrency caps."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Response
from shoestring_core import money, rest
from shoestring_core.decide import access, periods, soft_lines
from shoestring_core.errors import Forbidden, InvalidRequest, PreconditionFailed
from shoestring_core.store import audit, ledger, queries
from shoestring_core.store.fleet import gangs, leaks
from shoestring_core.store.identity import Principal
from shoestring_core.store.tables import AccountRow
from shoestring_core.store.transactions import Read, Write

from shoestring_api.dependencies import Caller, IdempotencyKey, ReadDep, StateDep, own_budget, too_low
from shoestring_api.idempotency import run_once
from shoestring_api.json_body import ExactJsonRoute
from shoestring_api.serializers.costs import serialize_budgets, serialize_forecast, serialize_hosting

MAX_YEAR = 2100
"""Terms end before it."""

router = APIRouter(prefix="/v1/budgets", tags=["budgets"], route_class=ExactJsonRoute)


@router.get("")
def list_budgets(state: StateDep, db: ReadDep, caller: Caller) -> rest.BudgetList:
    """List the budgets of the organization, the team and its members."""
    budgets = serialize_budgets(db, ledger.team_budgets(db, caller.team))
    hosting = state.settings.hosting and serialize_hosting(state.settings.hosting, db.now)
    return rest.BudgetList(budgets=budgets, hosting=hosting, leaked=rest.Money.of(leaks.leaked(db)))


@router.get("/{budget_id}")
def get_budget(budget_id: UUID, db: ReadDep, caller: Caller, response: Response) -> rest.Budget:
    """Return a budget. Send its ETag in If-Match to change its limit."""
    return _with_etag(_serialize(db, ledger.visible_account(db, caller.team, budget_id)), response)


@router.get("/{budget_id}/forecast")
def get_forecast(budget_id: UUID, db: ReadDep, caller: Caller) -> rest.BudgetForecast:
    """Return what a budget spent in its period, its pace, and what it will have spent at the end."""
    account = ledger.visible_account(db, caller.team, budget_id)
    return serialize_forecast(account, ledger.load_forecast(db, account))


@router.put("/{budget_id}")
def set_limit(
    budget_id: UUID,
    body: rest.SetBudgetRequest,
    state: StateDep,
    caller: Caller,
    response: Response,
    if_match: Annotated[str | None, Header(max_length=200)] = None,
) -> rest.Budget:
    """Set a limit (lead; that of the team, and a lead's own if it rises: admin).

    A limit below what is spent and held causes an overdraft: jobs save a checkpoint and pause.

    Raising it queues the jobs that were paused because the budget was exhausted.
    """
    limit, version = _parse_limit(body.limit), _parse_version(if_match)

    def work(db: Write) -> rest.Budget:
        account = _changeable(db, caller, budget_id)
        before = ledger.period_limit(account)
        if before is not None and (limit is None or limit > before):
            _require_others(caller, account)
        if limit is None or (before is not None and limit > before):
            gangs.resume_jobs_paused_by_budget(db, account.id, caller.actor)
        after = ledger.set_limit(db, account.id, limit, actor=caller.actor, reason=body.reason, if_version=version)
        _record(db, caller, "set_limit", after, limit=body.limit, reason=body.reason)
        return _serialize(db, after)

    return _with_etag(state.store.write(work), response)


@router.post("/{budget_id}:grant", response_model=rest.Budget)
def grant(
    budget_id: UUID, body: rest.GrantRequest, state: StateDep, caller: Caller, key: IdempotencyKey = None
) -> Response:
    """Add dollars to a limit (lead; not their own). Jobs that were paused because the budget was exhausted are queued.

    Send an Idempotency-Key, so that a repeated request grants nothing more.
    """
    amount = parse_amount(body.amount)

    def work(db: Write) -> rest.Budget:
        account = _changeable(db, caller, budget_id)
        _require_others(caller, account)
        gangs.resume_jobs_paused_by_budget(db, account.id, caller.actor)
        after = ledger.grant(db, account.id, amount, actor=caller.actor, reason=body.reason)
        _record(db, caller, "grant", after, amount=body.amount, reason=body.reason)
        return _serialize(db, after)

    request = f"POST /v1/budgets/{budget_id}:grant {body.model_dump_json()}"
    return run_once(state, caller, key, request, 200, work, "/v1/budgets")


@router.post("/{budget_id}:transfer", response_model=rest.Budget)
def transfer(
    budget_id: UUID, body: rest.TransferRequest, state: StateDep, caller: Caller, key: IdempotencyKey = None
) -> Response:
    """Move dollars that a budget has left to another below the same one, and return the one that gave them.

    A lead may, but for their own budget as the other.

    Jobs that were paused because the other was exhausted are queued. Send an Idempotency-Key, so that a repeated
    request moves nothing more.
    """
    amount = parse_amount(body.amount)

    def work(db: Write) -> rest.Budget:
        source, target = _changeable(db, caller, budget_id), _changeable(db, caller, body.to)
        _require_others(caller, target)
        gangs.resume_jobs_paused_by_budget(db, target.id, caller.actor)
        reason = body.reason
        given, _ = ledger.transfer(db, source.id, target.id, amount, actor=caller.actor, reason=reason)
        _record(db, caller, "transfer", given, amount=body.amount, to=str(target.id), reason=body.reason)
        return _serialize(db, given)

    request = f"POST /v1/budgets/{budget_id}:transfer {body.model_dump_json()}"
    return run_once(state, caller, key, request, 200, work, "/v1/budgets")


@router.put("/{budget_id}/weight")
def set_weight(budget_id: UUID, body: rest.SetWeightRequest, state: StateDep, caller: Caller) -> rest.Budget:
    """Set the weight of a team or member (lead): a team of weight 2 gets twice the dollars of one of weight 1.

    It counts while both have jobs waiting. All teams of the organization see the change.
    """

    def work(db: Write) -> rest.Budget:
        account = _own(db, caller, budget_id)
        if account.kind not in ledger.SHARING:
            raise InvalidRequest("Only teams and members have a weight.", hint="Set that of a team or of a member.")
        after = ledger.set_weight(db, account.id, body.weight, actor=caller.actor, reason=body.reason)
        _record(db, caller, "set_weight", after, weight=body.weight, reason=body.reason)
        return _serialize(db, after)

    return state.store.write(work)


@router.put("/{budget_id}/guaranteed-rate")
def set_guaranteed_rate(
    budget_id: UUID, body: rest.SetGuaranteedRateRequest, state: StateDep, caller: Caller
) -> rest.Budget:
    """Set the dollars an hour that a team may use before it borrows from others (admin).

    Jobs that stay within it start first. If no machine is free for one, a job of a team that borrows saves a
    checkpoint and goes back to the queue. All teams of the organization see the change.
    """
    rate = parse_amount(body.rate, hint="Use 0 for none.")

    def work(db: Write) -> rest.Budget:
        account = _own(db, caller, budget_id)
        if account.kind != "team":
            raise InvalidRequest("Only teams have a guaranteed rate.", hint="Set that of your team.")
        after = ledger.set_guaranteed_rate(db, account.id, rate, actor=caller.actor, reason=body.reason)
        _record(db, caller, "set_guaranteed_rate", after, rate=body.rate, reason=body.reason)
        return _serialize(db, after)

    return state.store.write(work)


@router.put("/{budget_id}/concurrency")
def set_concurrency(budget_id: UUID, body: rest.SetConcurrencyRequest, state: StateDep, caller: Caller) -> rest.Budget:
    """Set how many jobs of a team (admin) or a member (lead) may run at once, and how many GPUs they may have.

    Running jobs continue; jobs beyond it wait until others end. All of the team see the change.
    """

    def work(db: Write) -> rest.Budget:
        account = _own(db, caller, budget_id)
        if account.kind not in ledger.SHARING:
            raise InvalidRequest("Only teams and members have a concurrency cap.", hint="Set that of one of these.")
        caps = body.max_jobs, body.max_gpus
        after = ledger.set_concurrency(db, account.id, *caps, actor=caller.actor, reason=body.reason)
        _record(db, caller, "set_concurrency", after, max_jobs=caps[0], max_gpus=caps[1], reason=body.reason)
        return _serialize(db, after)

    return state.store.write(work)


@router.put("/{budget_id}/period")
def set_period(budget_id: UUID, body: rest.SetPeriodRequest, state: StateDep, caller: Caller) -> rest.Budget:
    """Make a budget monthly, end it with a term, or make it one-off again (lead; not their own).

    Its limit and use stay as they are.

    A month begins on its first day in the time zone, with the limit that was set; so does a period that `starts` on a
    day to come, until which all stays as it is. Jobs that run at a border continue.
    """

    def work(db: Write) -> rest.Budget:
        account = _changeable(db, caller, budget_id)
        if account.kind not in ledger.BUDGETS:
            raise InvalidRequest("The budget of a job has no periods.", hint="Set that of your team or a member.")
        _require_others(caller, account)
        plan = _parse_period(body, db.now)
        after = ledger.set_period(db, account.id, plan, actor=caller.actor, reason=body.reason)
        _record(db, caller, "set_period", after, **body.model_dump(mode="json"))
        return _serialize(db, after)

    return state.store.write(work)


@router.put("/{budget_id}/soft-lines")
def set_soft_lines(budget_id: UUID, body: rest.SetSoftLinesRequest, state: StateDep, caller: Caller) -> rest.Budget:
    """Set the shares of a limit, spent or held, at which the team is warned (lead).

    Each warns once for each value of the limit. Nothing is refused at one.
    """
    try:
        lines = soft_lines.checked(body.percents)
    except ValueError as wrong:
        raise InvalidRequest(f"{wrong}.") from None

    def work(db: Write) -> rest.Budget:
        account = _changeable(db, caller, budget_id)
        if account.kind not in ledger.BUDGETS:
            raise InvalidRequest("The budget of a job has no soft lines.", hint="Set those of your team or a member.")
        after = ledger.set_soft_lines(db, account.id, lines, actor=caller.actor, reason=body.reason)
        _record(db, caller, "set_soft_lines", after, percents=lines, reason=body.reason)
        return _serialize(db, after)

    return state.store.write(work)


def parse_amount(text: str, hint: str | None = None) -> int:
    """Return micro-dollars."""
    try:
        return money.from_decimal(text[:100])
    except ValueError as wrong:
        raise InvalidRequest(f"{wrong}.", hint=hint) from None


def _changeable(db: Read, caller: Principal, budget_id: UUID) -> AccountRow:
    """Return a budget that the caller may change: a lead those of members and jobs, an admin the team's too.

    Raises NotFound, Forbidden.
    """
    account = _own(db, caller, budget_id)
    if account.kind == "org" and len(queries.load_team_ids(db)) > 1:
        raise Forbidden("The organization's budget is shared by several teams.", hint="Set the team's budget instead.")
    return account


def _require_others(caller: Principal, account: AccountRow) -> None:
    """Raise Forbidden where a lead would give dollars to their own budget."""
    own = ledger.belongs_to(account, caller.team, caller.user)
    if not access.may_raise_budget(caller.role, account.kind, own=own):
        raise own_budget()


def _record(db: Write, caller: Principal, action: str, account: AccountRow, **detail: Any) -> None:
    subject = audit.subject("budget", ledger.title(db, account), account.id)
    audit.record(db, caller, action, subject, **{name: _short(value) for name, value in detail.items()})


def _short(value: Any) -> Any:
    return value[:500] if isinstance(value, str) else value


def _own(db: Read, caller: Principal, budget_id: UUID) -> AccountRow:
    account = ledger.visible_account(db, caller.team, budget_id)
    if not access.is_at_least(caller.role, least := access.budget_role(account.kind)):
        raise too_low(caller, least)
    return account


def _parse_limit(text: str) -> int | None:
    """Return micro-dollars; None for "none", which removes the limit."""
    if text.strip().lower() == "none":
        return None
    return parse_amount(text, hint="Use none to remove the limit.")


def _parse_period(body: rest.SetPeriodRequest, now: int) -> ledger.Plan | None:
    """Return the period; None for a one-off budget. Raises InvalidRequest."""
    if (body.until is not None) != (body.kind == "term"):
        raise InvalidRequest("A term needs its last day, and nothing else has one.", hint="Set until, or leave it out.")
    if body.starts is not None and body.kind == "one_off":
        raise InvalidRequest("A one-off budget has no beginning.", hint="Leave starts out.")
    if body.rollover_cap is not None and body.rollover == "none":
        raise InvalidRequest("There is no cap where nothing carries over.", hint="Set rollover to unspent.")
    if body.kind == "one_off":
        return None
    try:
        zone = periods.checked_time_zone(body.time_zone)
    except ValueError as wrong:
        raise InvalidRequest(f"{wrong}.") from None
    if any(day is not None and not day.year < MAX_YEAR for day in (body.starts, body.until)):
        raise InvalidRequest(f"A period begins, and a term ends, before the year {MAX_YEAR}.")
    begins_at = None if body.starts is None else periods.start_of_day(body.starts, zone)
    if begins_at is not None and begins_at <= now:
        raise InvalidRequest(f"The day {body.starts} has begun in {zone}.", hint="Leave starts out to begin now.")
    if body.until is None:
        ends_at = periods.end_of_month(now if begins_at is None else begins_at, zone)
    else:
        ends_at = periods.end_of_day(body.until, zone)
    if ends_at <= now:
        raise InvalidRequest(f"The day {body.until} is over in {zone}.", hint="Give the last day of the term.")
    if begins_at is not None and ends_at <= begins_at:
        raise InvalidRequest("A term ends on its first day or later.", hint="Set until to a later day than starts.")
    cap = None if body.rollover_cap is None else parse_amount(body.rollover_cap)
    return ledger.Plan(body.kind, zone, ends_at, body.rollover, cap, begins_at)


def _parse_version(if_match: str | None) -> int | None:
    if if_match is None or if_match == "*":
        return None
    digits = if_match.removeprefix("W/").strip('"')
    if not digits.isdecimal() or len(digits) > 18:
        raise PreconditionFailed(
            "If-Match is not an ETag of this budget.", hint="Get the budget again and send its ETag."
        )
    return int(digits)


def _serialize(db: Read, account: AccountRow) -> rest.Budget:
    (budget,) = serialize_budgets(db, [account])
    return budget


def _with_etag(budget: rest.Budget, response: Response) -> rest.Budget:
    response.headers["ETag"] = budget.etag
    return budget
