# SPDX-License-Identifier: Apache-2.0
"""The built dashboard in real Chromium, against a real API on each database; tests send the requests of the agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import ConsoleMessage, Page, Route, expect
from shoestring_api.dashboard import STATIC_DIR
from shoestring_core.decide import placement
from shoestring_core.decide.timeouts import S

from tests.api.deployment import Deployment
from tests.servers import until
from tests.shared_database import SharedDatabase

# A busy machine is slow, not broken. The dashboard itself waits 20 s for an answer, and 10 s before it connects again.
expect.set_options(timeout=30_000)

OpenPage = Callable[..., Page]

AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
LOOKS: list[tuple[int, Literal["light", "dark"]]] = [(1440, "light"), (360, "dark"), (1440, "dark"), (360, "light")]
"""Colours hardly depend on the width, nor sizes on the theme: so the suite takes the first two, and `make soak` all."""
OF_LOOKS = ["color-contrast", "link-in-text-block", "scrollable-region-focusable", "target-size"]
"""The rules that depend on colours and sizes; all others are checked in the first look alone."""
FIND = """async (ofLooks) => {
  const rules = ofLooks ? { runOnly: ofLooks } : { rules: { "target-size": { enabled: true } } };
  const { violations } = await axe.run({ ...rules, resultTypes: ["violations"] });
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target).join(", ")}`);
}"""


@pytest.fixture
def deployment(migrated: SharedDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """As the API's tests have it, but no worker has to answer again each minute: a browser takes its time."""
    monkeypatch.setattr(placement, "MAX_OFFER_AGE", 3_600 * S)
    assert (STATIC_DIR / "index.html").is_file(), "The dashboard is not built. Run `make setup`."
    with Deployment(migrated.url, tmp_path, store=migrated.store()) as deployment:
        yield deployment


@pytest.fixture
def open_page(deployment: Deployment, page: Page) -> Iterator[OpenPage]:
    """Signs the page in and opens an address: `open_page("/budget", as_admin=True)`.

    Errors and warnings on the browser console fail the test.
    """
    console_messages: list[str] = []

    def collect(message: ConsoleMessage) -> None:
        # The browser logs each failed request itself; tests check what the page shows for it.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            console_messages.append(message.text)

    page.on("console", collect)

    def sign_in(path: str = "/", *, as_admin: bool = False, url: str | None = None) -> Page:
        page.goto(f"{url or deployment.url}/login?next={path}")
        page.get_by_label("API key").fill(deployment.keys[0 if as_admin else 1])
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("navigation", name="Main")).to_be_visible()
        have_loaded(page)
        return page

    yield sign_in
    assert not console_messages, f"on the console: {console_messages}"


def have_loaded(page: Page) -> None:
    """Wait until the parts of a page are there: each that comes moves what is below it, from under a click too."""
    expect(page.locator("h1")).to_have_count(1)
    expect(page.get_by_role("status", name="Loading")).to_have_count(0)


def hold(page: Page, method: str, path: str) -> Callable[[], Route]:
    """Keep requests from the service. The returned function waits for the first, to be sent on or answered."""
    held: list[Route] = []
    page.route(f"**{path}", lambda route: held.append(route) if route.request.method == method else route.fallback())

    def first() -> Route:
        until(lambda: page.evaluate("true") and held)  # only what is asked of the page lets its requests be seen
        return held[0]

    return first


@pytest.fixture
def inspect(page: Page, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Runs axe on what the page shows, in two looks or, with --every-look, in all."""
    found: list[str] = []
    looks = LOOKS if request.config.getoption("--every-look") else LOOKS[:2]

    def look(state: str) -> None:
        page.evaluate(AXE.read_text() + "; undefined")
        page.evaluate("scrollTo(0, 0)")  # what has slid below the header would count as small
        for width, scheme in looks:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            rules = None if (width, scheme) == LOOKS[0] else OF_LOOKS
            found.extend(f"{state}, {width} px, {scheme}: {violation}" for violation in page.evaluate(FIND, rules))

    yield look
    assert not found, "\n".join(found)
