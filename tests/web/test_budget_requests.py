# SPDX-License-Identifier: Apache-2.0
"""Requests for more dollars on the budget page."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.api.deployment import Deployment
from tests.web.conftest import OpenPage

pytestmark = pytest.mark.any_database


def test_a_request_comes_to_the_admins_phone_and_is_approved_there(deployment: Deployment, open_page: OpenPage) -> None:
    team = next(one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    deployment.admin.put(f"/v1/budgets/{team['id']}", json={"limit": "10.00"})
    page = open_page("/budget", as_admin=True)
    page.set_viewport_size({"width": 360, "height": 740})
    panel = page.locator("[data-requests]")
    expect(panel).to_contain_text("No request is open")
    expect(page.locator(".connection")).to_have_class(re.compile("live"))
    deployment.member.post("/v1/budget-requests", json={"amount": "5.00", "why": "three more seeds"})
    expect(panel).to_contain_text("ben asks for $5.00 more for team vision")
    expect(panel).to_contain_text("three more seeds")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    approve = panel.get_by_role("button", name="Approve")
    before = approve.bounding_box()
    deployment.member.post("/v1/budget-requests", json={"amount": "2.00", "why": "one more sweep"})
    expect(panel).to_contain_text("one more sweep")
    assert approve.first.bounding_box() == before, "a click that is on its way approves what it was meant for"
    approve.first.click()
    expect(panel).to_contain_text("$5.00 for team vision: approved by ada")
    expect(page.locator('[data-budget="team"]')).to_contain_text("$15.00")


def test_a_member_asks_with_a_sentence_and_sees_the_answer(deployment: Deployment, open_page: OpenPage) -> None:
    team = next(one for one in deployment.admin.get("/v1/budgets").json()["budgets"] if one["kind"] == "team")
    deployment.admin.put(f"/v1/budgets/{team['id']}", json={"limit": "10.00"})
    page = open_page("/budget")
    panel = page.locator("[data-requests]")
    panel.get_by_role("button", name="Ask for more").click()
    panel.get_by_label("Dollars more").fill("2.50")
    expect(panel.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    panel.get_by_label("What for").fill("one more sweep")
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(panel).to_contain_text("ben asks for $2.50 more")
    expect(panel.get_by_role("button", name="Approve")).to_have_count(0)
    (request,) = deployment.admin.get("/v1/budget-requests").json()["requests"]
    deployment.admin.post(f"/v1/budget-requests/{request['id']}:deny", json={"note": "next month"})
    expect(panel).to_contain_text("denied by ada, “next month”")
