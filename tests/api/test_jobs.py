# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from uuid import uuid4

from tests.api.deployment import SPEC, Deployment


def test_a_job_is_submitted_shown_and_listed(here: Deployment) -> None:
    answer = here.member.post("/v1/jobs", json={"spec": SPEC})
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["team"], job["user"]) == ("queued", "vision", "ben")
    assert here.member.get(answer.headers["location"]).json()["id"] == job["id"]
    assert [one["id"] for one in here.admin.get("/v1/jobs").json()["jobs"]] == [job["id"]]


def test_a_repeated_submit_is_one_job(here: Deployment) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    first = here.member.post("/v1/jobs", json={"spec": SPEC}, headers=headers)
    again = here.member.post("/v1/jobs", json={"spec": SPEC}, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    other = here.member.post("/v1/jobs", json={"spec": SPEC | {"name": "other"}}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-mismatch")
    assert len(here.member.get("/v1/jobs").json()["jobs"]) == 1


def test_a_dry_run_checks_everything_and_stores_nothing(here: Deployment) -> None:
    answer = here.member.post("/v1/jobs", json={"spec": SPEC, "dry_run": True})
    assert (answer.status_code, answer.json()["spec"]["resources"]["nodes"]) == (200, 1)
    assert here.member.get("/v1/jobs").json()["jobs"] == []


def test_money_in_json_is_read_as_written(here: Deployment) -> None:
    body = '{"spec": {"recipe": "digits/quickstart", "limits": {"cost": 3.000001}}}'
    answer = here.member.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["cost"]["limit"] == {"amount": "3.000001", "currency": "USD"}


def test_an_unchanged_job_is_answered_304(here: Deployment) -> None:
    job = here.submit()
    first = here.member.get(f"/v1/jobs/{job}")
    again = here.member.get(f"/v1/jobs/{job}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    here.member.post(f"/v1/jobs/{job}:stop")
    assert here.member.get(f"/v1/jobs/{job}", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


def test_stop_ends_a_queued_job_and_retry_submits_it_again(here: Deployment) -> None:
    job = here.submit(name="first")
    stopped = here.member.post(f"/v1/jobs/{job}:stop")
    assert (stopped.status_code, stopped.json()["state"], stopped.json()["end_reason"]) == (202, "ended", "user_stop")
    again = here.member.post(f"/v1/jobs/{job}:retry")
    assert (again.status_code, again.json()["retried_from"], again.json()["name"]) == (201, str(job), "first")


def test_a_paused_job_is_resumed(here: Deployment) -> None:
    job = here.submit()
    assert here.member.post(f"/v1/jobs/{job}:stop", json={"mode": "pause"}).json()["state"] == "paused"
    assert here.member.post(f"/v1/jobs/{job}:resume").json()["state"] == "queued"


def test_a_list_is_filtered_and_paged(here: Deployment) -> None:
    jobs = [here.submit(name=f"job {number}") for number in range(5)]
    here.member.post(f"/v1/jobs/{jobs[0]}:stop")
    seen, cursor = [], None
    while True:
        params = {"filter": "state=queued", "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = here.member.get("/v1/jobs", params=params).json()
        seen += [one["name"] for one in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["job 4", "job 3", "job 2", "job 1"]
