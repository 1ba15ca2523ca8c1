# SPDX-License-Identifier: Apache-2.0
"""Launches that a provider refuses: each kind reaches the job, and what was refused lately is remembered."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import pytest
from shoestring_api.serializers.statuses import status_of
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.store import queries
from shoestring_core.store.fleet import launches
from shoestring_worker.providers.base import LaunchRefused
from shoestring_worker.providers.sim import SimulatedProvider

from tests.worker.conftest import World

pytestmark = pytest.mark.any_database


def refuse(world: World, kind: RefusalKind, *providers: str) -> None:
    for name in providers or world.providers:
        world.providers[name].fault = lambda _: kind


@pytest.mark.parametrize(
    ("kind", "end_reason"),
    [(RefusalKind.ACCOUNT, "account"), (RefusalKind.IMAGE, "image"), (RefusalKind.INVALID, "infrastructure")],
)
def test_a_refusal_that_no_later_try_can_change_ends_the_job_with_its_reason(
    world: World, kind: RefusalKind, end_reason: str
):
    refuse(world, kind)
    job = world.submit(nodes=2)
    world.tick()
    world.tick(1)
    ended = world.job(job)
    assert (ended.state, ended.end_reason) == ("ended", end_reason)
    assert f"{kind} fault" in ended.end_detail["facts"]["message"]
    assert ended.settled_at is not None
    assert world.transfers() == []


@pytest.mark.parametrize(("kind", "end_reason"), [(RefusalKind.CAPACITY, "no_capacity"), (RefusalKind.QUOTA, "quota")])
def test_a_job_that_is_not_to_be_retried_ends_with_what_was_refused(world: World, kind: RefusalKind, end_reason: str):
    refuse(world, kind)
    job = world.submit(retry={"on": ["interruption"]})
    for _ in range(62):
        world.tick(1)
    assert world.job(job).end_reason == end_reason


def test_a_job_whose_quota_is_exhausted_waits_for_it_and_starts_later(world: World):
    refuse(world, RefusalKind.QUOTA)
    job = world.submit()
    for _ in range(70):
        world.tick(1)
    assert (world.job(job).state, world.job(job).wait_reason) == ("queued", "quota")
    assert world.job(job).wait_detail["code"] == "quota_exhausted"
    tried = len(world.machines(job))
    world.tick(60)
    assert len(world.machines(job)) == tried  # not again for a few minutes
    world.provider.fault = lambda _: None
    world.tick(240)
    assert world.job(job).state == "launching"


class TwoRegions(SimulatedProvider):
    """The cheaper one is refused."""

    def offers(self, requirements: Collection[Requirements]) -> list[Offer]:
        spot = next(offer for offer in super().offers(requirements) if offer.market == "spot")
        return [replace(spot, region="cheap", price="0.001"), replace(spot, region="dear")]

    def launch(self, request: LaunchRequest) -> ProviderMachine:
        if request.region == "cheap":
            raise LaunchRefused(RefusalKind.REGION, "OptInRequired: enable it")
        return super().launch(request)


def test_a_region_that_refuses_the_account_is_passed_over_and_a_job_for_it_alone_waits_and_says_why(
    make_world: Callable[..., World],
):
    world = make_world("sim")
    world.control_loop = world.another_control_loop(sim=TwoRegions(world.clock))
    pinned = world.submit(resources={"nodes": 1, "regions": ["cheap"]})
    free = world.submit(nodes=2)
    for _ in range(10):
        world.tick(1)
    tried = {(one.slot, one.region, one.state) for one in world.machines(free)}
    assert tried == {(slot, *there) for slot in (0, 1) for there in (("cheap", "never_launched"), ("dear", "running"))}
    for _ in range(20):
        world.tick(60)
    waits = world.job(pinned)
    assert (waits.state, waits.wait_reason) == ("queued", "capacity")
    with world.store.read() as db:
        status = status_of(queries.load_job_rows(db, queries.load_jobs(db, [pinned]))[0])
    assert "the launch is retried. OptInRequired: enable it" in status.text()
    assert {one.state for one in world.machines(pinned)} == {"never_launched"}


def test_a_market_that_was_refused_for_capacity_comes_after_the_other(world: World):
    refuse(world, RefusalKind.CAPACITY)
    job = world.submit()
    world.tick()
    world.provider.fault = lambda _: None
    world.tick(1)
    assert [(one.market, one.state) for one in world.machines(job)] == [
        ("spot", "never_launched"),
        ("on_demand", "running"),
    ]


def test_a_job_that_takes_spot_machines_only_is_tried_again_on_the_only_offer(world: World):
    refuse(world, RefusalKind.CAPACITY)
    job = world.submit(resources={"nodes": 1, "spot": "only"})
    world.tick()
    world.provider.fault = lambda _: None
    world.tick(1)
    assert [(one.market, one.state) for one in world.machines(job)] == [("spot", "never_launched"), ("spot", "running")]


def test_a_restarted_worker_remembers_what_was_refused(make_world: Callable[..., World]):
    world = make_world("local", "sim")
    refuse(world, RefusalKind.QUOTA, "local")
    first = world.submit(provider="local")
    for _ in range(3):
        world.tick(1)
    assert {one.state for one in world.machines(first)} == {"never_launched"}
    world.control_loop.close()
    world.control_loop = world.another_control_loop()
    second = world.submit()
    world.tick()
    assert [one.provider for one in world.machines(second)] == ["sim"]
    with world.store.read() as db:
        kinds = {(one.provider, one.market, one.kind) for one in launches.load_refusals(db)}
    assert kinds == {("local", "spot", "quota"), ("local", "on_demand", "quota")}
    world.clock.pass_(301)
    with world.store.read() as db:
        assert launches.load_refusals(db) == ()
    world.control_loop.close()
