# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoestring_core import money
from shoestring_core.decide.timeouts import S
from shoestring_core.store import ledger
from shoestring_core.store.db import Store
from shoestring_core.store.tables import AccountRow, BudgetRequestRow
from shoestring_core.store.transactions import Read
from shoestring_core.store.uuid7 import uuid7
from sqlalchemy import select, text, update

from tests.core.store import ledger_checks, ledger_storm
from tests.core.store.ledger_storm import Scale, Storm, StormClock
from tests.core.store.overspend_baselines import Demand, overspend

SCALE = Scale(5 * 3_600 * S, 15_000 * money.MICRO)
"""Two months in 300 operations."""


@pytest.fixture
def storms(store: Store, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Storm]]:
    """Two processes of a storm, in this one: their operations alternate."""
    slots = array("q", [0, 0])
    clock = StormClock(slots, 0, SCALE.step)
    monkeypatch.setattr(Read, "now", property(lambda _: ledger_storm.BEGINNING + SCALE.step * sum(slots)))
    ledger_storm.begin(store, SCALE)
    clocks = (clock, StormClock(slots, 1, SCALE.step))
    with (tmp_path / "0.jsonl").open("w") as first, (tmp_path / "1.jsonl").open("w") as second:
        journals = (first, second)
        yield [Storm(store, clocks[number], SCALE, seed, number, journals[number]) for number in range(2)]


@pytest.mark.any_database
def test_a_storm_of_operations_overspends_nothing_and_loses_nothing(storms: list[Storm]) -> None:
    """`make soak ONLY=ledger` has hundreds of thousands of operations of processes that are killed."""
    store, lines = storms[0].store, {}
    for until in range(15, 151, 15):
        for storm in storms:
            storm.run(until)
        with store.read() as db:
            lines |= ledger_checks.snapshot(db)
    ledger_checks.drain(storms[0])
    journals = [ledger_storm.read_journal(Path(storm.journal.name)) for storm in storms]
    assert ledger_checks.find_faults(store, journals) == []
    with store.read() as db:
        assert ledger_checks.changed_since(db, lines) == []
    done = ledger_checks.figures(store, journals)
    assert done["operations"] >= 300
    assert done["rows"]["transfers"]


@pytest.mark.any_database
def test_the_checks_of_a_storm_find_what_is_lost_repeated_or_changed(storms: list[Storm]) -> None:
    """Else a storm without faults would show nothing."""
    storm = storms[0]
    storm.run(40)
    ledger_checks.drain(storm)
    store, journal = storm.store, ledger_storm.read_journal(Path(storm.journal.name))
    assert ledger_checks.find_faults(store, [journal]) == []
    team = storm.seen.accounts["team"][0]
    store.write(lambda db: ledger.set_limit(db, team, SCALE.monthly, actor="storm", reason="there is one"))
    store.write(lambda db: ledger.grant(db, team, 5, actor="storm", reason="lost"))
    forgotten = [{"kind": "grant", "key": "never written"}, {"key": "never written", "outcome": "done"}]
    refused = [{"kind": "grant", "key": "lost"}, {"key": "lost", "outcome": "BudgetUnmovable"}]
    asked = {"kind": "ask", "key": "twice", "person": 0, "amount": 5}
    storm.perform(asked)

    def spoil(db) -> None:
        decided = {"state": "approved", "decided_at": db.now, "decided_by": "nobody"}
        db.execute(update(BudgetRequestRow).where(BudgetRequestRow.why == "twice").values(**decided))
        db.execute(update(AccountRow).where(AccountRow.id == team).values(posted=AccountRow.posted + 1))

    store.write(spoil)
    found = ledger_checks.find_faults(store, [[*journal, *forgotten, *refused]])
    assert any("grant never written: 0 rows" in fault for fault in found), found
    assert any("grant lost: 1 rows, 0 expected" in fault for fault in found), found
    assert any("is approved, granted 0 times" in fault for fault in found), found
    assert any("posted" in fault for fault in found), found
    with store.read() as db:
        lines = ledger_checks.snapshot(db) | {uuid7(): ("usage", team, team, 1, None, None, None, 0)}
        assert len(ledger_checks.changed_since(db, lines)) == 1


@pytest.mark.any_database
def test_a_storm_notices_an_account_that_would_be_overspent(storms: list[Storm]) -> None:
    """Without the CHECK, as a mistake in a migration would leave it."""
    store = storms[0].store
    with store.read() as db:
        ledger_storm.require_invariant(db)
    with store.writer.connect() as connection:
        connection.execute(text("PRAGMA ignore_check_constraints = ON"))
        team = select(AccountRow.id).where(AccountRow.kind == "team").limit(1).scalar_subquery()
        connection.execute(update(AccountRow).where(AccountRow.id == team).values(held=AccountRow.limit_micro + 1))
        try:
            with pytest.raises(AssertionError, match="overspent"):
                ledger_storm.require_invariant(Read(connection))
        finally:
            connection.rollback()
            connection.execute(text("PRAGMA ignore_check_constraints = OFF"))


def test_each_rule_of_others_overspends_by_what_runs_on_unheld_or_unseen() -> None:
    """Two machines of $1 a step, which take 3 steps to end; $10 may be spent."""
    demands = [Demand(0, 1, 1, 100, 3), Demand(0, 1, 1, 100, 3)]
    limits = [10] * 60
    assert overspend(demands, limits, "kill") == 2 * 3  # known at once, and then three steps each
    assert overspend(demands, limits, "alert", alert_steps=4) == 2 * (4 + 3)
    assert overspend(demands, limits, "on_ack") == 2  # the one goes on with what the other's end is still charged
    assert overspend(demands, limits, "ended") == 0


def test_what_is_held_until_a_machine_has_ended_is_never_overspent(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(30):
        costs = [(draw.randrange(1, 4), draw.randrange(0, 3)) for _ in range(20)]
        demands = [
            Demand(draw.randrange(50), cost, cost + more, draw.randrange(1, 30), draw.randrange(1, 9))
            for cost, more in costs
        ]
        assert overspend(demands, [draw.randrange(1, 300)] * 120, "ended") <= 0
