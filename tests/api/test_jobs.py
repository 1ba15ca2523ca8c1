# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from shoestring_core import money, rest, wire
from shoestring_core.decide import failures
from shoestring_core.states import StopReason
from shoestring_core.store import jobs
from shoestring_core.store.fleet import billing, gangs
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.tables import AccountRow, ProviderRow
from shoestring_core.wording.attempts import MachinePreempted, RankKilled, RolledBack
from shoestring_core.wording.waits import InQueue
from sqlalchemy import update

from tests.api.deployment import OFFER, SPEC, Agent, Deployment
from tests.statements import counted

pytestmark = pytest.mark.any_database


def test_a_job_is_submitted_shown_and_listed(deployment: Deployment) -> None:
    answer = deployment.member.post("/v1/jobs", json={"spec": SPEC})
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["team"], job["user"]) == ("queued", "vision", "ben")
    assert deployment.member.get(answer.headers["location"]).json() == job
    assert [one["id"] for one in deployment.admin.get("/v1/jobs").json()["jobs"]] == [job["id"]]


def test_a_submission_takes_few_statements_and_as_many_however_long_the_queue_is(deployment: Deployment) -> None:
    counts = []
    deployment.submit()
    for waiting in (0, 10):
        for _ in range(waiting):
            deployment.submit()
        with counted(deployment.store) as statements:
            deployment.submit()
        counts.append((statements.transactions, statements.reads, len(statements.writes)))
    assert counts[0] == counts[1]
    transactions = 1 if deployment.store.reader.dialect.name == "postgresql" else 2  # the key is read without one there
    # the key; the providers' answers, accounts, place in the queue, and runs that tell what the kept quote says
    assert counts[0] == (transactions, 5, 4)


def test_damaged_timeouts_of_a_provider_keep_no_job_from_being_submitted_and_listed(deployment: Deployment) -> None:
    dearer = replace(OFFER, provider="other", price="9", on_demand_price="9")
    deployment.store.write(lambda db: save_offers(db, "other", [dearer], deployment.state.timeouts))
    damaged = update(ProviderRow).where(ProviderRow.name == "other").values(timeouts={"boot": "soon"})
    deployment.store.write(lambda db: db.execute(damaged))
    job = deployment.submit()
    assert [one["id"] for one in deployment.member.get("/v1/jobs").json()["jobs"]] == [str(job)]


def test_a_page_of_jobs_takes_as_many_statements_however_long_the_queue_is(deployment: Deployment) -> None:
    counts = []
    deployment.submit()
    deployment.member.get("/v1/jobs")  # reads the offers for this job, which the next ones know
    for waiting in (1, 10):
        for _ in range(waiting):
            deployment.submit()
        with counted(deployment.store) as statements:
            assert deployment.member.get("/v1/jobs").status_code == 200
        counts.append(statements.reads)
    assert counts[0] == counts[1] <= 10


def test_a_repeated_submit_is_one_job(deployment: Deployment) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    first = deployment.member.post("/v1/jobs", json={"spec": SPEC}, headers=headers)
    again = deployment.member.post("/v1/jobs", json={"spec": SPEC}, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    other = deployment.member.post("/v1/jobs", json={"spec": SPEC | {"name": "other"}}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-mismatch")
    assert len(deployment.member.get("/v1/jobs").json()["jobs"]) == 1


def test_a_dry_run_checks_everything_and_stores_nothing(deployment: Deployment) -> None:
    answer = deployment.member.post("/v1/jobs", json={"spec": SPEC, "dry_run": True})
    assert (answer.status_code, answer.json()["spec"]["resources"]["nodes"]) == (200, 1)
    assert deployment.member.get("/v1/jobs").json()["jobs"] == []


def test_money_in_json_is_read_as_written(deployment: Deployment) -> None:
    body = '{"spec": {"recipe": "digits/quickstart", "limits": {"cost": 3.000001}}}'
    answer = deployment.member.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["cost"]["limit"] == {"amount": "3.000001", "currency": "USD"}


def test_an_unchanged_job_is_answered_304(deployment: Deployment) -> None:
    job = deployment.submit()
    first = deployment.member.get(f"/v1/jobs/{job}")
    again = deployment.member.get(f"/v1/jobs/{job}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    deployment.member.post(f"/v1/jobs/{job}:stop")
    assert deployment.member.get(f"/v1/jobs/{job}", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


def test_stop_ends_a_queued_job_and_retry_submits_it_again(deployment: Deployment) -> None:
    job = deployment.submit(name="first")
    stopped = deployment.member.post(f"/v1/jobs/{job}:stop")
    assert (stopped.status_code, stopped.json()["state"], stopped.json()["end_reason"]) == (202, "ended", "user_stop")
    again = deployment.member.post(f"/v1/jobs/{job}:retry")
    assert (again.status_code, again.json()["retried_from"], again.json()["name"]) == (201, str(job), "first")


def test_a_paused_job_is_resumed(deployment: Deployment) -> None:
    job = deployment.submit()
    assert deployment.member.post(f"/v1/jobs/{job}:stop", json={"mode": "pause"}).json()["state"] == "paused"
    assert deployment.member.post(f"/v1/jobs/{job}:resume").json()["state"] == "queued"


def test_a_job_that_its_budget_paused_is_resumed_only_once_that_can_pay_for_a_start(deployment: Deployment) -> None:
    job = deployment.submit()
    deployment.store.write(lambda db: jobs.stop(db, job, "fleet", "pause", stop_reason=StopReason.BUDGET))
    set_team_limit(deployment, "0.01")
    paused = deployment.member.get(f"/v1/jobs/{job}").json()
    assert (paused["state"], paused["wait_reason"], paused["reason"]["code"]) == ("paused", "budget", "budget_short")
    assert "short: starting 1 machine reserves" in paused["status_text"]
    assert "Once it is raised, the job resumes automatically." in paused["status_text"]
    refused = deployment.member.post(f"/v1/jobs/{job}:resume")
    assert (refused.status_code, refused.json()["code"]) == (409, "budget-exceeded")
    assert refused.json()["reason"] == "budget_still_exhausted"
    assert "shoestring budget request" in refused.json()["hint"]
    assert deployment.member.get(f"/v1/jobs/{job}").json() == paused

    set_team_limit(deployment, "10.00")  # as if others had given back what was held for them
    enough = deployment.member.get(f"/v1/jobs/{job}").json()
    assert (enough["state"], enough["wait_reason"], enough["reason"]) == ("paused", "resume", None)
    assert "resume the job to continue" in enough["status_text"]
    assert deployment.member.post(f"/v1/jobs/{job}:resume").json()["state"] == "queued"


def set_team_limit(deployment: Deployment, dollars: str) -> None:
    """Without what else the API does when a limit is raised."""
    micro = money.from_decimal(dollars)
    limited = update(AccountRow).where(AccountRow.kind == "team").values(limit_micro=micro)
    deployment.store.write(lambda db: db.execute(limited))


def test_a_list_is_filtered_and_paged(deployment: Deployment) -> None:
    jobs = [deployment.submit(name=f"job {number}") for number in range(5)]
    deployment.member.post(f"/v1/jobs/{jobs[0]}:stop")
    seen, cursor = [], None
    while True:
        params = {"filter": "state=queued", "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = deployment.member.get("/v1/jobs", params=params).json()
        seen += [one["name"] for one in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["job 4", "job 3", "job 2", "job 1"]


def test_a_job_starts_with_the_weights_of_another_until_it_has_its_own(deployment: Deployment) -> None:
    source, (teacher,) = deployment.running()
    teacher.points(range(1, 9))
    assert teacher.checkpoint(4, {"model.safetensors": b"early"}).status_code == 200
    job = deployment.submit(init=f"job/{source}")
    assert teacher.checkpoint(8, {"model.safetensors": b"late"}).status_code == 200

    (agent,) = deployment.launch(job)
    run = started(agent)
    assert run.resume is None
    assert run.init is not None
    assert run.init.step == 4  # as it was when the job was submitted
    assert deployment.nobody.get(run.init.data_url).content == b"early"
    assert run.task.init == f"job/{source}"

    agent.points(range(1, 5))
    assert agent.checkpoint(3, {"model.safetensors": b"own"}).status_code == 200
    deployment.store.write(lambda db: gangs.open_generation(db, job, 1, RankKilled(0)))
    again = agent.report(member={"generation": 2, "state": "ready", "port": 29500}).order.run
    assert again is not None
    assert again.resume is not None
    assert (again.resume.step, again.init) == (3, None)


def test_a_retry_that_starts_anew_starts_with_the_same_weights(deployment: Deployment) -> None:
    source, (teacher,) = deployment.running()
    teacher.points(range(1, 9))
    teacher.checkpoint(4, {"model.safetensors": b"early"})
    job = deployment.submit(init=f"job/{source}")
    teacher.checkpoint(8, {"model.safetensors": b"late"})
    deployment.member.post(f"/v1/jobs/{job}:stop")
    again = deployment.member.post(f"/v1/jobs/{job}:retry").json()
    (agent,) = deployment.launch(UUID(again["id"]))
    run = started(agent)
    assert run.init is not None
    assert run.init.step == 4


def test_weights_that_nobody_may_see_or_that_are_not_there_are_refused(deployment: Deployment) -> None:
    source, (teacher,) = deployment.running()

    def answer(job: object, who: str = "member") -> tuple[int, str, str]:
        response = getattr(deployment, who).post("/v1/jobs", json={"spec": SPEC | {"init": f"job/{job}"}})
        return response.status_code, response.json().get("code", ""), response.text

    status, code, text = answer(source)
    assert (status, code) == (422, "invalid-spec")
    assert "no checkpoint yet" in text
    assert '"/init"' in text
    teacher.checkpoint(4, {"model.safetensors": b"weights"})
    assert answer(source)[0] == 201
    missing, foreign = answer(uuid4(), "stranger"), answer(source, "stranger")
    assert missing[:2] == (404, "not-found")
    assert foreign[:2] == missing[:2]
    assert deployment.stranger.get(f"/v1/jobs/{source}").json()["detail"] in foreign[2]

    for file in Path(deployment.settings.object_store).glob("**/data*"):
        file.unlink()
    status, code, text = answer(source)
    assert (status, code) == (422, "invalid-spec")
    assert "no longer exists in the object store" in text


def test_a_path_to_weights_is_answered_like_a_path_to_data(deployment: Deployment, tmp_path: Path) -> None:
    allowed, forbidden = tmp_path / "data" / "model", tmp_path / "secret"
    for folder in (allowed, forbidden):
        folder.mkdir(parents=True)
    (agent,) = deployment.launch(deployment.submit(init=str(allowed)))
    assert started(agent).task.init == str(allowed)
    answers = [
        deployment.member.post("/v1/jobs", json={"spec": SPEC | {"init": str(path)}}).json()["errors"][0]
        for path in (forbidden, tmp_path / "missing")
    ]
    messages = [answer["message"].replace(str(tmp_path), "").split("'")[2] for answer in answers]
    assert messages[0] == messages[1]
    assert [answer["code"] for answer in answers] == ["init-not-found"] * 2


def test_a_job_says_which_batches_it_does_without(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 9))
    agent.checkpoint(3, {"model.safetensors": b"good"})
    verdict = failures.Restart(RolledBack("the loss of step 5 is nan", 4, 5), skip=(4, 5))
    assert deployment.store.write(lambda db: gangs.apply_action(db, job, 1, 1, verdict))
    assert deployment.job(job).status_text.endswith(", skipping the batches of steps 4 to 5 (NaN/Inf).")
    run = agent.report(member={"generation": 2, "state": "ready", "port": 29500}).order.run
    assert run is not None
    assert run.resume is not None
    assert (run.resume.step, run.task.skip) == (3, ((4, 5),))
    agent.points(range(4, 12), generation=2)
    curve = deployment.member.get(f"/v1/jobs/{job}/metrics").json()["curves"][0]
    assert curve["steps"] == list(range(1, 12))
    events = deployment.member.get(f"/v1/jobs/{job}/events").json()["events"]
    text = "the loss of step 5 is nan; rolling back and skipping the batches of steps 4 to 5."
    assert {**verdict.reason.as_json(), "text": text} in [event["reason"] for event in events]


def test_a_job_that_recovers_says_so_and_shows_no_value_of_the_steps_that_it_lost(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 9))
    agent.checkpoint(3, {"model.safetensors": b"good"})
    agent.points(range(9, 12), name="val/acc")
    assert deployment.job(job).latest == {"train/loss": 8.1, "val/acc": 11.1}
    assert deployment.store.write(lambda db: gangs.apply_action(db, job, 1, 1, failures.Restart(MachinePreempted(0))))
    recovering = deployment.job(job)
    assert recovering.status_text == "Recovering (attempt 1): resuming from the last checkpoint."
    assert (recovering.latest, recovering.progress.step) == ({"train/loss": 3.1}, 3)
    agent.report(member={"generation": 2, "state": "ready", "port": 29500})
    agent.points(range(4, 6), generation=2)
    assert (deployment.job(job).status_text, deployment.job(job).latest) == ("Training.", {"train/loss": 5.2})


def test_a_job_that_can_soon_store_nothing_says_until_when_it_goes_on_and_what_is_lost(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.points(range(1, 8))
    assert deployment.store.write(lambda db: billing.tell_storage(db, job, 1, "Sign in again.", lost=True))
    shown = deployment.job(job)
    assert shown.status_text.startswith("Training. Its machines run only until 20")
    assert "Sign in again. The machines store a last checkpoint at that time, with upload URLs" in shown.status_text
    events = deployment.member.get(f"/v1/jobs/{job}/events").json()["events"]
    (told,) = [event for event in events if event["kind"] == "storage"]
    assert (told["data"], told["reason"]["text"]) == ({"lost": True}, shown.status_text.removeprefix("Training. "))


def test_a_job_whose_steps_are_done_says_that_it_exports_its_model(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.report(batch=agent.batch(events=[{"kind": "started", "at": 1.0, "data": {"steps_total": 8}}]))
    agent.points(range(1, 8))
    assert deployment.job(job).status_text == "Training."
    agent.points(range(8, 9))
    agent.report(batch=agent.batch(events=[{"kind": "exporting", "at": 2.0, "step": 8}]))
    assert deployment.job(job).status_text == "Exporting the model: training is complete."
    newest = deployment.member.get(f"/v1/jobs/{job}/events").json()["events"][-1]
    assert (newest["data"]["event"], newest["reason"]["code"]) == ("exporting", "agent_exporting")


def test_a_job_that_its_goal_ends_early_says_that_it_exports_its_model(deployment: Deployment) -> None:
    job, (agent,) = deployment.running()
    agent.report(batch=agent.batch(events=[{"kind": "started", "at": 1.0, "data": {"steps_total": 100}}]))
    agent.points(range(1, 9))
    agent.report(batch=agent.batch(events=[{"kind": "exporting", "at": 2.0, "step": 8}]))
    found = deployment.job(job)
    assert found.status_text == "Exporting the model: training is complete."
    assert (found.progress.steps_total, found.progress.fraction, found.progress.eta_s or 0) == (8, 1.0, 0)


def started(agent: Agent) -> wire.LaunchConfig:
    """What the only machine of a fresh job is told to run."""
    agent.register()
    run = agent.report(member={"generation": 1, "state": "ready", "port": 29500}).order.run
    assert run is not None
    return run


def test_a_job_may_name_any_provider_that_a_worker_serves(deployment: Deployment) -> None:
    def submit(provider: str) -> httpx.Response:
        spec = SPEC | {"resources": {"provider": provider}}
        return deployment.member.post("/v1/jobs", json={"spec": spec})

    refused = submit("third")
    assert refused.status_code == 422
    (problem,) = refused.json()["errors"]
    assert (problem["pointer"], problem["code"]) == ("/resources/provider", "unknown-provider")
    assert OFFER.provider in problem["message"]
    third = replace(OFFER, provider="third", region="elsewhere")
    deployment.store.write(lambda db: save_offers(db, "third", [third], deployment.state.timeouts))
    assert submit("third").status_code == 201


def test_a_queued_job_tells_its_place_among_the_jobs_of_its_member(deployment: Deployment) -> None:
    deployment.stranger.post("/v1/jobs", json={"spec": SPEC})
    first, second = deployment.submit(), deployment.submit()
    assert [deployment.job(job).queue_position for job in (first, second)] == [1, 2]
    listed = deployment.member.get("/v1/jobs").json()["jobs"]
    assert [(one["id"], one["queue_position"]) for one in listed[:2]] == [(str(second), 2), (str(first), 1)]
    waiting = deployment.job(second)
    assert waiting.status_text == "Waiting for its turn (number 2 of its owner's queued jobs). It starts automatically."
    assert (waiting.wait_reason, waiting.reason) == ("turn", rest.Reason.of(InQueue()))
