# SPDX-License-Identifier: Apache-2.0
"""What a job would run on, asked before it is submitted; and what it is then submitted on."""

from __future__ import annotations

from typing import Any

import pytest
from shoestring_core import results
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.sizing import SizingRecord, choose_machines
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.tables import JobRow

from tests.api.deployment import OFFER, Deployment

pytestmark = pytest.mark.any_database

QUICK = {"recipe": "digits/quickstart", "params": {"width": 8, "epochs": 60}}


def measure(deployment: Deployment, nodes: int, step_s: float) -> None:
    """A run in which 60 steps of 45 an epoch took so long each, and evaluation once half a second."""
    _, agents = deployment.running(**QUICK, resources={"nodes": nodes})
    steps = list(range(1, 61))
    times = [1.8e9 + step * step_s for step in steps]
    epochs = {"name": "epoch", "steps": steps, "times": times, "values": [step / 45 for step in steps]}
    evaluation = {"name": results.EVALUATION_S, "steps": [45], "times": [times[44]], "values": [0.5]}
    agents[0].report(batch=agents[0].batch(points=[epochs, evaluation]))


@pytest.fixture
def known(deployment: Deployment) -> Deployment:
    """Measured: one machine takes about 8 s an epoch, two take 5; there are four."""
    offer = Offer(**{**vars(OFFER), "slots": 4})
    deployment.store.write(lambda db: save_offers(db, "local", [offer], deployment.state.timeouts))
    measure(deployment, 1, 0.18)
    measure(deployment, 2, 0.115)
    return deployment


def plan(deployment: Deployment, **fields: Any) -> dict[str, Any]:
    answer = deployment.member.post("/v1/plans", json={"spec": QUICK | fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_plan_shows_table_choice_and_cost_and_stores_nothing(known: Deployment) -> None:
    slow = plan(known, limits={"time": "20m"})
    assert (slow["outcome"], slow["nodes"], slow["type"], slow["runs"]) == ("chosen", 1, "local.cpu", 2)
    assert [one["nodes"] for one in slow["options"]] == [1, 2, 3, 4]
    assert slow["expected"] == slow["options"][0]
    assert slow["expected"]["cost"]["currency"] == "USD"
    assert "2 × local.cpu would take" in slow["why_not_faster"]["text"]
    assert plan(known, limits={"time": "8m20s"})["nodes"] == 2
    infeasible = plan(known, limits={"time": "10s"})
    assert (infeasible["outcome"], infeasible["time_limit_s"]) == ("infeasible", 10)
    assert plan(known, limits={"time": infeasible["sufficient_time_limit_s"]})["outcome"] == "chosen"
    assert len(known.member.get("/v1/jobs").json()["jobs"]) == 2  # the two that were measured


def test_a_time_limit_picks_the_machines_and_says_so(known: Deployment) -> None:
    limits = {"time": "8m20s"}
    answer = known.member.post("/v1/jobs", json={"spec": QUICK | {"limits": limits}})
    assert answer.status_code == 201, answer.text
    job, planned = answer.json(), plan(known, limits=limits)
    assert job["spec"]["resources"]["nodes"] == 2
    assert job["sizing"]["text"] == f"{planned['summary']['text']} {planned['why_not_faster']['text']}"
    assert job["sizing"]["facts"]["summary"]["code"] == planned["summary"]["code"] == "machines_chosen"
    (sizing_event,) = [
        e for e in known.member.get(f"/v1/jobs/{job['id']}/events").json()["events"] if e["kind"] == "sizing"
    ]
    assert (sizing_event["reason"], sizing_event["data"]["nodes"], sizing_event["data"]["type"]) == (
        job["sizing"],
        2,
        "local.cpu",
    )
    with known.store.read() as db:
        stored = next(row.sizing for row in db.sql.query(JobRow) if str(row.id) == job["id"])
    record = SizingRecord.from_json(stored)
    assert choose_machines(record.inputs) == record.choice


def test_a_limit_that_no_machines_keep_is_refused_unless_the_count_is_named(known: Deployment) -> None:
    hasty = QUICK | {"limits": {"time": "10s"}}
    refused = known.member.post("/v1/jobs", json={"spec": hasty})
    assert (refused.status_code, refused.json()["code"]) == (409, "time-limit-unmet")
    assert f"limits.time={refused.json()['sufficient_time_limit_s'] // 60}m" in refused.json()["detail"]
    assert "resources.nodes" in refused.json()["hint"]
    named = known.member.post("/v1/jobs", json={"spec": hasty | {"resources": {"nodes": 1}}})
    assert named.status_code == 201
    assert "at which the job is stopped" in named.json()["sizing"]["text"]
    assert named.json()["spec"]["resources"]["nodes"] == 1


def test_what_was_never_measured_runs_as_asked_and_says_that(known: Deployment) -> None:
    other = {"recipe": "digits/quickstart", "params": {"width": 16}, "limits": {"time": "5m"}}
    job = known.member.post("/v1/jobs", json={"spec": other}).json()
    assert job["spec"]["resources"]["nodes"] == 1
    assert "No similar run has been measured" in job["sizing"]["text"]
    assert known.member.post("/v1/jobs", json={"spec": QUICK}).json()["sizing"] is None  # no limit, no choice


def test_a_team_learns_nothing_from_another(known: Deployment) -> None:
    asked = known.stranger.post("/v1/plans", json={"spec": QUICK | {"limits": {"time": "20m"}}}).json()
    assert (asked["outcome"], asked["options"], asked["runs"]) == ("unmeasured", [], 0)


def test_a_plan_checks_the_spec_as_a_submission_does(deployment: Deployment) -> None:
    for wrong in (
        {"recipe": "digits/quickstar"},
        QUICK | {"limits": {"tme": "5m"}},
        QUICK | {"team": "speech"},
        {"recipe": "imagefolder/resnet9", "data": {"train": "/nowhere"}},
        "recipe: [",
    ):
        submitted = deployment.member.post("/v1/jobs", json={"spec": wrong})
        planned = deployment.member.post("/v1/plans", json={"spec": wrong})
        assert planned.status_code == submitted.status_code >= 400
        assert planned.json() == submitted.json()
    assert deployment.nobody.post("/v1/plans", json={"spec": QUICK}).status_code == 401


def test_a_retry_keeps_the_machines_that_were_chosen(known: Deployment) -> None:
    job = known.member.post("/v1/jobs", json={"spec": QUICK | {"limits": {"time": "8m20s"}}}).json()
    known.member.post(f"/v1/jobs/{job['id']}:stop")
    again = known.member.post(f"/v1/jobs/{job['id']}:retry").json()
    assert (again["spec"], again["sizing"]) == (job["spec"], job["sizing"])


def test_more_machines_than_there_ever_are_are_refused_wherever_they_are_asked_for(deployment: Deployment) -> None:
    offer = Offer(**{**vars(OFFER), "slots": 2})
    deployment.store.write(lambda db: save_offers(db, OFFER.provider, [offer], deployment.state.timeouts))
    for path in ("/v1/plans", "/v1/jobs"):
        answer = deployment.member.post(path, json={"spec": QUICK | {"resources": {"nodes": 4}}})
        (problem,) = answer.json()["errors"]
        assert (answer.status_code, problem["pointer"], problem["code"]) == (422, "/resources/nodes", "too-few-slots")
        assert "shoestring up --slots 4" in problem["message"]
    assert deployment.member.get("/v1/jobs").json()["jobs"] == []
    deployment.submit(resources={"nodes": 2})
