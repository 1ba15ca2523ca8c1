# SPDX-License-Identifier: Apache-2.0
"""What a tick of the control loop costs with 5,000 queued jobs: when nothing has changed, after reports of machines,
after a machine's end, and the first of a worker that remembers nothing. On SQLite and on PostgreSQL; with the jobs of
one team, and of a hundred that share the machines.

The provider is simulated; the store, the control loop and the databases are real. CPU is that of this process, so
PostgreSQL's own is not in it; wall time is what a user waits for.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shoestring_core import spec
from shoestring_core.decide.timeouts import S, Timeouts
from shoestring_core.events import BatchStored
from shoestring_core.store import identity, jobs
from shoestring_core.store.db import Store, open_store
from shoestring_core.store.objects.local import LocalObjects
from shoestring_core.store.tables import JobRow
from shoestring_core.store.transactions import Write
from shoestring_worker.control_loop import ControlLoop
from shoestring_worker.providers.base import ManagedProvider
from shoestring_worker.providers.sim import SimulatedProvider
from sqlalchemy import func, select

from bench.trainer_cpu import load
from tests.servers import Postgres
from tests.statements import counted

QUEUED, SLOTS = 5000, 4
JOBS_PER_WRITE = 250
TEAMS = (1, 100)
IDLE_TICKS, ENDS = 100, 10
CPU_S_IDLE, WALL_S_AFTER_END = 0.02, 0.5
HOUR = 3600 * S
NOBODY_REPORTS = Timeouts(funding_lease=HOUR, machine_lease=HOUR, boot=HOUR, launch_window=HOUR, forming=HOUR)
"""The machines here have no agents: none is terminated for that."""


def main() -> list[str]:
    with tempfile.TemporaryDirectory(prefix="shoestring-tick-") as folder:
        lines = [
            line for teams in TEAMS for line in measure("SQLite", f"sqlite:///{folder}/{teams}.db", Path(folder), teams)
        ]
        postgres = Postgres()
        try:
            for teams in TEAMS:
                lines += measure("PostgreSQL", postgres.url(postgres.create()), Path(folder), teams)
            return lines
        finally:
            postgres.stop()


def measure(database: str, url: str, folder: Path, teams: int) -> list[str]:
    store = open_store(url)
    store.migrate()
    admins = [store.write(partial(add_team, name=f"team {number}")) for number in range(teams)]
    provider = SimulatedProvider(lambda: time.time_ns() // 1000, slots=SLOTS)
    submit(store, admins)
    worker = make_worker(store, provider, folder)
    first = measured(store, worker.tick)
    idle = [measured(store, worker.tick) for _ in range(IDLE_TICKS)]
    reporting = [measured(store, worker.tick, before=lambda: report(store, admins[0])) for _ in range(IDLE_TICKS)]
    ends = [measured(store, worker.tick, before=lambda: end_machine(provider)) for _ in range(ENDS)]
    waiting = count_queued(store)
    worker.close()
    store.close()
    what = f"{database}, {waiting:,} queued jobs of {teams} team{'s' * (teams > 1)}"
    wrote = sum(tick.writes for tick in idle)
    cpu_bound, wall_bound = f"bound < {CPU_S_IDLE * 1000:.0f} ms of CPU", f"bound < {WALL_S_AFTER_END} s"
    unchanged = verdict(median(idle).cpu_s < CPU_S_IDLE and not wrote)
    after_report = verdict(median(reporting).cpu_s < CPU_S_IDLE)
    after_end = verdict(median(ends).wall_s < WALL_S_AFTER_END)
    return [
        f"{what}, nothing changed: {describe(idle)}; {wrote} writing statements ({cpu_bound} and none: {unchanged})",
        f"{what}, after a batch of points: {describe(reporting)} ({cpu_bound}: {after_report})",
        f"{what}, after a machine's end until the next job launches: {describe(ends)} ({wall_bound}: {after_end})",
        f"{what}, the first tick of a worker: {describe([first])} (load {load()})",
    ]


def add_team(db: Write, name: str) -> identity.Principal:
    return identity.ensure_admin(db, "org", name, f"admin of {name}")


def submit(store: Store, admins: Sequence[identity.Principal]) -> None:
    """Jobs of all teams, interleaved."""
    job = spec.parse({"recipe": "digits/quickstart", "resources": {"nodes": 1}})

    def some(db: Write) -> None:
        for number in range(JOBS_PER_WRITE):
            jobs.submit(db, admins[number % len(admins)], job, min_hold=0)

    for _ in range(0, QUEUED + SLOTS, JOBS_PER_WRITE):
        store.write(some)


def make_worker(store: Store, provider: SimulatedProvider, folder: Path) -> ControlLoop:
    objects = LocalObjects(folder / "objects", "secret", "http://127.0.0.1:1")
    providers = {provider.name: ManagedProvider(provider, NOBODY_REPORTS)}
    return ControlLoop(
        store, providers, objects, NOBODY_REPORTS, "secret", "http://127.0.0.1:1", monotonic=first_tick_time
    )


def first_tick_time() -> float:
    """The time that workers see: of the ticks measured, none is the one in ten seconds that records a heartbeat."""
    return 0.0


def report(store: Store, admin: identity.Principal) -> None:
    store.write(lambda db: db.event(BatchStored(source=admin.team, seq=1), team=admin.team, actor="source"))


def end_machine(provider: SimulatedProvider) -> None:
    provider.end(provider.alive()[0].id, "preempted")


def count_queued(store: Store) -> int:
    with store.read() as db:
        return db.sql.scalar(select(func.count()).select_from(JobRow).where(JobRow.state == "queued")) or 0


@dataclass
class Tick:
    cpu_s: float = 0.0
    wall_s: float = 0.0
    writes: int = 0


def measured(store: Store, tick: Callable[[], object], before: Callable[[], None] = lambda: None) -> Tick:
    before()
    result = Tick()
    with counted(store) as statements:
        cpu_s, began = cpu_time(), time.perf_counter()
        tick()
        result.cpu_s, result.wall_s = cpu_time() - cpu_s, time.perf_counter() - began
    result.writes = len(statements.writes)
    return result


def cpu_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def median(ticks: Sequence[Tick]) -> Tick:
    return Tick(statistics.median(tick.cpu_s for tick in ticks), statistics.median(tick.wall_s for tick in ticks))


def verdict(holds: bool) -> str:
    return "holds" if holds else "MISSED"


def describe(ticks: Sequence[Tick]) -> str:
    middle, cpu_s, wall_s = median(ticks), max(tick.cpu_s for tick in ticks), max(tick.wall_s for tick in ticks)
    if len(ticks) == 1:
        return f"{cpu_s * 1000:.0f} ms of CPU, {wall_s * 1000:.0f} ms"
    return (
        f"{middle.cpu_s * 1000:.1f} ms of CPU (at most {cpu_s * 1000:.1f}), "
        f"{middle.wall_s * 1000:.1f} ms (at most {wall_s * 1000:.1f}; n = {len(ticks)})"
    )
