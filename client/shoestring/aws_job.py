# SPDX-License-Identifier: Apache-2.0
"""The second part of `shoestring aws verify`: a small job on the cheapest GPU, by the service that one is logged in to.

Whatever happens, the job is stopped and waited for, until its machines have ended and are billed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shoestring_core import rest
from shoestring_core.states import JobStatus
from shoestring_core.wording.units import counted

from shoestring.client import Client
from shoestring.watch import headline, is_over

RECIPE, CAP_USD = "digits/quickstart", "1.00"
WAIT_S, END_S, POLL_S = 2_700.0, 900.0, 2.0
"""How long the job may take with its time in the queue, and its machines to end after that."""


@dataclass(frozen=True)
class Clock:
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def spec() -> dict[str, Any]:
    """The cheapest machine with a GPU, for `CAP_USD` at most: the ledger never lets it spend more."""
    return {
        "name": "aws-verify",
        "recipe": RECIPE,
        "resources": {"gpu": "any", "nodes": 1},
        "limits": {"cost": CAP_USD, "time": "30m"},
        "on_budget": "stop",
    }


def train(client: Client, report: Callable[[str], None], clock: Clock | None = None) -> rest.Job:
    """Run the job to its end and return it. Ctrl-C stops it. Raises TimeoutError if its machines don't end."""
    clock = clock or Clock()
    job = client.submit(spec())
    report(f"Job {job.id}: {RECIPE} on the cheapest GPU, for ${CAP_USD} at most")
    try:
        return _until_over(client, job, WAIT_S, report, clock)
    except (KeyboardInterrupt, TimeoutError) as ended:
        why = "Interrupted" if isinstance(ended, KeyboardInterrupt) else str(ended)
        report(f"{why}: the job is stopped, and its machines end.")
        client.stop(job.id)
        return _until_over(client, job, END_S, report, clock)


def succeeded(job: rest.Job) -> bool:
    return job.status is JobStatus.SUCCEEDED and job.settled_at is not None


def render(job: rest.Job, attempts: rest.AttemptList) -> str:
    """A section of the report, as Markdown."""
    took = f"{(job.first_step_at - job.created_at).total_seconds():.0f} s" if job.first_step_at else "none was made"
    rows = [
        ("job", f"{job.id}, {RECIPE}"),
        ("verdict", "holds" if succeeded(job) else "differs"),
        ("ended", f"{job.end_reason or job.state}: {headline(job)}"),
        ("from submit to the first step", took),
        ("cost", f"${job.cost.spent.amount} of ${CAP_USD}"),
        ("at", f"{job.created_at:%Y-%m-%d %H:%M:%S}Z"),
    ]
    for machine in [machine for attempt in attempts.attempts for machine in attempt.machines]:
        known = [
            machine.type, machine.market.replace("_", " "), machine.zone or machine.region, machine.image,
            machine.driver and f"NVIDIA driver {machine.driver}", f"${machine.cost.amount}", machine.state,
        ]  # fmt: skip
        rows.append(("machine", ", ".join(filter(None, known))))
    table = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows]
    return "\n".join(["", "## A job on the cheapest GPU", "", "| | |", "|---|---|", *table, ""])


def _until_over(
    client: Client, job: rest.Job, patience_s: float, report: Callable[[str], None], clock: Clock
) -> rest.Job:
    """Raises TimeoutError."""
    deadline, told = clock.monotonic() + patience_s, ""
    while not is_over(current := client.job(job.id)):
        if (now := f"{current.status}: {headline(current)}") != told:
            report(told := now)
        if clock.monotonic() > deadline:
            raise TimeoutError(f"After {counted(round(patience_s / 60), 'minute')} job {job.id} is {current.state}")
        clock.sleep(POLL_S)
    return current
