# SPDX-License-Identifier: Apache-2.0
"""limits.deadline over REST: what is promised and reserved, and why it may be refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from shoestring_core import money
from shoestring_core.store import ledger
from shoestring_core.store.fleet import billing
from shoestring_core.store.fleet.offers import save_offers

from tests.api.deployment import OFFER, Deployment
from tests.api.test_quotes import QUICK, measure

pytestmark = pytest.mark.any_database


@pytest.fixture
def known(deployment: Deployment) -> Deployment:
    """There are spot machines and on-demand ones; a run on one of them was measured."""
    both = [replace(OFFER, slots=4), replace(OFFER, slots=4, market="on_demand", price=OFFER.on_demand_price)]
    deployment.store.write(lambda db: save_offers(db, "local", both, deployment.state.timeouts))
    measure(deployment, 1, 0.18)
    return deployment


def submit(deployment: Deployment, deadline: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    limits = {"deadline": deadline} | fields.pop("limits", {})
    answer = deployment.member.post("/v1/jobs", json={"spec": QUICK | fields | {"limits": limits}})
    return answer.status_code, answer.json()


def budget(deployment: Deployment) -> dict[str, Any]:
    return next(one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")


def limit_to(deployment: Deployment, dollars: str) -> None:
    team = budget(deployment)
    body, headers = {"limit": dollars}, {"If-Match": team["etag"]}
    assert deployment.admin.put(f"/v1/budgets/{team['id']}", json=body, headers=headers).status_code == 200


def test_a_submission_states_the_worst_case_reserves_it_and_says_what_is_left(known: Deployment) -> None:
    limit_to(known, "5.00")
    quoted = known.member.post("/v1/quotes", json={"spec": QUICK | {"limits": {"deadline": "12h"}}}).json()
    before = money.from_decimal(budget(known)["left"]["amount"])
    status, job = submit(known, "12h")
    assert status == 201, job
    promised = job["deadline"]["facts"]
    assert job["deadline"]["code"] == "deadline_promised"
    assert promised["runs"] == 1
    assert quoted["deadline"]["facts"]["worst_case"] == promised["worst_case"]
    worst, after = money.from_decimal(promised["worst_case"]), money.from_decimal(budget(known)["left"]["amount"])
    assert worst > 0
    assert job["queue_position"] == 1
    assert (before - after, money.from_decimal(promised["left"])) == (worst, after)
    assert job["cost"]["held"]["amount"] == promised["worst_case"]
    due = datetime.fromisoformat(job["spec"]["limits"]["deadline"])
    assert abs(due - datetime.now(UTC) - timedelta(hours=12)) < timedelta(minutes=5)
    with known.store.read() as db:
        assert ledger.find_discrepancies(db) == []


def test_a_deadline_that_cannot_be_promised_is_refused_with_a_sentence_and_nothing_changes(known: Deployment) -> None:
    def stored() -> tuple[list[str], dict[str, Any]]:
        return [job["id"] for job in known.member.get("/v1/jobs").json()["jobs"]], budget(known)

    before = stored()
    refusals: list[tuple[str, dict[str, Any], str]] = [
        ("2020-01-01T00:00Z", {}, "deadline_passed"),
        ("2m", {}, "deadline_too_early"),
        ("12h", {"params": {"width": 16}}, "duration_unknown"),
        ("12h", {"resources": {"nodes": 3}}, "duration_unknown"),
    ]
    for deadline, fields, reason in refusals:
        status, problem = submit(known, deadline, **fields)
        assert (status, problem["code"], problem["reason"]) == (409, "deadline-unmet", reason)
        assert problem["detail"]
        assert problem["hint"]
    spot = [replace(OFFER, slots=4)]
    known.store.write(lambda db: save_offers(db, "local", spot, known.state.timeouts))
    status, problem = submit(known, "12h")
    assert (status, problem["reason"]) == (409, "no_on_demand_machines")
    assert stored() == before


def test_a_time_limit_says_how_long_a_job_takes_that_was_never_measured_and_its_end_frees_the_rest(
    known: Deployment,
) -> None:
    before = budget(known)
    status, job = submit(known, "12h", params={"width": 16}, limits={"time": "1h"})
    assert (status, job["deadline"]["facts"]["runs"]) == (201, 0)
    assert job["deadline"]["facts"]["work_us"] == 3_600_000_000
    assert budget(known)["held"] != before["held"]
    known.member.post(f"/v1/jobs/{job['id']}:stop")
    known.store.write(lambda db: billing.settle_job(db, UUID(job["id"])))
    assert budget(known)["held"] == before["held"]


def test_a_budget_that_cannot_carry_the_worst_case_refuses_the_job(known: Deployment) -> None:
    worst = submit(known, "12h")[1]["deadline"]["facts"]["worst_case"]
    for limits in ({"cost": "0.01"}, {}):
        if not limits:
            spent = money.from_decimal(budget(known)["held"]["amount"])
            limit_to(known, money.to_decimal(spent + money.from_decimal(worst) - 1))
        before = budget(known)
        status, problem = submit(known, "12h", limits=limits)
        assert (status, problem["code"]) == (409, "budget-exceeded")
        if not limits:
            assert problem["reason"] == "deadline_unaffordable"
            assert problem["need"] == worst
        assert budget(known) == before


def test_what_ifs_of_a_deadline_and_of_gpus_are_checked_and_change_nothing(known: Deployment) -> None:
    kept, other = submit(known, "12h")[1]["id"], str(known.submit(**QUICK))
    for change in ({"deadline": "2040-01-01T09:00+01:00"}, {"gpu": "H100"}, {"gpu": "none"}):
        answer = known.member.post("/v1/what-ifs", json={"jobs": [{"job": kept} | change]})
        assert answer.status_code == 200, answer.text
    for job, change in (
        (other, {"deadline": "2040-01-01T09:00Z"}),  # it has none
        (kept, {"deadline": "2040-01-01T09:00"}),
        (kept, {"deadline": "Friday"}),
        (kept, {"gpu": "A10G:0"}),
        (kept, {"gpu": ""}),
    ):
        refused = known.member.post("/v1/what-ifs", json={"jobs": [{"job": job} | change]})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request"), change
