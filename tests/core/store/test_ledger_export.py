# SPDX-License-Identifier: Apache-2.0
"""The export reads every line of a team's ledger once, page after page, whatever the page's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from shoestring_core import money
from shoestring_core.store.ledger import export

from tests.core.world import World


def pages(world: World, read: Callable[..., tuple[list[export.LedgerLine], Any]]) -> list[list[export.LedgerLine]]:
    found, after = [], None
    while True:
        with world.store.read() as db:
            lines, after = read(db, world.team, after)
        found.append(lines)
        if after is None:
            return found


@pytest.mark.any_database
@pytest.mark.parametrize("size", [1, 2, 3, 500])
def test_each_posted_amount_and_each_change_of_a_limit_is_a_line(
    world: World, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(export, "PAGE", size)
    job = world.job()
    world.limit("team", 500)
    machine = world.hold(job, 100)
    world.settle(machine, 40, 20, final=False)
    world.settle(machine, 30, 20)
    world.limit("org", 900)
    world.limit("member", 400, job)
    world.grant(world.account("team"), 50)
    world.limit("job", 300, job)

    costs = pages(world, export.cost_lines)
    assert all(len(page) <= size for page in costs)
    lines = [line for page in costs for line in page]
    assert [(line.kind, line.line, line.amount) for line in lines] == [
        ("usage", "line 0", "0.00004"), ("usage", "line 1", "0.00002"), ("usage", "line 0", "-0.00001"),
    ]  # fmt: skip
    assert {(line.account, line.job, line.machine) for line in lines} == {
        ("job digits-quickstart", str(job.id), str(machine))
    }
    assert sum(money.from_decimal(line.amount.lstrip("-")) * (-1) ** line.amount.startswith("-") for line in lines) == (
        world.account("job", job).posted
    )

    limits = [line for page in pages(world, export.limit_lines) for line in page]
    changed = {(line.account.partition(" ")[0], line.kind, line.limit_before, line.limit_after) for line in limits}
    assert {
        ("team", "limit adjusted", "none", "0.0005"), ("organization", "limit adjusted", "none", "0.0009"),
        ("member", "limit adjusted", "none", "0.0004"), ("team", "limit granted", "0.0005", "0.00055"),
    } <= changed  # fmt: skip
    assert [line.limit_after for line in limits if line.job == str(job.id)] == ["0.0003"]
    assert len({(line.account, line.at, line.kind, line.limit_after) for line in limits}) == len(limits)


@pytest.mark.any_database
def test_an_export_has_no_line_of_another_team(world: World) -> None:
    other = World(world.store)
    for one in (world, other):
        job = one.job()
        one.limit("member", 400, job)
        one.limit("job", 300, job)
        one.hold(job, 100)
        one.settle(one.hold(job, 100), 40)

    for read in (export.limit_lines, export.cost_lines):
        ours, theirs = ([line for page in pages(one, read) for line in page] for one in (world, other))
        assert ours
        assert theirs
        assert not {(line.account, line.job, line.at, line.machine) for line in ours} & {
            (line.account, line.job, line.at, line.machine) for line in theirs
        }
