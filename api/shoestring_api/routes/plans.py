# SPDX-License-Identifier: Apache-2.0
"""Plans: the machines a job would run on, its expected time and cost, and why no faster, before money is spent."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from shoestring_core import rest
from shoestring_core.decide.sizing import Case, Choice, Option, choose
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import TimeLimitUnmet
from shoestring_core.spec import JobSpec
from shoestring_core.store import sizing
from shoestring_core.store.db import Read
from shoestring_core.store.identity import Principal

from shoestring_api.dependencies import Caller, ReadDep, StateDep
from shoestring_api.job_specs import parse_spec
from shoestring_api.json_body import ExactJsonRoute

router = APIRouter(prefix="/v1/plans", tags=["plans"], route_class=ExactJsonRoute)


@router.post("")
def plan_job(body: rest.PlanJob, state: StateDep, db: ReadDep, caller: Caller) -> rest.Plan:
    """Return what the job would run on. Nothing is stored."""
    spec = parse_spec(body.spec, caller, state)
    case = sizing.case(db, caller.team, caller.user, spec, state.timeouts)
    return _serialize(case, choose(case))


def apply_sizing(
    db: Read, caller: Principal, spec: JobSpec, timeouts: Timeouts
) -> tuple[JobSpec, dict[str, Any] | None]:
    """Return the spec with the number of machines that its limits.time needs, and the stored record of that choice.

    Without limits.time the spec is returned unchanged. Raises TimeLimitUnmet if no choice of machines keeps the limit.
    """
    if spec.limits.time is None:
        return spec, None
    case = sizing.case(db, caller.team, caller.user, spec, timeouts)
    choice = choose(case)
    if choice.verdict == "impossible":
        hint = "Or set resources.nodes: the job then runs on those machines until limits.time ends it."
        raise TimeLimitUnmet(f"{choice.text} {choice.why}".strip(), hint=hint, enough_s=choice.enough_s)
    return spec.with_nodes(choice.nodes), {"case": case.as_json(), "choice": choice.as_json()}


def _serialize(case: Case, choice: Choice) -> rest.Plan:
    return rest.Plan(
        verdict=choice.verdict,
        nodes=choice.nodes,
        type=choice.type,
        text=choice.text,
        why=choice.why,
        expected=_serialize_option(choice.option) if choice.option else None,
        limit_s=case.limit_s,
        enough_s=choice.enough_s,
        options=[_serialize_option(option) for option in choice.options],
        runs=len({measurement.job for measurement in case.measurements}),
    )


def _serialize_option(option: Option) -> rest.PlanOption:
    return rest.PlanOption(
        type=option.type,
        market=option.market,
        nodes=option.nodes,
        basis=option.basis,
        run_s=round(option.run_s, 3),
        sure_s=round(option.sure_s, 3),
        cost=rest.Money.of(option.cost),
        need=rest.Money.of(option.need),
        obstacle=option.obstacle or None,
    )
