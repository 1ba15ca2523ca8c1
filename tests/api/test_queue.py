# SPDX-License-Identifier: Apache-2.0
"""The queue over REST."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from shoestring_api.queue_projection import SHARED_FOR_S, ProjectedQueue, SharedProjection
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.schedule import schedule_jobs
from shoestring_core.store.fleet import queue
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.tables import JobRow
from sqlalchemy import select, update

from tests.api.deployment import OFFER, Deployment
from tests.api.test_quotes import QUICK, measure

pytestmark = pytest.mark.any_database


def read(deployment: Deployment) -> dict[str, Any]:
    answer = deployment.member.get("/v1/queue")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def busy(deployment: Deployment) -> Deployment:
    """One machine in all, which a job has whose end is known; two more wait, and one of another team, quoted alike."""
    measure(deployment, 1, 0.18)
    spot = replace(OFFER, slots=1)
    deployment.store.write(lambda db: save_offers(db, "local", [spot], deployment.state.timeouts))
    deployment.store.write(lambda db: db.execute(update(JobRow).values(steps_total=100_000)))
    for name in ("first", "second"):
        deployment.submit(**QUICK, name=name)
    body = {"spec": {"recipe": "digits/quickstart", "resources": {"nodes": 1}, "name": "of strangers"}}
    assert deployment.stranger.post("/v1/jobs", json=body).status_code == 201
    with deployment.store.read() as db:
        quote = next(quote for quote in db.sql.scalars(select(JobRow.quote)) if quote)
    deployment.store.write(lambda db: db.execute(update(JobRow).values(quote=quote)))
    return deployment


def test_waiting_jobs_have_a_place_a_reason_an_expected_start_and_a_cost(busy: Deployment) -> None:
    found = read(busy)
    assert (found["waiting"], found["further_back"]) == (3, 0)
    first, second = found["jobs"]
    assert [first["name"], second["name"]] == ["first", "second"]
    assert (first["wait_reason"], first["reason"]["code"]) == ("slots", "machines_in_use")
    starts = [datetime.fromisoformat(one["start"]["at"]) for one in (first, second)]
    at = datetime.fromisoformat(found["at"])
    assert at < starts[0] < starts[1]
    assert first["start"]["offer"]["type"] == "local.cpu"
    assert first["start"]["cost"] is not None
    assert first["outlook"]["text"].startswith("About ")
    (theirs,) = busy.stranger.get("/v1/queue").json()["jobs"]
    for told in (str(found), busy.member.get("/v1/jobs").text, busy.member.get(f"/v1/jobs/{first['job']}").text):
        assert "strangers" not in told
        assert theirs["job"] not in told
    assert sorted([first["position"], second["position"], theirs["position"]]) == [1, 2, 3]


def test_a_job_is_told_for_how_much_more_it_would_start_now(busy: Deployment) -> None:
    dear = Offer("local", "local", "", "local.cpu", "on_demand", "0.526", "0.526", 1, "test", True)
    other = Offer("sim", "sim", "", "local.cpu", "on_demand", "0.526", "0.526", 4, "test", True)
    cheap = replace(OFFER, slots=1)
    busy.store.write(lambda db: save_offers(db, "local", [cheap, dear], busy.state.timeouts))
    busy.store.write(lambda db: save_offers(db, "sim", [other], busy.state.timeouts))
    job = busy.submit(**QUICK, name="choosy", resources={"nodes": 1, "provider": "local"})
    (entry,) = (one for one in read(busy)["jobs"] if one["job"] == str(job))
    text = entry["outlook"]["text"]
    assert text.startswith("Starts now on 1 × local.cpu (on demand) for $0.")
    assert "more if submitted with resources.provider=sim, or about " in text


def test_the_queue_of_a_team_without_waiting_jobs_is_empty(deployment: Deployment) -> None:
    assert read(deployment)["jobs"] == []
    deployment.running(**QUICK)
    assert read(deployment)["jobs"] == []


def test_places_are_those_in_which_the_scheduler_looks_at_the_jobs(busy: Deployment) -> None:
    with busy.store.read() as db:
        snapshot = queue.load_queue(db, busy.state.timeouts, {}).snapshot
    decided = schedule_jobs(snapshot, [replace(OFFER, slots=1)], 0, {"local": busy.state.timeouts})
    order = [str(one.job) for one in decided.waits]
    assert [one["position"] for one in read(busy)["jobs"]] == [
        place for place, job in enumerate(order, start=1) if job in {one["job"] for one in read(busy)["jobs"]}
    ]


def what_if(deployment: Deployment, **changes: Any) -> dict[str, Any]:
    answer = deployment.member.post("/v1/what-ifs", json=changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_what_if_says_what_would_move_and_changes_nothing(busy: Deployment) -> None:
    jobs = {one["name"]: one["job"] for one in read(busy)["jobs"]}
    found = what_if(busy, jobs=[{"job": jobs["second"], "first": True}])
    assert found["summary"]["text"] == "1 job would start earlier; 1 job would start later."
    moved = {one["name"]: one for one in found["jobs"]}
    assert moved["second"]["after"]["at"] < moved["second"]["before"]["at"]
    assert [one["name"] for one in read(busy)["jobs"]] == ["first", "second"]
    (team,) = (one for one in busy.member.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    cut = what_if(busy, budgets=[{"budget": team["id"], "limit": "0"}])
    assert "1 running job would save a checkpoint and pause" in cut["summary"]["text"]
    assert all(one["after"] is None for one in cut["jobs"])
    (budget,) = cut["budgets"]
    assert (budget["owner"], budget["limit_before"], budget["limit_after"]["amount"]) == ("vision", None, "0.00")
    spent = [float(points[-1]["spent"]["amount"]) for points in (budget["before"], budget["after"])]
    assert spent[0] > spent[1] > 0
    (after,) = (one for one in busy.member.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    assert after["limit"] is None
    assert (
        busy.stranger.post("/v1/what-ifs", json={"budgets": [{"budget": team["id"], "limit": "0"}]}).status_code == 404
    )


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"limit": "-1"}, 422),
        ({"limit": "NaN"}, 422),
        ({"limit": "9" * 40}, 422),
        ({"weight": 0}, 422),
        ({"colour": "red"}, 422),
    ],
)
def test_a_what_if_that_makes_no_sense_is_refused(deployment: Deployment, change: dict[str, Any], status: int) -> None:
    budget = deployment.member.get("/v1/budgets").json()["budgets"][0]["id"]
    refused = deployment.member.post("/v1/what-ifs", json={"budgets": [{"budget": budget} | change]})
    assert refused.status_code == status, refused.text


def test_a_what_if_of_a_job_that_is_not_in_the_queue_is_refused(busy: Deployment) -> None:
    (theirs,) = busy.stranger.get("/v1/queue").json()["jobs"]
    refused = busy.member.post("/v1/what-ifs", json={"jobs": [{"job": theirs["job"], "stop": True}]})
    assert (refused.status_code, refused.json()["code"]) == (404, "not-found")


def test_the_projection_is_shared_until_something_changes_or_some_time_has_passed(busy: Deployment) -> None:
    clock = [0.0]
    shared = SharedProjection(lambda: clock[0])

    def get() -> ProjectedQueue:
        with busy.store.read() as db:
            return shared.get(db, busy.state.timeouts)

    first = get()
    assert get() is first
    clock[0] = SHARED_FOR_S - 1
    assert get() is first
    clock[0] = SHARED_FOR_S
    second = get()
    assert second is not first
    busy.submit(**QUICK)
    third = get()
    assert len(third.projection.order) == len(second.projection.order) + 1
    busy.refresh_offers()
    assert get() is not third
