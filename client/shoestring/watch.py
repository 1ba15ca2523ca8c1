# SPDX-License-Identifier: Apache-2.0
"""Watching a job in a terminal: its state, its newest metrics and its money, as they change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from shoestring_core import money, rest

from shoestring.client import Client, Message

STATE_STYLE = {
    "queued": "yellow", "launching": "cyan", "running": "green", "stopping": "yellow", "paused": "magenta",
    "awaiting_approval": "yellow", "ended": "bold",
}  # fmt: skip


def follow(client: Client, job: str) -> Iterator[tuple[rest.Job, Message | None]]:
    """The job each time something about it changes, until it has ended and is settled, or is paused."""
    found = client.job(job)
    cursor = client.metrics(job, keys="").cursor
    yield found, None
    if over(found):
        return
    for message in client.stream(f"job:{found.id}", cursor=cursor):
        if message.name == "job":
            found = rest.Job.model_validate(message.data)
        elif message.name == "resync":
            found = client.job(job)
        elif message.name == "points":
            found = with_points(found, message)
        yield found, message
        if over(found):
            return


def over(job: rest.Job) -> bool:
    return job.state == "paused" or (job.state == "ended" and job.settled_at is not None)


def with_points(job: rest.Job, message: Message) -> rest.Job:
    """The job with the newest values of a points message."""
    curves = rest.PointsMessage.model_validate(message.data).curves
    latest = job.latest | {curve.name: curve.values[-1] for curve in curves if curve.values}
    trained = [curve.steps[-1] for curve in curves if curve.steps and not curve.name.startswith("system/")]
    progress = job.progress.model_copy(update={"step": max([job.progress.step, *trained])})
    return job.model_copy(update={"latest": latest, "progress": progress})


def show_live(client: Client, job: str, console: Console) -> rest.Job:
    """Draw the job in place until it is over; return it as it then is."""
    found: rest.Job | None = None
    with Live(console=console, refresh_per_second=8) as live:
        for found, _ in follow(client, job):
            live.update(card(found))
    assert found is not None
    return found


def show_lines(client: Client, job: str, say: Callable[[str], None]) -> rest.Job:
    """Print a line whenever the state sentence changes, for logs and pipes; return the job once it is over."""
    said, found = "", None
    for found, _ in follow(client, job):
        if found.sentence != said:
            said = found.sentence
            say(f"{found.state}: {said}")
    assert found is not None
    return found


def card(job: rest.Job) -> RenderableType:
    """One job as a few lines: what it does, how far it is, how good, what it costs."""
    head = Text.assemble((job.name, "bold"), "  ", (str(job.state), STATE_STYLE.get(job.state, "")), "  ", job.sentence)
    parts: list[RenderableType] = [head]
    progress = job.progress
    if progress.steps_total:
        bar = Table.grid(padding=(0, 1))
        eta = f"about {duration(progress.eta_s)} left" if progress.eta_s and job.state == "running" else ""
        bar.add_row(
            ProgressBar(total=progress.steps_total, completed=progress.step, width=40),
            f"step {progress.step:,} of {progress.steps_total:,}", eta,
        )  # fmt: skip
        parts.append(bar)
    parts.append(Text("  ".join(metric_words(job.latest.items())), style="dim"))
    parts.append(Text(money_words(job.cost)))
    return Group(*parts)


def metric_words(latest: Iterable[tuple[str, float]]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in sorted(latest) if not name.startswith("system/")]


def money_words(cost: rest.Cost) -> str:
    """Spent, beside the same machine time at on-demand prices."""
    so_far = money.to_decimal(money.from_decimal(cost.spent.amount) + money.from_decimal(cost.running.amount))
    simulated = " (simulated prices)" if cost.price_basis == "simulated" else ""
    limit = f", limit ${cost.limit.amount}" if cost.limit else ""
    state = "spent" if cost.settled else "so far"
    return f"${so_far} {state}; ${cost.on_demand.amount} at on-demand prices{limit}{simulated}"


def duration(seconds: float) -> str:
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest_s:02d}s" if minutes else f"{rest_s}s"
