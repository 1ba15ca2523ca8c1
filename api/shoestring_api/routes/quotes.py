# SPDX-License-Identifier: Apache-2.0
"""Quotes: where a job would run, its expected time and cost, and why not faster, before anything is spent."""

from __future__ import annotations

from fastapi import APIRouter
from shoestring_core import rest
from shoestring_core.decide.calibration import calibrate
from shoestring_core.decide.deadline_plans import plan_deadline
from shoestring_core.decide.deadlines import DeadlinePlan
from shoestring_core.decide.quotes import QuotedOffer, QuoteInputs, make_quote, quote_first
from shoestring_core.decide.sizing import Choice, SizingInputs, SizingRecord, choose_machines
from shoestring_core.decide.sizing_reasons import explain
from shoestring_core.errors import TimeLimitUnmet
from shoestring_core.spec import JobSpec
from shoestring_core.store import jobs, kept_quotes, ledger, quote_inputs, sizing_inputs
from shoestring_core.store.fleet import planning
from shoestring_core.store.identity import Principal
from shoestring_core.store.transactions import Read
from shoestring_core.wording.sizing import Sized

from shoestring_api.dependencies import Caller, ReadDep, StateDep
from shoestring_api.job_specs import parse_spec
from shoestring_api.json_body import ExactJsonRoute
from shoestring_api.serializers.quotes import serialize_calibration, serialize_quote

router = APIRouter(prefix="/v1/quotes", tags=["quotes"], route_class=ExactJsonRoute)


@router.post("")
def create_quote(body: rest.CreateQuoteRequest, state: StateDep, db: ReadDep, caller: Caller) -> rest.Quote:
    """Return where the job would run, how long it takes and what it costs. Nothing is stored.

    A job that would be refused is refused here with the same error.
    """
    spec = parse_spec(body.spec, caller, state)
    sizing, choice, reason = _size(db, caller, spec)
    sized = spec.with_nodes(choice.nodes)
    paying = ledger.paying_accounts(db, caller.team, caller.user)
    jobs.check_affordable(db, paying, sized.limits.cost, planning.min_hold(db, sized))
    chosen_type = choice.type if spec.limits.time is not None else None
    inputs = quote_inputs.load_quote_inputs(db, paying, sized, sizing, chosen_type, body.machine_counts)
    plan = _plan(db, inputs, sized)
    promise = None
    if plan is not None:
        jobs.check_worst_case(db, paying, sized.limits.cost, plan.worst_case)
        promise = jobs.promise_deadline(db, paying, plan)
    return serialize_quote(make_quote(inputs), inputs, choice, reason, promise)


@router.get("/calibration")
def get_calibration(db: ReadDep, caller: Caller) -> rest.Calibration:
    """Return how often the team's newest jobs took the time and the cost that were quoted when they were submitted."""
    return serialize_calibration(calibrate(kept_quotes.load_quoted_jobs(db, caller.team)))


def apply_sizing(db: Read, caller: Principal, spec: JobSpec) -> tuple[JobSpec, SizingRecord | None]:
    """Return the spec with the number of machines that its limits.time needs, and the stored record of that choice.

    Without limits.time the spec is returned unchanged. Raises TimeLimitUnmet if no choice of machines keeps the limit.
    """
    if spec.limits.time is None:
        return spec, None
    inputs, choice, reason = _size(db, caller, spec)
    return spec.with_nodes(choice.nodes), SizingRecord(inputs, choice, reason)


def quote_submission(
    db: Read, caller: Principal, spec: JobSpec, sizing: SizingRecord | None
) -> QuotedOffer | None:  # fmt: skip
    """Return the quote of the offer that a job would get, to be kept with it; None if no run says what it takes.

    `spec` and `sizing` are as `apply_sizing` returns them.
    """
    if spec.recipe is None or not db.once(sizing_inputs.has_trained, caller.team, spec.recipe):
        return None
    inputs = sizing.inputs if sizing else sizing_inputs.load_sizing_inputs(db, caller.team, caller.user, spec)
    if not inputs.measurements:
        return None
    paying = ledger.paying_accounts(db, caller.team, caller.user)
    chosen_type = sizing.choice.type if sizing else None
    return quote_first(quote_inputs.load_quote_inputs(db, paying, spec, inputs, chosen_type))


def plan_submission(
    db: Read, caller: Principal, spec: JobSpec, sizing: SizingRecord | None
) -> DeadlinePlan | None:  # fmt: skip
    """Return how a job is to keep its deadline; None if it has none. Raises DeadlineUnmet if it can't.

    `spec` and `sizing` are as `apply_sizing` returns them.
    """
    if spec.limits.deadline is None:
        return None
    inputs = sizing.inputs if sizing else sizing_inputs.load_sizing_inputs(db, caller.team, caller.user, spec)
    paying = ledger.paying_accounts(db, caller.team, caller.user)
    chosen_type = sizing.choice.type if sizing else None
    return _plan(db, quote_inputs.load_quote_inputs(db, paying, spec, inputs, chosen_type), spec)


def _plan(db: Read, inputs: QuoteInputs, spec: JobSpec) -> DeadlinePlan | None:
    deadline = spec.deadline_at(db.now)
    return None if deadline is None else plan_deadline(inputs, deadline)


def _size(db: Read, caller: Principal, spec: JobSpec) -> tuple[SizingInputs, Choice, Sized]:
    inputs = sizing_inputs.load_sizing_inputs(db, caller.team, caller.user, spec)
    choice = choose_machines(inputs)
    reason = explain(inputs, choice)
    if choice.outcome == "infeasible":
        raise TimeLimitUnmet(reason, sufficient_time_limit_s=choice.sufficient_time_limit_s)
    return inputs, choice, reason
