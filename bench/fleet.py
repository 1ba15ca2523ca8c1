# SPDX-License-Identifier: Apache-2.0
"""What a tick costs with 2,000 live machines in 8 regions: one that sweeps every region, and one between sweeps.

The store, the control loop and SQLite are real; the provider is simulated, so that what an SDK takes to parse its
answers isn't counted. The clock is virtual: 30 s pass before a tick that sweeps, one second before another.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

from shoestring_core import spec
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import ProviderMachine
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.sweeps import IN_USE, Leftover
from shoestring_core.decide.timeouts import S
from shoestring_core.store import jobs
from shoestring_core.store.db import open_store
from shoestring_core.store.objects.local import LocalObjects
from shoestring_core.store.transactions import Read
from shoestring_worker.control_loop import ControlLoop
from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.providers.sim import SimulatedProvider

from bench.tick import NOBODY_REPORTS, Tick, add_team, describe, measured, median, verdict
from bench.trainer_cpu import load

REGIONS, JOBS_PER_REGION, NODES = tuple(f"region-{number}" for number in range(8)), 63, 4
TICKS, BOUND_S, PATIENCE_S = 20, 1.0, 60.0


class Clock:
    """µs UTC."""

    now = time.time_ns() // 1000


class Regions(SimulatedProvider):
    """`open`: the region that offers machines."""

    open: str = REGIONS[0]

    def offers(self, requirements: Collection[Requirements]) -> list[Offer]:
        return [replace(offer, region=self.open) for offer in super().offers(requirements)]

    @property
    def configured_regions(self) -> Collection[str]:
        return REGIONS

    def enabled_regions(self) -> Collection[str]:
        return REGIONS

    def list_region(self, deployment: str, region: str) -> list[ProviderMachine]:
        return [machine for machine in self.list(deployment) if machine.region == region]

    def list_leftovers(self, deployment: str, region: str) -> list[Leftover]:  # noqa: ARG002 - there are none
        return []

    def delete(self, leftover: Leftover) -> None:
        raise AssertionError(leftover)


def main() -> list[str]:
    with (
        tempfile.TemporaryDirectory(prefix="shoestring-fleet-") as folder,
        patch.object(Read, "now", property(lambda _: Clock.now)),
    ):
        store = open_store(f"sqlite:///{folder}/fleet.db")
        store.migrate()
        admin = store.write(lambda db: add_team(db, "team"))
        provider = Regions(lambda: Clock.now, slots=10_000)

        def launch(machine: UUID) -> None:
            worker.launch(machine)

        worker = ControlLoop(
            store,
            {provider.name: ManagedProvider(provider, NOBODY_REPORTS)},
            LocalObjects(Path(folder) / "objects", "secret", "http://127.0.0.1:1"),
            NOBODY_REPORTS,
            "secret",
            "http://127.0.0.1:1",
            offload_launch=launch,
            monotonic=lambda: Clock.now / S,
            answer_wait_s=PATIENCE_S,
        )
        job = spec.parse({"recipe": "digits/quickstart", "resources": {"nodes": NODES}})
        for region in REGIONS:
            provider.open = region
            for _ in range(JOBS_PER_REGION):
                store.write(lambda db: jobs.submit(db, admin, job, min_hold=0))
            for _ in range(3):
                Clock.now += S
                worker.tick()
        machines = len(provider.alive())
        assert machines == len(REGIONS) * JOBS_PER_REGION * NODES, machines

        def pass_(microseconds: int) -> None:
            Clock.now += microseconds

        sweeps = [measured(store, worker.tick, before=lambda: pass_(IN_USE)) for _ in range(TICKS)]
        others = [measured(store, worker.tick, before=lambda: pass_(S)) for _ in range(TICKS)]
        worker.close()
        store.close()
    what = f"{machines:,} machines of {len(REGIONS) * JOBS_PER_REGION} jobs in {len(REGIONS)} regions"
    return [
        f"{what}, all regions swept: {_told(sweeps)}",
        f"{what}, between sweeps: {_told(others)} (load {load()})",
    ]


def _told(ticks: list[Tick]) -> str:
    holds = verdict(median(ticks).cpu_s < BOUND_S)
    return (
        f"{describe(ticks)}; {sum(tick.writes for tick in ticks)} writing statements (bound < {BOUND_S:.0f} s: {holds})"
    )
