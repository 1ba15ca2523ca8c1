# SPDX-License-Identifier: Apache-2.0
"""The built dashboard in real Chromium, against a real API on each database; tests send the requests of the agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Page, expect
from shoestring_api.dashboard import STATIC_DIR

from tests.api.deployment import Deployment
from tests.shared_database import SharedDatabase

expect.set_options(timeout=15_000)  # a busy machine is slow, not broken

OpenPage = Callable[..., Page]


@pytest.fixture
def deployment(migrated: SharedDatabase, tmp_path: Path) -> Iterator[Deployment]:
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
        expect(page.locator("h1")).to_have_count(1)
        return page

    yield sign_in
    assert not console_messages, f"on the console: {console_messages}"
