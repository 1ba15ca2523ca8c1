# SPDX-License-Identifier: Apache-2.0
"""What a job would run on, asked before it is submitted; and what it is then submitted on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from shoestring_core import money, results
from shoestring_core.decide.sizing import SizingRecord, choose_machines
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.tables import AccountRow, JobRow, MachineRow
from shoestring_core.store.transactions import Write
from sqlalchemy import update

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


def end(deployment: Deployment, job: UUID, seconds: float, spent: int) -> None:
    """The queued job ends as one does that has trained so long on one machine, and spent so many micro-dollars."""
    (agent,) = deployment.launch(job)

    def write(db: Write) -> None:
        launched, ended = db.now, db.now + round(seconds * 1e6)
        of_machine = update(MachineRow).where(MachineRow.id == agent.machine)
        db.execute(of_machine.values(launched_at=launched, state="terminated", ended_at=ended))
        of_job = {"state": "ended", "end_reason": "succeeded", "first_step_at": launched}
        db.execute(update(JobRow).where(JobRow.id == job).values(**of_job, ended_at=ended, settled_at=ended))
        db.execute(update(AccountRow).where(AccountRow.owner == str(job)).values(posted=spent))

    deployment.store.write(write)


@pytest.fixture
def known(deployment: Deployment) -> Deployment:
    """Measured: one machine takes about 8 s an epoch, two take 5; there are four."""
    offer = replace(OFFER, slots=4)
    deployment.store.write(lambda db: save_offers(db, "local", [offer], deployment.state.timeouts))
    measure(deployment, 1, 0.18)
    measure(deployment, 2, 0.115)
    return deployment


def quote(deployment: Deployment, *machine_counts: int, **fields: Any) -> dict[str, Any]:
    body = {"spec": QUICK | fields, "machine_counts": machine_counts}
    answer = deployment.member.post("/v1/quotes", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_quote_has_time_cost_and_budget_of_each_offer_and_stores_nothing(known: Deployment) -> None:
    slow = quote(known, limits={"time": "20m", "cost": "1.00"})
    assert (slow["outcome"], slow["nodes"], slow["type"], slow["runs"]) == ("chosen", 1, "local.cpu", 2)
    (best,) = slow["offers"]
    assert (best["basis"], best["runs"], best["nodes"]) == ("measured", 1, 1)
    assert best["time_s"]["low"] < best["time_s"]["expected"] < best["time_s"]["high"]
    low, expected, high = (money.from_decimal(best["cost"][name]["amount"]) for name in ("low", "expected", "high"))
    assert 0 < low < expected < high
    assert best["offer"]["fetched_at"] is not None
    assert best["interruptions"]["source"] == "unknown"  # no spot machine ran for long enough
    assert [one["nodes"] for one in slow["machine_counts"]] == [1, 2, 4]
    assert [one["basis"] for one in slow["machine_counts"]] == ["measured", "measured", "scaled"]
    assert slow["machine_counts"][2]["scaled_from"] == ["1 × local.cpu", "2 × local.cpu"]
    assert slow["machine_counts"][0] == best
    assert "2 × local.cpu would take" in slow["why_not_faster"]["text"]
    assert quote(known, limits={"time": "8m20s"})["nodes"] == 2
    assert len(known.member.get("/v1/jobs").json()["jobs"]) == 2  # the two that were measured


def test_what_a_quote_says_is_held_is_what_a_start_holds(known: Deployment) -> None:
    (best,) = quote(known, resources={"nodes": 2})["offers"]
    job = known.submit(**QUICK, resources={"nodes": 2})
    known.launch(job)
    assert known.job(job).cost.held.amount == best["hold"]["amount"]


def test_other_numbers_of_machines_are_quoted_as_asked_for(known: Deployment) -> None:
    asked = quote(known, 3, 8)["machine_counts"]
    assert [(one["nodes"], one["basis"], one["infeasible_reason"]) for one in asked] == [
        (3, "scaled", None),
        (8, "unknown", "slots"),  # more than twice what was measured, and more than there are
    ]
    assert asked[1]["time_s"] is asked[1]["cost"] is None
    for wrong in ([0], [65], [1] * 9, ["2"]):
        refused = known.member.post("/v1/quotes", json={"spec": QUICK, "machine_counts": wrong})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request")


def test_a_quote_of_what_was_never_measured_has_no_time_and_the_worst_case_by_its_limits(known: Deployment) -> None:
    other = {"params": {"width": 16}}
    (best,) = quote(known, **other)["offers"]
    assert (best["basis"], best["time_s"], best["cost"], best["max_cost"]) == ("unknown", None, None, None)
    (limited,) = quote(known, **other, limits={"time": "1h"})["offers"]
    boot_and_drain = (known.state.timeouts.boot + known.state.timeouts.drain) / 3.6e9
    assert float(limited["max_cost"]["amount"]) == pytest.approx(0.526 * (1 + boot_and_drain), abs=2e-6)
    (capped,) = quote(known, **other, limits={"time": "1h", "cost": "0.25"})["offers"]
    assert capped["max_cost"]["amount"] == "0.25"


def test_a_quote_counts_down_the_tightest_budget(known: Deployment) -> None:
    (team,) = (one for one in known.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    limited = known.admin.put(
        f"/v1/budgets/{team['id']}", json={"limit": "2.00"}, headers={"If-Match": team["etag"]}
    ).json()
    (best,) = quote(known)["offers"]
    micro = {name: money.from_decimal(best[name]["amount"]) for name in ("hold", "left_after_hold", "left_after_end")}
    assert micro["left_after_hold"] == money.from_decimal(limited["left"]["amount"]) - micro["hold"]
    expected = money.from_decimal(best["cost"]["expected"]["amount"])
    assert micro["left_after_end"] == money.from_decimal(limited["left"]["amount"]) - expected


def test_a_time_limit_picks_the_machines_and_says_so(known: Deployment) -> None:
    limits = {"time": "8m20s"}
    answer = known.member.post("/v1/jobs", json={"spec": QUICK | {"limits": limits}})
    assert answer.status_code == 201, answer.text
    job, quoted = answer.json(), quote(known, limits=limits)
    assert job["spec"]["resources"]["nodes"] == 2
    assert job["sizing"]["text"].endswith(f" {quoted['why_not_faster']['text']}")
    assert job["sizing"]["facts"]["summary"]["code"] == "machines_chosen"
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


def test_a_quote_has_one_estimate_and_its_summary_says_the_rest(known: Deployment) -> None:
    assert quote(known)["summary"]["text"] == "It runs on 1 × local.cpu."
    chosen = quote(known, limits={"time": "8m20s"})
    assert chosen["summary"]["text"] == "It runs on 2 × local.cpu, the cheapest to keep limits.time of 8m20s."
    assert (chosen["offers"][0]["nodes"], chosen["offers"][0]["basis"]) == (2, "measured")
    asked = quote(known, limits={"time": "2h"}, resources={"nodes": 1})
    assert asked["summary"]["text"] == "It runs on 1 × local.cpu, with limits.time of 2h00m."
    short = quote(known, limits={"time": "10s"}, resources={"nodes": 1})["summary"]["text"]
    assert short.startswith("It runs on 1 × local.cpu. It may take longer than limits.time of 10s, at which")


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
    asked = known.stranger.post("/v1/quotes", json={"spec": QUICK | {"limits": {"time": "20m"}}}).json()
    assert (asked["outcome"], asked["machine_counts"], asked["runs"]) == ("unmeasured", [], 0)
    assert [one["basis"] for one in asked["offers"]] == ["unknown"]


def test_a_job_that_would_be_refused_is_refused_by_a_quote_with_the_same_answer(known: Deployment) -> None:
    for wrong in (
        {"recipe": "digits/quickstar"},
        QUICK | {"limits": {"tme": "5m"}},
        QUICK | {"team": "speech"},
        {"recipe": "imagefolder/resnet9", "data": {"train": "/nowhere"}},
        "recipe: [",
        QUICK | {"limits": {"time": "10s"}},  # no machines are so fast
        QUICK | {"limits": {"cost": "0.000001"}},  # doesn't even pay for the first hold
    ):
        submitted = known.member.post("/v1/jobs", json={"spec": wrong})
        quoted = known.member.post("/v1/quotes", json={"spec": wrong})
        assert quoted.status_code == submitted.status_code >= 400
        assert quoted.json() == submitted.json()
    assert known.nobody.post("/v1/quotes", json={"spec": QUICK}).status_code == 401


def test_a_job_that_nothing_suits_is_quoted_what_it_would_wait_for(known: Deployment) -> None:
    quoted = quote(known, resources={"spot": "never"})
    assert quoted["offers"] == []
    assert quoted["no_offer"]["code"] == "no_offer"


def test_a_retry_keeps_the_machines_that_were_chosen(known: Deployment) -> None:
    job = known.member.post("/v1/jobs", json={"spec": QUICK | {"limits": {"time": "8m20s"}}}).json()
    known.member.post(f"/v1/jobs/{job['id']}:stop")
    again = known.member.post(f"/v1/jobs/{job['id']}:retry").json()
    assert (again["spec"], again["sizing"]) == (job["spec"], job["sizing"])


def test_more_machines_than_there_ever_are_are_refused_wherever_they_are_asked_for(deployment: Deployment) -> None:
    offer = replace(OFFER, slots=2)
    deployment.store.write(lambda db: save_offers(db, OFFER.provider, [offer], deployment.state.timeouts))
    for path in ("/v1/quotes", "/v1/jobs"):
        answer = deployment.member.post(path, json={"spec": QUICK | {"resources": {"nodes": 4}}})
        (problem,) = answer.json()["errors"]
        assert (answer.status_code, problem["pointer"], problem["code"]) == (422, "/resources/nodes", "too-few-slots")
        assert "shoestring up --slots 4" in problem["message"]
    assert deployment.member.get("/v1/jobs").json()["jobs"] == []
    deployment.submit(resources={"nodes": 2})


def test_the_quote_at_submission_is_kept_and_compared_with_what_the_job_took(known: Deployment) -> None:
    (best,) = quote(known, resources={"nodes": 1})["offers"]
    job = known.submit(**QUICK, resources={"nodes": 1})
    kept = known.member.get(f"/v1/jobs/{job}/cost").json()["quote"]
    assert (kept["time_s"], kept["cost"], kept["actual"]) == (best["time_s"], best["cost"], None)
    assert "once it has ended" in kept["summary"]["text"]
    held = known.member.get("/v1/quotes/calibration").json()
    assert (held["compared"], held["recipes"]) == (0, [])
    spent = money.from_decimal(best["cost"]["expected"]["amount"]) * 100
    end(known, job, best["time_s"]["expected"], spent)
    kept = known.member.get(f"/v1/jobs/{job}/cost").json()["quote"]
    assert (kept["actual"]["time_place"], kept["actual"]["cost_place"]) == ("within", "above")
    assert "the time is within the quote, the cost more than quoted" in kept["summary"]["text"]
    held = known.member.get("/v1/quotes/calibration").json()
    assert held["recipes"] == [
        {"recipe": "digits/quickstart@1", "compared": 1, "time_within": 1, "cost_within": 0, "not_compared": 0}
    ]
    assert known.stranger.get("/v1/quotes/calibration").json()["recipes"] == []
    known.store.write(lambda db: db.execute(update(JobRow).where(JobRow.id == job).values(quote={"nodes": "odd"})))
    assert known.member.get(f"/v1/jobs/{job}/cost").json()["quote"] is None  # damaged: as if there were none


def test_checkpoints_that_outlast_a_notice_are_told_by_quote_submission_and_job(known: Deployment) -> None:
    assert quote(known)["offers"][0]["outlasts_notice"] is None  # no run has stored one
    _, (agent,) = known.running(**QUICK)
    steps = list(range(1, 61))
    points = {"name": "epoch", "steps": steps, "times": [1.8e9 + one for one in steps], "values": steps}
    agent.report(batch=agent.batch(points=[points]))
    assert agent.checkpoint(60, {"model": b"x" * 4000}, save_s=130.0).is_success
    assert quote(known)["offers"][0]["outlasts_notice"] is None  # the provider's notice isn't known

    timeouts = known.state.timeouts.model_copy(update={"notice": 115 * S})
    known.store.write(lambda db: save_offers(db, "local", [replace(OFFER, slots=4)], timeouts))
    told = quote(known)["offers"][0]["outlasts_notice"]
    assert told["facts"] == {
        "basis": "measured", "type": "local.cpu", "bytes": 4000, "needed_s": 130.0, "notice_s": 115.0
    }  # fmt: skip
    assert "checkpoint.every" in told["text"]
    submitted = known.member.post("/v1/jobs", json={"spec": QUICK}).json()
    assert submitted["outlasts_notice"] == told
    assert known.member.get(f"/v1/jobs/{submitted['id']}").json()["outlasts_notice"] == told
    assert quote(known, params={"width": 16})["offers"][0]["outlasts_notice"] is None  # of another size
    assert known.stranger.post("/v1/quotes", json={"spec": QUICK}).json()["offers"][0]["outlasts_notice"] is None


def test_a_job_of_which_nothing_is_known_keeps_no_quote(known: Deployment) -> None:
    job = known.submit(recipe="digits/quickstart", params={"width": 16})
    assert known.member.get(f"/v1/jobs/{job}/cost").json()["quote"] is None
