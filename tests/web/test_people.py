# SPDX-License-Identifier: Apache-2.0
"""The page of people and keys, and the way into a team by an invitation."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.api.deployment import Deployment
from tests.servers import until
from tests.web.conftest import OpenPage, hold

pytestmark = pytest.mark.any_database


def test_an_invitation_is_taken_and_the_admin_sees_it_without_a_refresh(
    deployment: Deployment, open_page: OpenPage, page: Page, inspect: Any
) -> None:
    open_page("/people", as_admin=True)
    inspect("people and keys")
    page.get_by_label("Role", exact=True).select_option("lead")
    page.get_by_role("button", name="Make a link").click()
    link = page.locator("[data-invitation-link] code").text_content()
    assert link is not None
    expect(page.get_by_role("list", name="Open invitations")).to_contain_text("lead")
    assert page.context.browser is not None
    with page.context.browser.new_context() as theirs:
        invited = theirs.new_page()
        invited.goto(link)
        expect(invited.get_by_text("ada invites you to team vision as a lead")).to_be_visible()
        invited.get_by_label("Your name").fill("ben")
        invited.get_by_role("button", name="Join").click()
        expect(invited.get_by_role("alert")).to_contain_text("taken")
        invited.get_by_label("Your name").fill("dora")
        invited.get_by_role("button", name="Join").click()
        expect(invited.get_by_role("button", name="Menu of dora, team vision")).to_be_visible()
        expect(page.locator('[data-member="dora"]')).to_be_visible()
        expect(page.get_by_text("No invitation is open.")).to_be_visible()
        invited.goto(link)
        expect(invited.get_by_role("alert")).to_contain_text("used already")
        expect(invited.get_by_role("button", name="Join")).to_have_count(0)


def test_roles_keys_and_logins_are_changed_on_the_page(
    deployment: Deployment, open_page: OpenPage, page: Page, inspect: Any
) -> None:
    open_page("/people", as_admin=True)
    change = hold(page, "PUT", "/v1/members/*")
    page.get_by_label("Role of ben").select_option("viewer")
    under_way = change()
    expect(page.get_by_label("Role of ben")).to_have_value("viewer")
    under_way.continue_()
    page.unroute_all()
    until(lambda: _roles(deployment)["ben"] == "viewer")
    expect(page.get_by_label("Role of ben")).to_have_value("viewer")
    page.get_by_label("Role of ada").select_option("viewer")
    expect(page.get_by_role("alert")).to_contain_text("only admin")
    expect(page.get_by_label("Role of ada")).to_have_value("admin")
    remove_ada = page.locator('[data-member="ada"]').get_by_role("button", name="Remove")
    expect(remove_ada).to_be_disabled()
    expect(remove_ada).to_have_accessible_description("The only admin stays.")
    page.get_by_role("button", name="Make a key").click()
    expect(page.locator("[data-new-key] code")).to_have_text(re.compile("sst_pat_.{36}"))
    made = next(one for one in deployment.admin.get("/v1/keys").json()["keys"] if one["name"] == "made in the browser")
    ends = page.locator("[data-new-key] time")
    assert datetime.fromisoformat(str(ends.get_attribute("datetime"))) == datetime.fromisoformat(made["expires_at"])
    inspect("a new key")
    page.locator('[data-member="ben"]').get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.locator('[data-member="ben"]')).to_have_count(0)
    assert deployment.member.get("/v1/me").status_code == 401
    page.get_by_role("region", name="Where you are signed in").get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()


def _roles(deployment: Deployment) -> dict[str, str]:
    return {one["user"]: one["role"] for one in deployment.admin.get("/v1/members").json()["members"]}


def test_a_viewer_is_offered_nothing_that_viewers_may_not_do(deployment: Deployment, open_page: OpenPage) -> None:
    job = deployment.submit()
    ben = next(one for one in deployment.admin.get("/v1/members").json()["members"] if one["user"] == "ben")
    assert deployment.admin.put(f"/v1/members/{ben['id']}", json={"role": "viewer"}).is_success
    page = open_page(f"/jobs/{job}")
    expect(page.get_by_role("region", name="Cost")).to_be_visible()
    for name in ("Stop", "Retry", "Resume"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    expect(page.get_by_role("link", name="New job")).to_have_count(0)
    page.goto(f"{deployment.url}/budget")
    expect(page.get_by_text("No request is open")).to_be_visible()
    expect(page.get_by_role("button", name="Ask for more")).to_have_count(0)


def test_a_member_sees_who_is_there_and_changes_nobody(open_page: OpenPage, page: Page, inspect: Any) -> None:
    open_page("/people")
    expect(page.locator('[data-member="ada"]')).to_contain_text("admin")
    expect(page.get_by_label("Role of ada")).to_have_count(0)
    expect(page.get_by_role("button", name="Make a link")).to_have_count(0)
    inspect("people as a member sees them")
    page.get_by_role("region", name="Your keys").get_by_role("button", name="Revoke").click()
    expect(page.get_by_label("API key")).to_be_visible()  # the login that was made with it has ended too
