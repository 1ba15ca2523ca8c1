# SPDX-License-Identifier: Apache-2.0
"""The dashboard decides by codes: it behaves the same when every sentence of the service reads differently."""

from __future__ import annotations

from uuid import UUID

import pytest
from playwright.sync_api import Locator, Page, expect
from shoestring_core import wording
from shoestring_core.decide.failures import EndJob
from shoestring_core.states import EndReason, StopReason
from shoestring_core.store import jobs
from shoestring_core.store.fleet import gangs
from shoestring_core.store.tables import JobRow
from shoestring_core.wording import attempts, waits
from sqlalchemy import update

from tests.api.deployment import Deployment
from tests.web.conftest import OpenPage
from tests.web.test_dashboard import set_limit

pytestmark = pytest.mark.any_database


@pytest.fixture(autouse=True)
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "render", lambda code, facts: f"§§ {code}")


def test_lists_badges_and_hints_follow_the_codes(deployment: Deployment, open_page: OpenPage) -> None:
    short, behind = deployment.submit(name="short"), deployment.submit(name="behind")
    wait_for(deployment, short, waits.BudgetShort("team vision", "0.20", "0.12", 1))
    wait_for(deployment, behind, waits.BehindJobShortOfBudget("team vision"))
    exhausted, _ = deployment.running(name="exhausted")
    deployment.store.write(lambda db: jobs.stop(db, exhausted, "fleet", "pause", stop_reason=StopReason.BUDGET))
    fail(deployment, "broken")

    page = open_page("/")
    expect(row(page, short)).to_contain_text("§§ waiting")
    states = {"short": "queued", "behind": "queued", "exhausted": "stopping", "broken": "failed"}
    for name, state in states.items():
        expect(page.locator("tr[data-job]").filter(has_text=name).locator(".badge")).to_have_text(state)

    set_limit(deployment, "team", "0.000001")
    page.goto(f"{deployment.url}/budget")
    note = page.get_by_role("status").filter(has_text="waiting for budget")
    expect(note.get_by_role("link", name="short")).to_be_visible()
    expect(note).to_contain_text("§§ waiting")


def test_a_job_and_its_timeline_follow_the_codes(deployment: Deployment, open_page: OpenPage) -> None:
    job = fail(deployment, "broken")
    page = open_page(f"/jobs/{job}")
    expect(page.locator("[data-status-text]")).to_have_text("§§ ended")
    expect(page.locator(".badge")).to_have_text("failed")
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_have_count(0)

    timeline = page.get_by_role("list", name="Events, newest first")
    expect(timeline.locator("li.main").filter(has_text="Job ended")).to_contain_text("§§ training_failed")
    expect(timeline.locator("li.main").filter(has_text="Training started")).to_contain_text("§§ agent_started")
    expect(timeline.locator("li.warn").filter(has_text="Gradient overflow at step 2")).to_contain_text(
        "§§ agent_gradient_overflow"
    )
    expect(timeline).not_to_contain_text("Machine m0 registered")
    page.get_by_label("Show billing and system events").check()
    expect(timeline).to_contain_text("Machine m0 registered")

    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".badge")).to_have_text("queued")


def test_a_refusal_is_shown_in_the_words_of_the_service(deployment: Deployment, open_page: OpenPage) -> None:
    (team,) = (one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    deployment.admin.put(f"/v1/budgets/{team['id']}", json={"limit": "0.01"}, headers={"If-Match": team["etag"]})
    page = open_page("/new")
    page.get_by_label("Cost limit, dollars").fill("5.00")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("§§ account_limit_too_low")


def wait_for(deployment: Deployment, job: UUID, detail: waits.WaitDetail) -> None:
    values = {"wait_reason": detail.waits_for, "wait_detail": detail.as_json()}
    deployment.store.write(lambda db: db.execute(update(JobRow).where(JobRow.id == job).values(**values)))


def fail(deployment: Deployment, name: str) -> UUID:
    """A job whose training code raised an exception at step 3."""
    job, (agent,) = deployment.running(name=name)
    events = [
        {"kind": "started", "at": 1.0, "step": 0, "data": {"steps_total": 9, "world": 1}},
        {"kind": "gradient_overflow", "at": 2.0, "step": 2, "data": {"scale": 32768}},
    ]
    agent.report(batch=agent.batch(events=events))
    agent.points(range(1, 3))
    end = EndJob(EndReason.USER_CODE, attempts.TrainingFailed(0, "user_code", "a tensor has the wrong shape"))
    assert deployment.store.write(lambda db: gangs.apply_action(db, job, 1, 1, end))
    return job


def row(page: Page, job: UUID) -> Locator:
    return page.locator(f'tr[data-job="{job}"]')
