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
from tests.web.conftest import OpenPage

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
    """A text; where requests hang, it is a placeholder."""
    acts: tuple[Act, ...] = ()
    fails: str = ""
    """The requests that are answered by an error: a method, and a path in which `*` stands for anything."""
    hangs: str = ""
    """The requests that are never answered."""


def press(name: str, within: str = "body") -> Act:
    return lambda page: page.locator(within).get_by_role("button", name=name, exact=True).click()


def fill(label: str, text: str) -> Act:
    return lambda page: page.get_by_label(label, exact=True).fill(text)


def choose(label: str, value: str) -> Act:
    return lambda page: page.get_by_label(label, exact=True).select_option(value)


def see(text: str) -> Act:
    return lambda page: expect(page.get_by_text(text).locator("visible=true").first).to_be_visible()


def loading(page: Page) -> None:
    expect(page.get_by_role("status", name="Loading").first).to_be_visible()


def unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


def unfold_operation(page: Page) -> None:
    page.locator(".opblock-post .opblock-summary-control").first.click()


def show_all_of_the_job(page: Page) -> None:
    page.get_by_label("Show billing and system events").check()
    page.get_by_label("Rank", exact=True).select_option("all")
    unfold(page)


MENU = press("Menu of ada, team vision")
LIMIT, WEIGHT = press("Set limit", '[data-budget="team"]'), press("Set weight", '[data-budget="team"]')
PERIOD = press("Set period", '[data-budget="team"]')
LINES = press("Set soft lines", '[data-budget="team"]')
LOST = "reconnecting"
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
    State("soft lines that are no numbers", "/budget", "Enter whole numbers", (LINES, fill("Percent of the limit", "x"))),
    State("a weight that is no number", "/budget", "Enter a whole", (WEIGHT, fill("New weight", "0"))),
    State(
        "a limit that can't be saved", "/budget", BROKEN, (LIMIT, fill("New limit, dollars", "5"), press("Save limit")),
        fails="PUT /v1/budgets/*",
    ),
    State(
        "a term without its last day", "/budget", "Enter the last day",
        (LIMIT, fill("New limit, dollars", "5"), press("Save limit"), PERIOD, choose("Period", "term")),
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
        deployment.refresh_offers()  # a minute old, they are stale
        page.set_viewport_size({"width": 1440, "height": 900})
        for requests, answer in ((state.fails, _fail), (state.hangs, _hang)):
            if requests:
                page.route("**" + requests.split()[1].format(**jobs), _only(requests.split()[0], answer))
        page.goto(deployment.url + state.address.format(**jobs))
        for act in (*state.acts, loading if state.hangs else see(state.shows)):
            act(page)
        inspect(state.name)
        page.unroute_all()


def _jobs(deployment: Deployment) -> dict[str, str]:
    running, (agent,) = deployment.running(name="running")
    agent.points(range(1, 10))
    agent.log(LOG)
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
