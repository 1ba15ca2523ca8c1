# SPDX-License-Identifier: Apache-2.0
"""How long users wait: submit to launch, to the first step, a training step to a pixel, stop to the machines' end.

One machine's clock for everything: the client's for what it asks, the journal's for ends, the training process's own
time stamp on each line it writes, the browser's for the frame that shows it. Then the same with Redis down.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.conftest import CHROMIUM_ARGS
from tests.e2e import service, witness
from tests.e2e.service import Service, until
from tests.find_chromium import find_chromium

SUBMITS, FIRST_STEPS, STOPS, PIXELS = 50, 10, 20, 200
WITHOUT_REDIS = 10
JOB: dict[str, Any] = service.SMALL_JOB | {"params": {"epochs": 2000, "width": 8}}
ONE_MACHINE = JOB | {"resources": {"nodes": 1}}

# Notes, for each frame painted after the curve has grown, when that was and through which step.
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
        usual = service.start(Path(folder) / "usual", options=("--budget", "50.00", "--slots", "2"))
        try:
            lines = [
                line("submit → launching, idle", submits(usual, SUBMITS), "p50", 0.5),
                line("submit → first training step, 2 machines", first_steps(usual, FIRST_STEPS), "p50", 8),
                line("line written by a rank → pixel in Chromium", pixels(usual, PIXELS), "p95", 1),
                line("stop in mid-training → end in the journal, 2 machines", stops(usual, STOPS), "p95", 5),
            ]
        finally:
            usual.stop()
        down = {"SHOESTRING_REDIS_URL": f"unix://{folder}/nobody-listens.sock"}
        without = service.start(
            Path(folder) / "without", options=("--budget", "50.00", "--slots", "2"), environment=down
        )
        try:
            few = WITHOUT_REDIS
            lines += [
                line("Redis down: submit → launching", submits(without, few), "p50", 0.5 + 2),
                line("Redis down: submit → first training step", first_steps(without, few), "p50", 8 + 2),
                line("Redis down: line → pixel", pixels(without, PIXELS), "p95", 1 + 2),
                line("Redis down: stop → end in the journal", stops(without, few), "p95", 5 + 2),
            ]
        finally:
            without.stop()
    return lines


def submits(running: Service, count: int) -> list[float]:
    """Seconds from the request to the launching event, nothing else going on."""
    took = []
    client = running.client
    for _ in range(count):
        asked = time.time()
        job = client.submit(ONE_MACHINE)
        started = until(lambda: launching_at(running, job.id), 30, "launching")  # noqa: B023
        took.append(started - asked)
        client.stop(job.id)
        running.settled(job.id)
    return took


def launching_at(running: Service, job: Any) -> float | None:
    for event in running.client.events(job).events:
        if event.kind == "job" and event.data.get("to") == "launching":
            return event.at.timestamp()
    return None


def first_steps(running: Service, count: int) -> list[float]:
    """Seconds from the request to the time stamp on the first step's line."""
    took = []
    client = running.client
    for _ in range(count):
        asked = time.time()
        job = client.submit(JOB)
        running.wait(job.id, lambda found: found.progress.step > 0)
        loss = next(curve for curve in client.metrics(job.id, keys="train/loss").curves)
        assert loss.steps[0] == 1
        took.append(loss.times[0] - asked)
        client.stop(job.id)
        running.settled(job.id)
    return took


def stops(running: Service, count: int) -> list[float]:
    """Seconds from the request to the end of the last of the job's machines, by their journals."""
    took = []
    client = running.client
    for number in range(count):
        job = client.submit(JOB)
        running.wait(job.id, lambda found, least=50 + 10 * number: found.progress.step > least)  # type: ignore[misc]
        asked = time.time()
        client.stop(job.id)
        running.settled(job.id)
        ends = [life.ended for life in witness.lives(running.data) if life.job == str(job.id)]
        assert all(ends)
        took.append(max(end for end in ends if end) / 1e6 - asked)
    return took


def pixels(running: Service, count: int) -> list[float]:
    """Seconds from each step's line to the frame that shows it."""
    client = running.client
    job = client.submit(JOB)
    running.wait(job.id, lambda found: found.progress.step > 0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(client.login_link() + f"&next=/jobs/{job.id}")
        page.wait_for_selector("[data-last-step]", timeout=30_000)
        page.evaluate(OBSERVE)
        begun = until(lambda: page.evaluate("window.painted.at(-1)"), 30, "a first pixel")[0]
        until(lambda: page.evaluate("window.painted.at(-1)")[0] > begun + count, 120, f"{count} steps to be painted")
        painted = page.evaluate("window.painted")
        browser.close()
    client.stop(job.id)
    running.settled(job.id)
    loss = next(curve for curve in client.metrics(job.id, keys="train/loss").curves)
    written = dict(zip(loss.steps, loss.times, strict=True))
    took, shown = [], begun
    for step, at in painted:
        took += [at - written[each] for each in range(shown + 1, step + 1) if each in written]
        shown = max(shown, step)
    return took


def line(what: str, seconds: Sequence[float], judged: str, bound: float) -> str:
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    p50, p95 = statistics.median(seconds), cuts[18]
    verdict = "holds" if {"p50": p50, "p95": p95}[judged] < bound else "MISSED"
    load = os.getloadavg()[0]
    return (
        f"{what}: p50 {p50:.3f} s, p95 {p95:.3f} s, max {max(seconds):.3f} s (n = {len(seconds)}; "
        f"bound {judged} < {bound:g} s: {verdict}; load {load:.1f})"
    )
