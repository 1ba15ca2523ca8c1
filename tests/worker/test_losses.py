# SPDX-License-Identifier: Apache-2.0
"""Machines of a provider with regions that end and tell nobody: it is asked as soon as they may have ended."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from shoestring_core.decide.sweeps import SILENT
from shoestring_core.decide.timeouts import S

from tests.worker.conftest import World
from tests.worker.crashes import Regions

pytestmark = pytest.mark.any_database
REPORTS_S = 5


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    world = make_world("sim")
    regions = Regions(world.clock, name="sim")
    regions.leftovers = {}
    world.providers["sim"] = regions
    world.control_loop = world.another_control_loop()
    return world


def training(world: World) -> UUID:
    """A gang of two that has trained for a while, since the last sweep of its region too."""
    job = world.submit(nodes=2)
    world.tick()
    world.form(job)
    for step in range(1, 8):
        world.tick(REPORTS_S)
        world.train(job, step)
    return job


def seconds_until_another_attempt(world: World, job: UUID) -> int:
    for seconds in range(60):
        world.tick(1)
        if world.job(job).attempt == 2:
            return seconds + 1
    raise AssertionError("the loss is not seen within a minute")


def test_a_gang_that_is_lost_as_a_whole_is_launched_again_once_it_is_silent(world: World):
    job = training(world)
    for machine in world.provider.alive():
        world.provider.end(machine.id, "crashed")
    assert seconds_until_another_attempt(world, job) <= SILENT // S + 2


def test_a_machine_that_dies_while_it_boots_is_replaced_before_its_region_is_swept(world: World):
    job = world.submit()
    world.tick()
    world.tick(2)
    world.tick(2 * SILENT / S)
    for machine in world.provider.alive():
        world.provider.end(machine.id, "crashed")
    world.tick(1)
    assert [machine.state for machine in world.machines(job)] == ["terminated"]


def test_a_lost_machine_is_seen_at_once_by_its_peers_exit(world: World):
    job = training(world)
    lost, other = world.alive(job)
    world.provider.end(str(lost.provider_id), "preempted")
    world.exits(other.id, 1, "error", kind="infrastructure", rank=1)
    world.tick(1)
    assert (world.job(job).state, world.job(job).attempt) == ("queued", 1)
    assert {machine.state for machine in world.machines(job)} == {"running", "terminated"}


def test_a_region_whose_machines_report_is_not_listed_between_sweeps(world: World, monkeypatch: pytest.MonkeyPatch):
    job = training(world)
    listings: list[int] = []
    listed = world.provider.list
    monkeypatch.setattr(world.provider, "list", lambda of: listings.append(world.clock.now) or listed(of))
    for _ in range(6 * 60 // REPORTS_S):
        world.tick(REPORTS_S)
        world.report(job)
    assert len(listings) == 6 * 60 // 30
