# SPDX-License-Identifier: Apache-2.0
"""Plans: the machines a job would run on, its expected time and cost, and why not faster, before anything is spent."""

from __future__ import annotations

from fastapi import APIRouter
from shoestring_core import rest
from shoestring_core.decide.placement import require_enough_slots
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.sizing import Choice, Option, SizingInputs, SizingRecord, choose_machines
from shoestring_core.decide.sizing_reasons import explain
from shoestring_core.errors import TimeLimitUnmet
from shoestring_core.spec import JobSpec
from shoestring_core.store import sizing_inputs
from shoestring_core.store.identity import Principal
from shoestring_core.store.transactions import Read

from shoestring_api.dependencies import Caller, ReadDep, StateDep
from shoestring_api.job_specs import parse_spec
from shoestring_api.json_body import ExactJsonRoute

router = APIRouter(prefix="/v1/plans", tags=["plans"], route_class=ExactJsonRoute)


@router.post("")
def plan_job(body: rest.PlanJobRequest, state: StateDep, db: ReadDep, caller: Caller) -> rest.Plan:
    """Return what the job would run on. Nothing is stored."""
    spec = parse_spec(body.spec, caller, state)
    inputs = sizing_inputs.load_sizing_inputs(db, caller.team, caller.user, spec)
    require_enough_slots(inputs.offers, Requirements.of(spec.resources))
    return _serialize(inputs, choose_machines(inputs))


def apply_sizing(db: Read, caller: Principal, spec: JobSpec) -> tuple[JobSpec, SizingRecord | None]:
    """Return the spec with the number of machines that its limits.time needs, and the stored record of that choice.

    Without limits.time the spec is returned unchanged. Raises TimeLimitUnmet if no choice of machines keeps the limit.
    """
    if spec.limits.time is None:
        return spec, None
    inputs = sizing_inputs.load_sizing_inputs(db, caller.team, caller.user, spec)
    choice = choose_machines(inputs)
    reason = explain(inputs, choice)
    if choice.outcome == "infeasible":
        raise TimeLimitUnmet(reason, sufficient_time_limit_s=choice.sufficient_time_limit_s)
    return spec.with_nodes(choice.nodes), SizingRecord(inputs, choice, reason)


def _serialize(inputs: SizingInputs, choice: Choice) -> rest.Plan:
    reason = explain(inputs, choice)
    return rest.Plan(
        outcome=choice.outcome,
        nodes=choice.nodes,
        type=choice.type,
        summary=rest.Reason.of(reason.summary),
        why_not_faster=rest.Reason.of(reason.why_not_faster) if reason.why_not_faster else None,
        expected=_serialize_option(choice.option) if choice.option else None,
        time_limit_s=inputs.time_limit_s,
        sufficient_time_limit_s=choice.sufficient_time_limit_s,
        options=[_serialize_option(option) for option in choice.options],
        runs=len({measurement.job for measurement in inputs.measurements}),
    )


def _serialize_option(option: Option) -> rest.PlanOption:
    return rest.PlanOption(
        type=option.type,
        market=option.market,
        nodes=option.nodes,
        basis=option.basis,
        run_s=round(option.run_s, 3),
        run_upper_s=round(option.run_upper_s, 3),
        cost=rest.Money.of(option.cost),
        budget_needed=rest.Money.of(option.budget_needed),
        infeasible_reason=option.infeasible_reason or None,
    )
