# SPDX-License-Identifier: Apache-2.0
"""The queue page, in real Chromium: live, and with what-ifs that change nothing until they are applied."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.tables import JobRow
from sqlalchemy import select, update

from tests.api.deployment import OFFER, Deployment
from tests.api.test_quotes import QUICK, measure
from tests.web.conftest import OpenPage

pytestmark = pytest.mark.any_database


def _busy(deployment: Deployment) -> dict[str, str]:
    """One machine, which a job has that ends in some time; two jobs wait. Their ids, by name."""
    measure(deployment, 1, 0.18)
    one = replace(OFFER, slots=1)
    deployment.store.write(lambda db: save_offers(db, "local", [one], deployment.state.timeouts))
    deployment.store.write(lambda db: db.execute(update(JobRow).values(steps_total=100_000)))
    return {name: str(deployment.submit(**QUICK, name=name)) for name in ("first", "second")}


def test_the_queue_moves_without_a_refresh(deployment: Deployment, open_page: OpenPage) -> None:
    page = open_page("/queue")
    expect(page.get_by_role("heading", name="No job of your team is waiting")).to_be_visible()
    jobs = _busy(deployment)
    rows = page.locator("tr[data-queued]")
    expect(rows).to_have_count(2)
    first = page.locator(f'tr[data-queued="{jobs["first"]}"]')
    expect(first.locator("[data-outlook]")).to_contain_text("About ")
    (team,) = (one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    at_once = f"/v1/budgets/{team['id']}/concurrency"
    assert deployment.admin.put(at_once, json={"max_jobs": 1, "max_gpus": None}).status_code == 200
    expect(first).to_contain_text("Team vision runs 1 of at most 1 job at once.")
    assert deployment.admin.put(at_once, json={"max_jobs": None, "max_gpus": None}).status_code == 200
    expect(first).not_to_contain_text("at most 1 job")
    headers = {"If-Match": team["etag"]}
    cut = deployment.admin.put(f"/v1/budgets/{team['id']}", json={"limit": "0.01"}, headers=headers)
    assert cut.status_code == 200, cut.text
    expect(first).to_contain_text("budget")  # what the cap cut means for it
    assert deployment.member.post(f"/v1/jobs/{jobs['first']}:stop").status_code == 202
    expect(rows).to_have_count(1)
    page.get_by_role("link", name="second").click()
    expect(page.locator("[data-outlook]")).to_contain_text("Place 1 in the queue")


def test_a_what_if_moves_the_schedule_and_is_applied_by_an_admin(deployment: Deployment, open_page: OpenPage) -> None:
    jobs = _busy(deployment)
    page = open_page("/queue", as_admin=True)
    panel = page.get_by_role("region", name="What if")
    panel.get_by_label("Job", exact=True).select_option(jobs["second"])
    panel.get_by_role("button", name="Show what would change").click()
    expect(panel.get_by_role("status")).to_have_text("1 job would start earlier; 1 job would start later.")
    starts = [
        panel.locator(f'tr[data-moves="{job}"] time').nth(column).get_attribute("datetime")
        for job in jobs.values()
        for column in (0, 1)
    ]
    assert starts[1] > starts[0]
    assert starts[3] < starts[2]
    panel.get_by_label("Job", exact=True).select_option("")
    panel.get_by_label("Another limit, dollars").fill("0.02")
    panel.get_by_role("button", name="Show what would change").click()
    expect(panel.locator("[data-spending]")).to_contain_text("limit none, then $0.02")
    _fits(page)
    with deployment.store.read() as db:
        assert len(list(db.sql.scalars(select(JobRow).where(JobRow.state == "queued")))) == 2
    panel.get_by_role("button", name="Set this limit: $0.02").click()
    expect(panel.locator("[data-what-if]")).to_have_count(0)
    (team,) = (one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    assert team["limit"]["amount"] == "0.02"


def _fits(page: Page) -> None:
    """On a phone nothing is wider than the page."""
    page.set_viewport_size({"width": 360, "height": 800})
    beyond = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(beyond) <= 0
