# SPDX-License-Identifier: Apache-2.0
"""The built dashboard in real Chromium, against a real API on each database. Agents are played word for word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Page, expect
from shoestring_api.dashboard import STATIC_DIR

from tests.api.deployment import Deployment

expect.set_options(timeout=15_000)  # a busy machine is no finding

OpenPage = Callable[..., Page]


@pytest.fixture
def deployment(migrated_url: str, tmp_path: Path) -> Iterator[Deployment]:
    assert (STATIC_DIR / "index.html").is_file(), "The dashboard is not built. Run `make setup`."
    with Deployment(migrated_url, tmp_path) as deployment:
        yield deployment


@pytest.fixture
def open_page(deployment: Deployment, page: Page) -> Iterator[OpenPage]:
    """Signs the page in and opens an address: `open_page("/budget", as_admin=True)`.

    What the console complains of fails the test.
    """
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # A refused request is the browser's own line; what the page makes of it is what tests look at.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    page.on("console", note)

    def sign_in(path: str = "/", *, as_admin: bool = False, url: str | None = None) -> Page:
        page.goto(f"{url or deployment.url}/login?next={path}")
        page.get_by_label("API key").fill(deployment.keys[0 if as_admin else 1])
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("navigation", name="Main")).to_be_visible()
        expect(page.locator("h1")).to_have_count(1)
        return page

    yield sign_in
    assert not complaints, f"the console says {complaints}"
