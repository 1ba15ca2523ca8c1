# SPDX-License-Identifier: Apache-2.0
"""axe finds nothing serious in the states that a reader leads a page into, or a service that doesn't answer.

Those of jobs and budgets, which the service brings about itself, are in test_accessibility.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from playwright.sync_api import Page, Route, expect
from shoestring_core.states import JobState
from shoestring_core.store.tables import JobRow
from sqlalchemy import update

from tests.api.deployment import Deployment
from tests.web.conftest import OpenPage, have_loaded

pytestmark = pytest.mark.any_database

COLOURS = (*range(30, 38), *range(90, 98), *range(40, 48))
LOG = "".join(f"\x1b[{one}mplain\x1b[2m dim\x1b[0m\x1b[1;{one}m bold\x1b[31m red\x1b[0m\n" for one in COLOURS).encode()
Act = Callable[[Page], Any]


@dataclass(frozen=True)
class State:
    """A state of a page: what leads to it from the page's address, and what it then shows."""

    name: str
    address: str
    shows: str = ""
    """A text; without one, where requests hang, a placeholder."""
    acts: tuple[Act, ...] = ()
    fails: str = ""
    """The requests that are answered by an error: a method, and a path in which `*` stands for anything."""
    hangs: str = ""
    """The requests that are never answered."""


def press(name: str, within: str = "body") -> Act:
    def act(page: Page) -> None:
        button = page.locator(within).get_by_role("button", name=name, exact=True)
        expect(button).to_be_visible()
        have_loaded(page)
        button.click()

    return act


def fill(label: str, text: str) -> Act:
    return lambda page: page.get_by_label(label, exact=True).fill(text)


def choose(label: str, value: str) -> Act:
    return lambda page: page.get_by_label(label, exact=True).select_option(value)


def see(text: str) -> Act:
    return lambda page: expect(page.get_by_text(text).locator("visible=true").first).to_be_visible()


def loading(page: Page) -> None:
    expect(page.get_by_role("status", name="Loading").first).to_be_visible()


def lack(*texts: str) -> Act:
    """What is said of an answer isn't said before there is one."""

    def act(page: Page) -> None:
        for text in texts:
            expect(page.get_by_text(text)).to_have_count(0)

    return act


def unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


def unfold_operation(page: Page) -> None:
    page.locator(".opblock-post .opblock-summary-control").first.click()


def show_all_of_the_job(page: Page) -> None:
    page.get_by_label("Show billing and system events").check()
    page.get_by_label("Rank", exact=True).select_option("all")
    unfold(page)


def ask_for_dollars(page: Page) -> None:
    press("Ask for more")(page)
    fill("Dollars more", "5")(page)
    fill("What for", "three more seeds")(page)


MEMBER = '[aria-label="Member ben"]'
MENU = press("Menu of ada, team vision")
LIMIT, WEIGHT = press("Set limit", '[data-budget="team"]'), press("Set weight", '[data-budget="team"]')
PERIOD = press("Set period", '[data-budget="team"]')
LINES = press("Set soft lines", '[data-budget="team"]')
LOST = "No live updates since"
BROKEN = "It is broken."
STATES = (
    State("the menu", "/", "Sign out", (MENU,)),
    State("a chosen theme", "/", "Sign out", (MENU, press("dark"))),
    State("the theme of the system again", "/", "Sign out", (MENU, press("system"))),
    State("no job matches", "/?filter=name%3Dnothing", "No jobs match"),
    State("a filter that doesn't exist", "/?filter=colour%3Dred", "can't be filtered"),
    State("jobs that can't be read", "/", BROKEN, fails="GET /v1/jobs?*"),
    State("jobs that load", "/", hangs="GET /v1/jobs?*"),
    State("jobs without a connection", "/", LOST, fails="GET /v1/stream*"),
    State("a service that answers nothing", "/", BROKEN, fails="GET /v1/*"),
    State("before it is known who signed in", "/", hangs="GET /v1/me"),
    State("budgets that can't be read", "/budget", BROKEN, fails="GET /v1/budgets*"),
    State("budgets that load", "/budget", hangs="GET /v1/budgets*"),
    State("a limit that is no number", "/budget", "Enter dollars", (LIMIT, fill("New limit, dollars", "much"))),
    State("a limit below what is spent", "/budget", "already spent", (LIMIT, fill("New limit, dollars", "0"))),
    State("soft lines without numbers", "/budget", "Enter whole numbers", (LINES, fill("Percent of the limit", "x"))),
    State("a weight that is no number", "/budget", "Enter a whole", (WEIGHT, fill("New weight", "0"))),
    State(
        "a limit that can't be saved", "/budget", BROKEN, (LIMIT, fill("New limit, dollars", "5"), press("Save limit")),
        fails="PUT /v1/budgets/*",
    ),
    State(
        "a term without its last day", "/budget", "Enter the last day",
        (LIMIT, fill("New limit, dollars", "5"), press("Save limit"), PERIOD, choose("Period", "term")),
    ),
    State("a queue that can't be read", "/queue", BROKEN, fails="GET /v1/queue"),
    State("a queue that loads", "/queue", hangs="GET /v1/queue"),
    State("an empty queue", "/queue", "No job of your team is waiting"),
    State("a limit of a what-if that is no number", "/queue", "Enter dollars", (fill("Another limit, dollars", "x"),)),
    State(
        "a what-if", "/queue", "Nothing is changed by looking",
        (fill("Another limit, dollars", "5"), press("Show what would change"), see("No job of your team would start")),
    ),
    State(
        "a what-if that can't be read", "/queue", BROKEN,
        (fill("Another limit, dollars", "5"), press("Show what would change")), fails="POST /v1/what-ifs",
    ),
    State("a valid spec", "/new", "Spec is valid", (press("Validate"), see("Price"), unfold)),
    State(
        "a spec with errors", "/new?recipe=cifar10/airbench94", "of the form must be corrected",
        (fill("Time limit", "soon"), fill("Cost limit, dollars", "-1"), fill("Machines", "0"), press("Submit")),
    ),
    State("a spec that can't be submitted", "/new", BROKEN, (press("Submit"),), fails="POST /v1/jobs"),
    State("no quote", "/new", "New job", fails="POST /v1/quotes"),
    State("recipes that can't be read", "/new", BROKEN, fails="GET /v1/recipes"),
    State("recipes that load", "/new", hangs="GET /v1/recipes"),
    State("a job like another", "/new?from={running}", "Spec", (see("Price"),)),
    State("a job that loads", "/jobs/{running}", hangs="GET /v1/jobs/{running}"),
    State("a job that isn't there", f"/jobs/{UUID(int=0)}", "Job not found"),
    State("a running job, all of it", "/jobs/{running}", "launched", (see("train/loss"), show_all_of_the_job)),
    State("a search without lines", "/jobs/{running}", "No lines match", (fill("Search the log", "nothing"),)),
    State("a running job without a connection", "/jobs/{running}", LOST, fails="GET /v1/stream*"),
    State(
        "a job that can't be stopped", "/jobs/{running}", BROKEN, (press("Stop"), press("Stop job")),
        fails="POST /v1/jobs/*:stop",
    ),
    State("a stopped job", "/jobs/{stopped}", "Stopped."),
    State("a job that awaits approval", "/jobs/{awaiting}", "approval"),
    State("a grant", "/budget", "Dollars to add", (press("Grant", '[data-budget="team"]'),)),
    State("a transfer", "/budget", "Dollars to move", (press("Transfer", MEMBER),)),
    State("an open request and a decided one", "/budget", "next month"),
    State(
        "a request that can't be sent", "/budget", BROKEN, (ask_for_dollars, press("Ask")),
        fails="POST /v1/budget-requests",
    ),
    State("a request that can't be decided", "/budget", BROKEN, (press("Deny"),), fails="POST /v1/budget-requests/*"),
    State("what is read about budgets can't be", "/budget", BROKEN, fails="GET /v1/{{waste,budget*,budgets/*,jobs?*}}"),
    State(
        "what is read about budgets loads", "/budget", acts=(loading, lack("No request is open", "Nothing was spent")),
        hangs="GET /v1/{{waste,budget*,budgets/*}}",
    ),
    State(
        "people that load", "/people", acts=(loading, lack("No invitation is open", "You have no key")),
        hangs="GET /v1/{{members,keys,sessions,invitations}}*",
    ),
    State("people that can't be read", "/people", BROKEN, fails="GET /v1/{{members,keys,sessions,invitations}}*"),
    State("an open invitation", "/people", "Send this link", (press("Make a link"), see("expires"))),
    State("a role that can't be set", "/people", BROKEN, (choose("Role of ben", "viewer"),), fails="PUT /v1/members/*"),
    State("a member to be removed", "/people", "Remove ben?", (press("Remove", '[data-member="ben"]'),)),
    State("a link that signs in", "/login?code=unused", "Signing you in", hangs="POST /v1/session"),
    State("an invitation that loads", "/login?invite=unknown", "Reading", hangs="POST /v1/invitations*"),
    State("an invitation that nobody made", "/login?invite=unknown", "Copy the whole link"),
    State("an operation of the API reference", "/docs", "Request body", (unfold_operation,)),
)  # fmt: skip


def test_states_that_a_reader_or_a_failure_leads_to(
    deployment: Deployment, open_page: OpenPage, page: Page, inspect: Any
) -> None:
    jobs = _jobs(deployment)
    page.goto(f"{deployment.url}/login?code=expired")
    see("no longer valid")(page)
    inspect("an expired link")
    open_page("/", as_admin=True)
    for state in STATES:
        page.set_viewport_size({"width": 1440, "height": 900})
        for requests, answer in ((state.fails, _fail), (state.hangs, _hang)):
            if requests:
                page.route("**" + requests.split()[1].format(**jobs), _only(requests.split()[0], answer))
        page.goto(deployment.url + state.address.format(**jobs))
        for act in (*state.acts, see(state.shows) if state.shows or not state.hangs else loading):
            act(page)
        inspect(state.name)
        page.unroute_all()


def _jobs(deployment: Deployment) -> dict[str, str]:
    running, (agent,) = deployment.running(name="running")
    agent.points(range(1, 10))
    agent.log(LOG)
    for budget in deployment.admin.get("/v1/budgets").json()["budgets"]:
        if budget["kind"] in ("team", "member"):
            limit = {"limit": "50.00" if budget["kind"] == "team" else "9.00"}
            assert deployment.admin.put(f"/v1/budgets/{budget['id']}", json=limit).is_success
    listed = deployment.admin.post("/v1/members:import", json={"csv": "name,limit\ncleo,9.00\n"})
    assert listed.is_success, listed.text
    asked = [
        deployment.member.post("/v1/budget-requests", json={"amount": "5.00", "why": why}).json()["id"]
        for why in ("three more seeds", "one more sweep")
    ]
    denied = deployment.admin.post(f"/v1/budget-requests/{asked[1]}:deny", json={"note": "next month"})
    assert denied.is_success
    stopped, awaiting = deployment.submit(name="stopped"), deployment.submit(name="awaiting")
    assert deployment.member.post(f"/v1/jobs/{stopped}:stop", json={"mode": "stop"}).is_success
    approval = update(JobRow).where(JobRow.id == awaiting).values(state=JobState.AWAITING_APPROVAL)
    deployment.store.write(lambda db: db.execute(approval))
    return {"running": str(running), "stopped": str(stopped), "awaiting": str(awaiting)}


def _fail(route: Route) -> None:
    if "/v1/stream" in route.request.url:
        route.abort()
    else:
        route.fulfill(status=422, json={"title": "Broken", "detail": BROKEN})


def _hang(_: Route) -> None:
    pass


def _only(method: str, answer: Callable[[Route], None]) -> Callable[[Route], None]:
    return lambda route: answer(route) if route.request.method == method else route.fallback()
