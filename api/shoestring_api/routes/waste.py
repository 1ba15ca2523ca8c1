# SPDX-License-Identifier: Apache-2.0
"""What the team's machines were paid for, and what of it was wasted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query
from shoestring_core import rest
from shoestring_core.decide import waste
from shoestring_core.decide.forecast import DAY
from shoestring_core.store.waste import load_use

from shoestring_api.dependencies import Caller, ReadDep
from shoestring_api.serializers.times import to_datetime

JOBS = 10

router = APIRouter(prefix="/v1", tags=["budgets"])


@router.get("/waste")
def get_waste(db: ReadDep, caller: Caller, days: Annotated[int, Query(ge=1, le=366)] = 28) -> rest.WasteReport:
    """Return what the machines of the last days cost, and what of it was wasted, by cause; and the ten worst jobs."""
    since = db.now - days * DAY
    used = load_use(db, caller.team, since)
    return rest.WasteReport(
        since=to_datetime(since),
        total=_split(waste.add(one.parts for one in used)),
        jobs=[
            rest.JobWaste(job=one.job, name=one.name, cost=_split(one.parts))
            for one in used[:JOBS]
            if waste.wasted(one.parts) > 0
        ],
    )


def _split(parts: Mapping[waste.Use, int]) -> rest.SplitCost:
    return rest.SplitCost(
        cost=rest.Money.of(sum(parts.values())),
        training=rest.Money.of(parts.get("training", 0)),
        wasted=rest.Money.of(waste.wasted(parts)),
        causes=[rest.Waste(cause=cause, cost=rest.Money.of(parts.get(cause, 0))) for cause in waste.CAUSES],
    )
