# SPDX-License-Identifier: Apache-2.0
"""`shoestring demo`: the service end to end on this computer.

Two spot machines train a real classifier on real images; the provider preempts one of them halfway; the job resumes
from its checkpoint on two new machines. Every figure of the summary is read back from the service. The machines are
process trees on this computer: the local cloud's; or instances of a fake EC2, which the worker calls as it calls AWS.
"""

from __future__ import annotations

import random
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from shoestring_core import rest
from shoestring_core.machine_network import COMPUTER

from shoestring import config, up, watch
from shoestring.client import Client
from shoestring.fake_ec2 import FakeEc2, require_installed

RECIPE = "digits/quickstart"
PARAMS = {"epochs": 16, "sync_batch_norm": False}
"""Enough for TARGET. Norms over both machines would double what a step takes, for nothing that is to be seen here."""
TARGET = 0.97
BUDGET = "1.00"
NOTICE_S = {"local": 10.0, "ec2": 30.0}
"""EC2 gives 120 s. Its fake's machines also write their checkpoints through its S3, on the same few cores."""
SLOTS = {"local": 2, "ec2": 4}
"""Machines at a time: those of EC2 may still shut down while others are launched."""
MAX_RUN_FOLDERS = 5


Provider = Literal["local", "ec2"]


@dataclass(frozen=True)
class DemoOptions:
    provider: Provider = "local"
    exit_after: bool = False
    port: int | None = None
    seed: int = 0
    data: Path | None = None


def run(
    options: DemoOptions,
    *,
    report: Callable[[str], None],
    console: Console | None,
    interrupts: Callable[[], int],
    on_summary: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run the demo and return its summary. `on_summary` is called with it as soon as the job has ended; unless
    `exit_after`, the service then runs until interrupted. Raises StartupError."""
    is_ec2 = options.provider == "ec2"
    if is_ec2:
        require_installed()
    folder = options.data or new_run_folder(config.default_data_folder() / "demo")
    port = options.port or free_port()
    settings = up.ServiceOptions(
        folder.absolute(), port=port, budget=BUDGET, slots=SLOTS[options.provider], fake_ec2=is_ec2,
        host=COMPUTER if is_ec2 else "127.0.0.1",
    )  # fmt: skip
    service = up.LocalService(settings, report)
    report(f"Starting the service in {folder} …")
    try:
        connection = service.start()
        report(f"Dashboard: {connection.login_url}  (this link signs in once, within 10 minutes)")
        with Client(connection.url, connection.key) as client:
            ec2 = FakeEc2.of(folder) if is_ec2 else None
            summary = train(
                client, options, ec2, report, console, interrupts, supervise=lambda: service.run(until=lambda: True)
            )  # fmt: skip
        if ec2 is not None:
            summary["left"] = ec2.left()
        summary |= {"url": connection.url, "data": str(folder)}
        on_summary(summary)
        if not options.exit_after:
            report(f"The service is running: {connection.url}  (Ctrl-C stops it)")
            report(f"To sign in again, use the key in {connection.key_file}")
            service.run(until=lambda: interrupts() > 0)
            report("Stopping …")
        return summary
    finally:
        service.stop(kill=lambda: interrupts() > 1)


def train(
    client: Client,
    options: DemoOptions,
    ec2: FakeEc2 | None,
    report: Callable[[str], None],
    console: Console | None,
    interrupts: Callable[[], int],
    supervise: Callable[[], None],
) -> dict[str, Any]:
    """Submit the job, preempt a machine at a random step within 30–70 % of the run, wait until the job is settled.

    ec2  preempts its machines; None: the local cloud does
    """
    seed = options.seed
    rng = random.Random(seed)
    fraction, victim_slot = rng.uniform(0.3, 0.7), rng.randrange(2)
    job = client.submit(
        {
            "name": f"demo-{seed}",
            "recipe": RECIPE,
            "params": PARAMS | {"seed": seed},
            "resources": {"provider": options.provider, "nodes": 2, "spot": "only"} | ({"gpu": "any"} if ec2 else {}),
            "limits": {"cost": "0.50", "time": "15m"},
        }
    )
    report(f"Job {job.id}: {RECIPE} on two spot machines; one will be preempted at {fraction:.0%} of the run")
    preempt_step: int | None = None
    notice_s = NOTICE_S[options.provider]
    current = job
    lines = watch.ProgressLines(report)
    with Live(console=console, refresh_per_second=8) if console else nullcontext() as live:
        for current, _ in watch.follow(client, str(job.id)):
            supervise()
            if interrupts():
                client.stop(job.id)
                raise KeyboardInterrupt
            if live:
                live.update(watch.render_job(current))
            else:
                lines.update(current)
            total = current.progress.steps_total
            if preempt_step is None and total and current.progress.step >= fraction * total:
                preempt_step = current.progress.step
                machine = running_machine(client.attempts(job.id), victim_slot)
                if ec2 is None:
                    client.preempt(machine.id, notice_s=notice_s)
                else:
                    ec2.interrupt(str(machine.provider_id), notice_s)
                report(f"Step {preempt_step}: machine {machine.id} gets a preemption notice of {notice_s:.0f} s")
    return summarize(client, current, seed, preempt_step)


def running_machine(attempts: rest.AttemptList, slot: int) -> rest.Machine:
    return next(m for a in reversed(attempts.attempts) for m in a.machines if m.slot == slot and m.state == "running")


def summarize(client: Client, job: rest.Job, seed: int, preempt_step: int | None) -> dict[str, Any]:
    """Return the results of the run, read back from the service."""
    attempts = client.attempts(job.id)
    trained = [attempt for attempt in attempts.attempts if attempt.trained]
    generations = [g for attempt in attempts.attempts for g in attempt.generations if g.last_step is not None]
    trained_on = [attempt.machines[-1] for attempt in trained if attempt.machines]
    result = job.result or {}
    return {
        "job_id": str(job.id),
        "status": str(job.status),
        "accuracy": result.get("val/acc"),
        "target": TARGET,
        "attempts": len(trained),
        "steps": attempts.steps,
        "rolled_back_steps": attempts.rolled_back_steps,
        "world_size": max((g.world_size for g in generations), default=0),
        "provider": trained_on[-1].provider if trained_on else None,
        "zones": [machine.zone for machine in trained_on if machine.zone],
        "machines": sum(m.launched_at is not None for a in attempts.attempts for m in a.machines),
        "precision": result.get("precision"),
        "seed": seed,
        "preempt_step": preempt_step,
        "spent_usd": job.cost.spent.amount,
        "on_demand_usd": job.cost.on_demand.amount,
        "price_basis": job.cost.price_basis,
        "submit_to_first_step_s": _between(job.created_at, job.first_step_at),
        **recovery(client, job, generations),
    }


def recovery(client: Client, job: rest.Job, generations: list[rest.Generation]) -> dict[str, float | None]:
    """Seconds from the preemption notice to the stored checkpoint, and from there to the next step."""
    events, cursor = [], None
    while (page := client.events(job.id, cursor=cursor)).events:
        events += page.events
        cursor = page.next_cursor
        if cursor is None:
            break
    notice = next((e.at for e in events if e.kind == "agent" and e.data.event == "preemption_notice"), None)
    saved = next((e.at for e in events if e.kind == "checkpoint" and notice and e.at >= notice), None)
    resumed = next(
        (g.first_step_at for g in generations if saved and g.first_step_at and g.first_step_at > saved), None
    )
    return {"notice_to_checkpoint_s": _between(notice, saved), "resume_s": _between(saved, resumed)}


def new_run_folder(parent: Path) -> Path:
    """Return a new folder for this run and remove all but the last few older ones."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in sorted(parent.iterdir())[: -MAX_RUN_FOLDERS + 1]:
        shutil.rmtree(old, ignore_errors=True)
    return parent / time.strftime("%Y%m%dT%H%M%SZ", datetime.now(UTC).timetuple())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else round((end - start).total_seconds(), 3)
