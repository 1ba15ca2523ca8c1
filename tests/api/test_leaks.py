# SPDX-License-Identifier: Apache-2.0
"""What leaks have cost is told to everybody: with the budgets, which didn't pay for them, and to Prometheus."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet import leaks

from tests.api.deployment import Deployment


@pytest.mark.any_database
def test_the_cost_of_leaks_grows_until_they_are_gone(deployment: Deployment) -> None:
    store = deployment.store
    with store.read() as db:
        now = db.now
    leak = ("cloud", "a", "i-1", "machine", "3.60")
    assert store.write(lambda db: leaks.record_leak(db, *leak, now - 100 * S))
    assert not store.write(lambda db: leaks.record_leak(db, *leak, now - 900 * S)), "it is known"
    store.write(lambda db: leaks.end_leaks(db, "cloud", "a", ["machine"], ["i-1"]))
    with store.read() as db:
        assert leaks.load_open(db, "cloud") == {"a"}
    for elsewhere in (("cloud", "b", ["machine"]), ("other", "a", ["machine"]), ("cloud", "a", ["volume"])):
        store.write(lambda db, elsewhere=elsewhere: leaks.end_leaks(db, *elsewhere, []))
    with store.read() as db:
        assert leaks.load_open(db, "cloud") == {"a"}
    store.write(lambda db: leaks.end_leaks(db, "cloud", "a", ["machine"], []))
    with store.read() as db:
        assert leaks.load_open(db, "cloud") == set()
        cost = leaks.leaked(db)
    assert 100_000 <= cost < 160_000, "1,000 micro-dollars a second, for 100 s and what this test takes"
    assert float(deployment.member.get("/v1/budgets").json()["leaked"]["amount"]) == cost / 1e6
    lines = deployment.member.get("/metrics").text.splitlines()
    (line,) = (line for line in lines if line.startswith("shoestring_leaked_dollars "))
    assert float(line.split()[1]) == cost / 1e6


@pytest.mark.any_database
def test_the_service_s_own_machine_is_a_line_of_its_own(migrated_url: str, tmp_path: Path) -> None:
    since = int(time.time()) - 3_600
    hosting = {"name": "a small machine", "hourly_usd": "0.03", "since": since}
    with Deployment(migrated_url, tmp_path, hosting=hosting) as deployment:
        told = deployment.member.get("/v1/budgets").json()["hosting"]
    assert (told["name"], told["hourly"]["amount"]) == ("a small machine", "0.03")
    assert 0.03 <= float(told["spent"]["amount"]) < 0.031
