# SPDX-License-Identifier: Apache-2.0
"""`shoestring demo`: the main job, end to end, on this computer.

Two local spot machines train one real classifier on real pictures; the provider takes one of them half-way; the job
goes on from its checkpoint on two fresh machines. Every figure of the summary is read back from the service.
"""

from __future__ import annotations

import random
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from shoestring_core import rest

from shoestring import config, up, watch
from shoestring.client import Client

RECIPE = "digits/quickstart"
TARGET = 0.97
BUDGET = "1.00"
NOTICE_S = 10.0
KEPT_FOLDERS = 5


@dataclass(frozen=True)
class Options:
    leave: bool = False
    port: int | None = None
    seed: int = 0
    data: Path | None = None


def run(
    options: Options,
    *,
    say: Callable[[str], None],
    show: Console | None,
    interrupts: Callable[[], int],
    done: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run the demo and return its summary. `done` gets it as soon as it is there; without `leave` the service then
    stays up until interrupted. Raises up.UpError."""
    folder = options.data or fresh_folder(config.default_data() / "demo")
    port = options.port or free_port()
    service = up.Service(up.Options(folder.absolute(), port=port, budget=BUDGET, slots=2), say)
    say(f"Starting the service in {folder} …")
    try:
        access = service.start()
        say(f"Dashboard: {access.login_url}")
        with Client(access.url, access.key) as client:
            summary = train(client, options.seed, say, show, interrupts, keep=lambda: service.run(until=lambda: True))
        summary |= {"url": access.url, "data": str(folder)}
        done(summary)
        if not options.leave:
            say(f"The service stays up: {access.url}  (Ctrl-C stops it)")
            service.run(until=lambda: interrupts() > 0)
        return summary
    finally:
        service.stop(hurry=lambda: interrupts() > 1)


def train(
    client: Client,
    seed: int,
    say: Callable[[str], None],
    show: Console | None,
    interrupts: Callable[[], int],
    keep: Callable[[], None],
) -> dict[str, Any]:
    """Submit the job, take one machine at a step drawn from 30–70 % of the run, wait for the settled end."""
    draw = random.Random(seed)
    fraction, victim_slot = draw.uniform(0.3, 0.7), draw.randrange(2)
    job = client.submit(
        {
            "name": f"demo-{seed}",
            "recipe": RECIPE,
            "params": {"seed": seed},
            "resources": {"provider": "local", "nodes": 2, "procs": 1, "spot": "only"},
            "limits": {"cost": "0.50", "time": "15m"},
        }
    )
    say(f"Job {job.id}: {RECIPE} on two spot machines; one will be taken at {fraction:.0%} of the run")
    reclaim_step: int | None = None
    found = job
    with Live(console=show, refresh_per_second=8) if show else _Quiet() as live:
        for found, _ in watch.follow(client, str(job.id)):
            keep()
            if interrupts():
                client.stop(job.id)
                raise KeyboardInterrupt
            live.update(watch.card(found))
            total = found.progress.steps_total
            if reclaim_step is None and total and found.progress.step >= fraction * total:
                reclaim_step = found.progress.step
                machine = running_machine(client.attempts(job.id), victim_slot)
                client.reclaim(machine.id, notice_s=NOTICE_S)
                say(f"Step {reclaim_step}: the provider takes machine {machine.id} in {NOTICE_S:.0f} s")
    return summarise(client, found, seed, reclaim_step)


def running_machine(attempts: rest.AttemptList, slot: int) -> rest.Machine:
    return next(m for a in reversed(attempts.attempts) for m in a.machines if m.slot == slot and m.state == "up")


def summarise(client: Client, job: rest.Job, seed: int, reclaim_step: int | None) -> dict[str, Any]:
    """What happened, read back from the service."""
    attempts = client.attempts(job.id)
    trained = [attempt for attempt in attempts.attempts if attempt.trained]
    generations = [g for attempt in attempts.attempts for g in attempt.generations if g.last_step is not None]
    result = job.result or {}
    return {
        "job_id": str(job.id),
        "status": str(job.end_reason or job.state),
        "accuracy": result.get("val/acc"),
        "target": TARGET,
        "attempts": len(trained),
        "steps": attempts.steps,
        "steps_lost": attempts.steps_lost,
        "world_size": max((g.world_size for g in generations), default=0),
        "machines": sum(m.launched_at is not None for a in attempts.attempts for m in a.machines),
        "precision": result.get("precision"),
        "seed": seed,
        "reclaim_step": reclaim_step,
        "spent_usd": job.cost.spent.amount,
        "on_demand_usd": job.cost.on_demand.amount,
        "price_basis": job.cost.price_basis,
        "submit_to_first_step_s": _between(job.created_at, job.first_step_at),
        **recovery(client, job, generations),
    }


def recovery(client: Client, job: rest.Job, generations: list[rest.Generation]) -> dict[str, float | None]:
    """Seconds from the spot notice to the stored checkpoint, and from there to the first step after it."""
    events, cursor = [], None
    while (page := client.events(job.id, cursor=cursor)).events:
        events += page.events
        cursor = page.next_cursor
        if cursor is None:
            break
    notice = next((e.at for e in events if e.data.get("event") == "notice" or e.kind == "notice"), None)
    saved = next((e.at for e in events if e.kind == "checkpoint" and notice and e.at >= notice), None)
    again = next((g.first_step_at for g in generations if saved and g.first_step_at and g.first_step_at > saved), None)
    return {"notice_to_checkpoint_s": _between(notice, saved), "resume_s": _between(saved, again)}


def fresh_folder(parent: Path) -> Path:
    """A new folder for this run; older runs beyond the last few are removed."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in sorted(parent.iterdir())[: -KEPT_FOLDERS + 1]:
        shutil.rmtree(old, ignore_errors=True)
    return parent / time.strftime("%Y%m%dT%H%M%SZ", datetime.now(UTC).timetuple())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else round((end - start).total_seconds(), 3)


class _Quiet:
    """Stands in for Live where nobody looks."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _card: object) -> None:
        pass
