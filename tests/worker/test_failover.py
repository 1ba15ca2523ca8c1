# SPDX-License-Identifier: Apache-2.0
"""The order of failover on recorded availability: which zone is taken, waited for and passed over, as users read it.

The zones are those of AWS's us-west-2, each with the intervals in which a spot p3.2xlarge could be had from the 48th
to the 74th after 2023-02-15, when it was tried every 195 s (github.com/skypilot-org/spot-traces, the data of "Can't Be
Late", NSDI 2024). Here an interval is a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from uuid import UUID

import pytest
from shoestring_core import wording
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import S
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.store.tables import EventRow
from shoestring_worker.providers.base import LaunchRefused
from shoestring_worker.providers.sim import SimulatedProvider
from sqlalchemy import select

from tests.worker.conftest import World

FIRST, LAST, INTERVAL = 48, 75, 60 * S
AVAILABLE = {
    "us-west-2a": ((48, 52), (58, 61), (68, 71)),
    "us-west-2b": ((48, 71),),
    "us-west-2c": ((48, 52), (58, 71)),
}
PRICES = {"us-west-2a": "0.90", "us-west-2b": "0.92", "us-west-2c": "0.94"}
QUOTA_EXHAUSTED = (52, 54)
"""Made up, as are the prices: the trace has no quotas."""


@dataclass
class RecordedZones(SimulatedProvider):
    began_at: int = 0

    @property
    def interval(self) -> int:
        return FIRST + (self.clock() - self.began_at) // INTERVAL

    def has(self, zone: str) -> bool:
        return any(first <= self.interval < end for first, end in AVAILABLE[zone])

    def offers(self, requirements: Collection[Requirements]) -> list[Offer]:
        spot = next(offer for offer in super().offers(requirements) if offer.market == "spot")
        return [replace(spot, region="us-west-2", zone=zone, price=price) for zone, price in PRICES.items()]

    def launch(self, request: LaunchRequest) -> ProviderMachine:
        if QUOTA_EXHAUSTED[0] <= self.interval < QUOTA_EXHAUSTED[1]:
            raise LaunchRefused(RefusalKind.QUOTA, f"MaxSpotInstanceCountExceeded in {request.zone}")
        if not self.has(request.zone):
            raise LaunchRefused(RefusalKind.CAPACITY, f"InsufficientInstanceCapacity in {request.zone}")
        return super().launch(request)

    def interrupt(self) -> None:
        """Take back the machines in zones that have none any more."""
        for machine in self.alive():
            if not self.has(self._requests[machine.token].zone):
                self.end(machine.id, "preempted")


@pytest.mark.any_database
def test_failover_quota_waits_and_passed_over_zones_are_told_line_by_line(make_world: Callable[..., World]):
    world = make_world("sim")
    zones = RecordedZones(world.clock, on_demand_price="3.06", began_at=world.clock.now)
    world.control_loop = world.another_control_loop(sim=zones)
    job = world.submit(resources={"nodes": 1, "spot": "only"})
    while zones.interval < LAST:
        world.tick(20)
        world.form(job)
        world.report(job)
        if world.job(job).state == "running":
            world.train(job, world.clock.now // S)
        zones.interrupt()
    assert log_of(world, zones, job) == LOG.strip("\n").splitlines()


def log_of(world: World, zones: RecordedZones, job: UUID) -> list[str]:
    """The sentences of the job's events about its machines and waits, each with its interval; repeated ones once."""
    with world.store.read() as db:
        events = db.sql.scalars(select(EventRow).where(EventRow.job == job).order_by(EventRow.seq)).all()
    lines: list[str] = []
    for event in events:
        if event.kind in ("machine", "wait", "job") and event.reason is not None:
            text = wording.render(event.reason["code"], event.reason["facts"])
            line = f"{FIRST + (event.at - zones.began_at) // INTERVAL:3} {text}"
            if not lines or lines[-1] != line:
                lines.append(line)
    return lines


LOG = """
 48 Submitted.
 48 Attempt 1: 1 × sim (spot).
 48 Slot 0: sim, spot, in us-west-2a at $0.90 an hour.
 48 Generation 1 formed.
 52 It was preempted.
 52 The machine in slot 0 was preempted.
 52 Attempt 2: 1 × sim (spot).
 52 Slot 0: sim, spot, in us-west-2b at $0.92 an hour.
 52 The provider refused to launch a machine (quota): MaxSpotInstanceCountExceeded in us-west-2b
 52 Slot 0: sim, spot, in us-west-2c at $0.94 an hour.
 52 The provider refused to launch a machine (quota): MaxSpotInstanceCountExceeded in us-west-2c
 53 Slot 0: sim, spot, in us-west-2a at $0.90 an hour.
 53 The provider refused to launch a machine (quota): MaxSpotInstanceCountExceeded in us-west-2a
 53 The account's quota does not cover all machines of the gang.
 57 Attempt 2: 1 × sim (spot).
 57 Slot 0: sim, spot, in us-west-2b at $0.92 an hour.
 57 Generation 2 formed.
 71 It was preempted.
 71 The machine in slot 0 was preempted.
 71 Attempt 3: 1 × sim (spot).
 71 Slot 0: sim, spot, in us-west-2a at $0.90 an hour.
 71 The provider refused to launch a machine (capacity): InsufficientInstanceCapacity in us-west-2a
 71 Slot 0: sim, spot, in us-west-2c at $0.94 an hour.
 71 The provider refused to launch a machine (capacity): InsufficientInstanceCapacity in us-west-2c
 72 Slot 0: sim, spot, in us-west-2b at $0.92 an hour.
 72 The provider refused to launch a machine (capacity): InsufficientInstanceCapacity in us-west-2b
 72 The provider did not have enough machines for the gang.
 72 Attempt 3: 1 × sim (spot).
 72 Slot 0: sim, spot, in us-west-2a at $0.90 an hour.
 72 The provider refused to launch a machine (capacity): InsufficientInstanceCapacity in us-west-2a
 73 Slot 0: sim, spot, in us-west-2c at $0.94 an hour.
 73 The provider refused to launch a machine (capacity): InsufficientInstanceCapacity in us-west-2c
 73 Slot 0: sim, spot, in us-west-2b at $0.92 an hour.
 73 The provider refused to launch a machine (capacity): InsufficientInstanceCapacity in us-west-2b
 73 The provider did not have enough machines for the gang.
 74 Attempt 3: 1 × sim (spot).
 74 Slot 0: sim, spot, in us-west-2a at $0.90 an hour.
 74 The provider refused to launch a machine (capacity): InsufficientInstanceCapacity in us-west-2a
 74 Slot 0: sim, spot, in us-west-2c at $0.94 an hour.
 74 The provider refused to launch a machine (capacity): InsufficientInstanceCapacity in us-west-2c
 74 Slot 0: sim, spot, in us-west-2b at $0.92 an hour.
 74 The provider refused to launch a machine (capacity): InsufficientInstanceCapacity in us-west-2b
 75 The provider did not have enough machines for the gang.
"""
