# SPDX-License-Identifier: Apache-2.0
"""Latencies that users see: submit to launch and to first step, lost machine to next step, step to pixel, stop to end.

All on one machine's clock: the client's for requests, the machine host's journal for terminations, the training
process's timestamp on each metrics line, the browser's for the frame that shows it. Then the same with Redis down.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from shoestring import Client
from shoestring_core import rest
from shoestring_core.events import JobChange

from tests.conftest import CHROMIUM_ARGS
from tests.e2e import service, witness
from tests.e2e.service import Service, until
from tests.find_chromium import find_chromium

SUBMITS, FIRST_STEPS, LOSSES, STOPS, PIXELS = 50, 10, 10, 20, 200
WITHOUT_REDIS = 10
JOB: dict[str, Any] = service.SMALL_JOB | {"params": {"epochs": 2000, "width": 8}}
ONE_MACHINE = JOB | {"resources": {"nodes": 1}}

# Records, for each frame painted after the curve was extended, the time and the last step shown.
OBSERVE = """() => {
  window.painted = [];
  new MutationObserver(changes => {
    const steps = changes.map(change => Number(change.target.dataset.lastStep)).filter(Number.isFinite);
    if (!steps.length) return;
    const step = Math.max(...steps);
    requestAnimationFrame(() => setTimeout(() => window.painted.push([step, Date.now() / 1000])));
  }).observe(document.body, {subtree: true, attributes: true, attributeFilter: ["data-last-step"]});
}"""


def main() -> list[str]:
    with tempfile.TemporaryDirectory(prefix="shoestring-latency-") as folder:
        with_redis = service.start(Path(folder) / "with-redis", options=("--budget", "50.00", "--slots", "2"))
        try:
            lines = [
                summarize("submit → launching, idle", submit_latencies(with_redis, SUBMITS), "p50", 0.5),
                summarize(
                    "submit → first training step, 2 machines", first_step_latencies(with_redis, FIRST_STEPS), "p50", 8
                ),
                summarize(
                    "one of 2 machines killed → training again", recovery_latencies(with_redis, LOSSES), "p50", 10
                ),
                summarize(
                    "metrics line written by a rank → pixel in Chromium", pixel_latencies(with_redis, PIXELS), "p95", 1
                ),
                summarize(
                    "stop during training → machines terminated, 2 machines",
                    stop_latencies(with_redis, STOPS),
                    "p95",
                    5,
                ),
            ]
        finally:
            with_redis.stop()
        down = {"SHOESTRING_REDIS_URL": f"unix://{folder}/nobody-listens.sock"}
        without_redis = service.start(
            Path(folder) / "without-redis", options=("--budget", "50.00", "--slots", "2"), environment=down
        )
        try:
            count = WITHOUT_REDIS
            lines += [
                summarize("Redis down: submit → launching", submit_latencies(without_redis, count), "p50", 0.5 + 2),
                summarize(
                    "Redis down: submit → first training step", first_step_latencies(without_redis, count), "p50", 8 + 2
                ),
                summarize("Redis down: metrics line → pixel", pixel_latencies(without_redis, PIXELS), "p95", 1 + 2),
                summarize("Redis down: stop → machines terminated", stop_latencies(without_redis, count), "p95", 5 + 2),
            ]
        finally:
            without_redis.stop()
    return lines


def submit_latencies(shoestring: Service, count: int) -> list[float]:
    """Return seconds from the request to the launching event, without other load."""
    latencies = []
    client = shoestring.client
    for _ in range(count):
        requested_at = time.time()
        job = client.submit(ONE_MACHINE)
        launched_at = until(lambda: launching_at(shoestring, job.id), "the job to launch", 30)  # noqa: B023
        latencies.append(launched_at - requested_at)
        client.stop(job.id)
        shoestring.settled(job.id)
    return latencies


def launching_at(shoestring: Service, job: Any) -> float | None:
    for event in shoestring.client.events(job).events:
        if isinstance(event.data, JobChange) and event.data.to == "launching":
            return event.at.timestamp()
    return None


def first_step_latencies(shoestring: Service, count: int) -> list[float]:
    """Return seconds from the request to the timestamp of the first step's metrics."""
    latencies = []
    client = shoestring.client
    for _ in range(count):
        requested_at = time.time()
        job = client.submit(JOB)
        shoestring.wait(job.id, lambda job: job.progress.step > 0)
        loss = next(curve for curve in client.metrics(job.id, keys="train/loss").curves)
        assert loss.steps[0] == 1
        latencies.append(loss.times[0] - requested_at)
        client.stop(job.id)
        shoestring.settled(job.id)
    return latencies


def recovery_latencies(shoestring: Service, count: int) -> list[float]:
    """Return seconds from SIGKILL for the agent of one machine to the first step of the next generation."""
    latencies = []
    client = shoestring.client
    for _ in range(count):
        job = client.submit(JOB)
        shoestring.trained(job.id, 50)
        machine = client.attempts(job.id).attempts[-1].machines[-1]
        killed_at = time.time()
        os.kill(agent_pid(shoestring, str(machine.id)), signal.SIGKILL)
        shoestring.wait(job.id, lambda _, job=job: last_generation(client, job.id).number > 1)  # type: ignore[misc]
        step = last_generation(client, job.id).start_step + 1
        shoestring.wait(job.id, lambda job, step=step: job.progress.step > step + 50)  # type: ignore[misc]
        loss = next(curve for curve in client.metrics(job.id, keys="train/loss").curves)
        latencies.append(loss.times[loss.steps.index(step)] - killed_at)
        client.stop(job.id)
        shoestring.settled(job.id)
    return latencies


def agent_pid(shoestring: Service, machine: str) -> int:
    journals = (shoestring.data / "cloud" / "machines").glob("*/journal.jsonl")
    folder = next(path.parent for path in journals if machine in path.read_text().split("\n", 1)[0])
    mark = f"SHOESTRING_MACHINE_DIR={folder}".encode()
    return next(pid for pid in service.carrying(mark) if witness.role(pid) == "agent")


def last_generation(client: Client, job: Any) -> rest.Generation:
    return [generation for attempt in client.attempts(job).attempts for generation in attempt.generations][-1]


def stop_latencies(shoestring: Service, count: int) -> list[float]:
    """Return seconds from the request to the termination of the job's last machine, by the machine host's journal."""
    latencies = []
    client = shoestring.client
    for number in range(count):
        job = client.submit(JOB)
        shoestring.wait(job.id, lambda job, least=50 + 10 * number: job.progress.step > least)  # type: ignore[misc]
        requested_at = time.time()
        client.stop(job.id)
        shoestring.settled(job.id)
        ends = [life.ended for life in witness.lives(shoestring.data) if life.job == str(job.id)]
        assert all(ends)
        latencies.append(max(end for end in ends if end) / 1e6 - requested_at)
    return latencies


def pixel_latencies(shoestring: Service, count: int) -> list[float]:
    """Return seconds from each step's metrics line to the frame that shows it."""
    client = shoestring.client
    job = client.submit(JOB)
    shoestring.wait(job.id, lambda job: job.progress.step > 0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(client.login_link() + f"&next=/jobs/{job.id}")
        page.wait_for_selector("[data-last-step]", timeout=30_000)
        page.evaluate(OBSERVE)
        first = until(lambda: page.evaluate("window.painted.at(-1)"), "a first pixel", 30)[0]
        until(lambda: page.evaluate("window.painted.at(-1)")[0] > first + count, f"{count} steps to be painted", 120)
        painted = page.evaluate("window.painted")
        browser.close()
    client.stop(job.id)
    shoestring.settled(job.id)
    loss = next(curve for curve in client.metrics(job.id, keys="train/loss").curves)
    written = dict(zip(loss.steps, loss.times, strict=True))
    latencies, shown = [], first
    for step, painted_at in painted:
        latencies += [painted_at - written[number] for number in range(shown + 1, step + 1) if number in written]
        shown = max(shown, step)
    return latencies


def summarize(name: str, seconds: Sequence[float], percentile: str, bound: float) -> str:
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    p50, p95 = statistics.median(seconds), cuts[18]
    verdict = "holds" if {"p50": p50, "p95": p95}[percentile] < bound else "MISSED"
    load = os.getloadavg()[0]
    return (
        f"{name}: p50 {p50:.3f} s, p95 {p95:.3f} s, max {max(seconds):.3f} s (n = {len(seconds)}; "
        f"bound {percentile} < {bound:g} s: {verdict}; load {load:.1f})"
    )
