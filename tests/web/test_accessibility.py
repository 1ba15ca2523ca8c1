# SPDX-License-Identifier: Apache-2.0
"""axe finds nothing serious on any page, in any state, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from playwright.sync_api import Page, expect
from shoestring_core.decide.failures import EndJob
from shoestring_core.states import EndReason, StopReason
from shoestring_core.store import jobs
from shoestring_core.store.fleet import gangs
from shoestring_core.store.tables import JobRow
from shoestring_core.wording import attempts
from shoestring_core.wording.waits import BudgetShort
from sqlalchemy import update

from tests.api.deployment import Deployment
from tests.web.conftest import OpenPage, have_loaded
from tests.web.test_dashboard import set_limit

pytestmark = pytest.mark.any_database


def test_signing_in_and_pages_without_jobs(
    deployment: Deployment, open_page: OpenPage, page: Page, inspect: Any
) -> None:
    page.goto(f"{deployment.url}/login")
    page.get_by_label("API key").fill("sst_pat_nonsense")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    inspect("a refused key")
    open_page("/", as_admin=True)
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    expect(page.get_by_text("shoestring submit digits/quickstart")).to_be_visible()
    inspect("no jobs")
    page.goto(f"{deployment.url}/nowhere")
    expect(page.get_by_role("heading", name="Page not found")).to_be_visible()
    inspect("no page")
    page.goto(f"{deployment.url}/new")
    expect(page.get_by_role("status", name="Quote")).to_contain_text("is held to start")
    inspect("a quote")
    page.get_by_label("lr", exact=True).fill("-1")
    page.get_by_role("button", name="Validate").click()
    expect(page.get_by_role("alert").first).to_be_visible()
    inspect("an invalid spec")
    page.get_by_label("Job spec, YAML").fill("recipe: [")
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    inspect("a slip in the YAML")
    page.goto(f"{deployment.url}/budget")
    have_loaded(page)
    page.locator('[data-budget="team"]').get_by_role("button", name="Set limit").click()
    inspect("a limit is edited")


def test_pages_that_load_or_failed_to(deployment: Deployment, open_page: OpenPage, page: Page, inspect: Any) -> None:
    job = deployment.submit()
    open_page("/")
    page.route(f"**/v1/jobs/{job}/*", lambda _: None)
    page.goto(f"{deployment.url}/jobs/{job}")
    expect(page.get_by_role("region", name="Artifacts").get_by_role("status", name="Loading")).to_be_visible()
    for sentence in ("No machines yet", "No log lines", "Curves appear", "appear here after the final checkpoint"):
        expect(page.get_by_text(sentence)).to_have_count(0)
    inspect("a job that loads")
    page.unroute_all()
    page.route(
        f"**/v1/jobs/{job}/*", lambda route: route.fulfill(status=404, json={"title": "Gone", "detail": "It is gone."})
    )
    page.reload()
    expect(page.get_by_role("region", name="Artifacts").get_by_role("alert")).to_contain_text("It is gone.")
    expect(page.get_by_role("region", name="Log").get_by_role("alert")).to_be_visible()
    inspect("a job that can't be read")


def test_jobs_in_all_states(deployment: Deployment, open_page: OpenPage, page: Page, inspect: Any) -> None:
    shown = dict(_jobs(deployment))
    set_limit(deployment, "team", "0.000001")
    open_page("/", as_admin=True)
    expect(page.locator("tr[data-job]")).to_have_count(len(shown))
    inspect("jobs")
    page.goto(f"{deployment.url}/budget")
    expect(page.get_by_text("Overdraft", exact=False).last).to_be_visible()
    inspect("an overdrawn budget")
    for state, job in shown.items():
        page.goto(f"{deployment.url}/jobs/{job}")
        have_loaded(page)
        expect(page.get_by_role("list", name="Events, newest first")).to_be_visible()
        if state == "recovering":
            page.get_by_text("Values", exact=True).first.click()
            page.get_by_text("System metrics").click()
            page.get_by_text("Constant:").click()
            page.get_by_role("button", name="Stop", exact=True).click()
            inspect("a dialog")
            page.keyboard.press("Escape")
        inspect(state)


def _jobs(deployment: Deployment) -> Iterator[tuple[str, UUID]]:
    waiting = deployment.submit(name="waiting")
    short = BudgetShort("team vision", "0.20", "0.12", 1)
    values = {"wait_reason": short.waits_for, "wait_detail": short.as_json()}
    deployment.store.write(lambda db: db.execute(update(JobRow).where(JobRow.id == waiting).values(**values)))
    yield "waiting", waiting
    yield "launching", deployment.running(name="launching")[0]
    recovering, (agent,) = deployment.running(name="recovering")
    agent.points(range(1, 30))
    constant = {"name": "train/momentum", "steps": list(range(1, 30)), "times": [1e9] * 29, "values": [0.9] * 29}
    load = {"name": "system/cpu_percent", "steps": [1, 2], "times": [1e9, 1e9 + 1], "values": [50.0, 60.0]}
    agent.report(batch=agent.batch(points=[constant, load]))
    agent.log(
        b"\x1b[31mred\x1b[0m \x1b[32mgreen\x1b[0m \x1b[33myellow\x1b[0m \x1b[2mdim\x1b[0m " + b"long " * 200 + b"\n"
    )
    assert agent.checkpoint(4, {"model.json": b"{}"}).status_code == 200
    reason = attempts.MachinePreempted(0)
    deployment.store.write(lambda db: gangs.open_generation(db, recovering, 1, reason))
    yield "recovering", recovering
    paused, _ = deployment.running(name="paused")
    deployment.store.write(lambda db: jobs.stop(db, paused, "fleet", "pause", stop_reason=StopReason.BUDGET))
    yield "stopping", paused
    succeeded, (agent,) = deployment.running(name="succeeded")
    agent.points(range(1, 5))
    assert agent.checkpoint(4, {"model.json": b"{}"}, reason="final", result={"val/acc": 0.98}).status_code == 200
    yield "succeeded", succeeded
    failed, _ = deployment.running(name="failed")
    end = EndJob(EndReason.USER_CODE, attempts.TrainingFailed(0, "user_code", "a tensor has the wrong shape"))
    assert deployment.store.write(lambda db: gangs.apply_action(db, failed, 1, 1, end))
    yield "failed", failed
