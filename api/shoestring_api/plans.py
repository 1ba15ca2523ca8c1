# SPDX-License-Identifier: Apache-2.0
"""Which machines a job would run on, how long, for what, and why no faster; before any money is spent."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from shoestring_core import rest
from shoestring_core.decide.sizing import choose
from shoestring_core.decide.timeouts import Timeouts
from shoestring_core.errors import TimeLimitUnmet
from shoestring_core.spec import JobSpec
from shoestring_core.store import sizing
from shoestring_core.store.db import Read
from shoestring_core.store.identity import Principal

from shoestring_api import specs, views
from shoestring_api.bodies import ExactRoute
from shoestring_api.service import Caller, Here, Reading

router = APIRouter(prefix="/v1/plans", tags=["plans"], route_class=ExactRoute)


@router.post("")
def plan(body: rest.PlanJob, service: Here, db: Reading, caller: Caller) -> rest.Plan:
    """What the job would run on. Nothing is stored."""
    spec = specs.read(body.spec, caller, service)
    case = sizing.case(db, caller.team, caller.user, spec, service.timeouts)
    return views.plan(case, choose(case))


def size(db: Read, caller: Principal, spec: JobSpec, timeouts: Timeouts) -> tuple[JobSpec, dict[str, Any] | None]:
    """The spec on the machines that its limits.time needs, and why those; as it is without such a limit.

    Raises TimeLimitUnmet if the choice is ours and none keeps the limit.
    """
    if spec.limits.time is None:
        return spec, None
    case = sizing.case(db, caller.team, caller.user, spec, timeouts)
    choice = choose(case)
    if choice.verdict == "impossible":
        hint = "Or name resources.nodes: then it runs on those until limits.time ends it."
        raise TimeLimitUnmet(f"{choice.text} {choice.why}".strip(), hint=hint, enough_s=choice.enough_s)
    return spec.with_nodes(choice.nodes), {"case": case.as_json(), "choice": choice.as_json()}
