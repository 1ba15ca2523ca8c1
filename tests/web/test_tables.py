# SPDX-License-Identifier: Apache-2.0
"""On a phone, all columns of every table can be read: as a card, or by scrolling within the table's own place."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from shoestring_core.decide.billing import Line
from shoestring_core.store import ledger
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.tables import JobRow
from shoestring_core.wording.bills import NeverRan
from sqlalchemy import update

from tests.api.deployment import OFFER, Deployment
from tests.api.test_quotes import QUICK, end, measure
from tests.web.conftest import OpenPage, have_loaded

pytestmark = pytest.mark.any_database

SOURCES = Path(__file__).parents[2] / "web/src"
READ = (Path(__file__).parent / "read_tables.js").read_text()
"""Of each table that is shown: its name, and what of it can't be read."""
LONG = "a-name-that-goes-on-and-on-" + "x" * 40


def test_all_columns_of_every_table_can_be_read_on_a_phone(deployment: Deployment, open_page: OpenPage) -> None:
    running, ended, first = _jobs(deployment)
    page = open_page("/", as_admin=True)
    page.set_viewport_size({"width": 360, "height": 800})
    expect(page.locator(f'tr[data-job="{ended}"]')).to_be_visible()
    seen = _read(page)
    page.goto(f"{deployment.url}/jobs/{running}")
    have_loaded(page)
    expect(page.locator("tr[data-machine]")).to_have_count(2)
    page.get_by_text("Values", exact=True).first.click()
    page.get_by_text("Ledger, 2 entries").click()
    seen |= _read(page)
    page.goto(f"{deployment.url}/new?from={ended}")
    have_loaded(page)
    for summary in ("Other offers", "Other numbers of machines", "How well quotes held"):
        page.get_by_text(summary).click()
    seen |= _read(page)
    page.goto(f"{deployment.url}/queue")
    have_loaded(page)
    expect(page.locator("tr[data-queued]")).to_have_count(2)
    panel = page.get_by_role("region", name="What if")
    panel.get_by_label("Job", exact=True).select_option(first)
    panel.get_by_label("Change", exact=True).select_option("stop")
    panel.get_by_role("button", name="Show what would change").click()
    expect(panel.locator("tr[data-moves]").first).to_be_visible()
    seen |= _read(page)
    page.goto(f"{deployment.url}/people")
    expect(page.locator(f'[data-member="{LONG}"]')).to_be_visible()
    expect(page.get_by_role("region", name="Your keys").locator("table")).to_be_visible()
    expect(page.get_by_role("region", name="Where you are signed in").locator("table")).to_be_visible()
    seen |= _read(page)
    assert {name if name in _named() else re.sub(r" of .*", " of …", name) for name in seen} == _named()


def _read(page: Page) -> set[str]:
    tables: list[dict[str, Any]] = page.evaluate(READ)
    unreadable = [f"{table['name']}: {what}" for table in tables for what in table["unreadable"]]
    assert not unreadable, "\n".join(unreadable)
    return {table["name"] for table in tables}


def _named() -> set[str]:
    """The tables of the dashboard's source; each is in a `TableScroll` that names it, if only by what it is of."""
    text = "\n".join(file.read_text() for file in sorted(SOURCES.rglob("*.tsx")))
    assert len(re.findall(r"<table\b", text)) == len(re.findall(r"<TableScroll\b", text))
    names = re.findall(r"<(?:TableScroll|Offers)\b[^>]*\blabel=(?:\"([^\"]+)\"|\{`([^`]+)`\})", text)
    return {re.sub(r"\$\{.*\}", "…", plain or made) for plain, made in names}


def _jobs(deployment: Deployment) -> tuple[str, str, str]:
    """One runs on two machines and has been charged; one has ended; one is the first of two that wait for a machine."""
    offers = [replace(OFFER, slots=5), replace(OFFER, market="on_demand", price="0.526", slots=5)]
    deployment.store.write(lambda db: save_offers(db, "local", offers, deployment.state.timeouts))
    measure(deployment, 1, 0.18)
    measure(deployment, 2, 0.115)
    ended = deployment.submit(**QUICK, name="ended")
    end(deployment, ended, 500, 20_000)
    running, agents = deployment.running(**QUICK, name=LONG, resources={"nodes": 2})
    agents[0].points(range(1, 30))
    agents[0].points(range(1, 30), "val/acc")
    lines = [Line(f"line {number}", 1000 + number, NeverRan()) for number in range(2)]
    deployment.store.write(lambda db: ledger.settle(db, agents[0].machine, lines, final=False))
    deployment.store.write(lambda db: db.execute(update(JobRow).values(steps_total=100_000)))
    first, _ = (deployment.submit(**QUICK, name=name) for name in ("first", LONG))
    listed = deployment.admin.post("/v1/members:import", json={"csv": f"name,limit\n{LONG},9.00\n"})
    assert listed.is_success, listed.text
    assert deployment.admin.post("/v1/keys", json={"kind": "pat", "name": LONG}).is_success
    return str(running), str(ended), str(first)
