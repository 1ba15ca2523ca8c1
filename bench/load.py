# SPDX-License-Identifier: Apache-2.0
"""What many jobs and many viewers cost the service, on SQLite and on PostgreSQL.

    python -m bench load [--minutes 10] [--against CHECKOUT] [--db sqlite|postgresql]

The API, and for ticks and memory the worker and beat, are real processes on free ports; all clients are one other
process. CPU is the measured process's own, because clients share the cores: PostgreSQL's is not in it. `--against` runs
the API of another checkout, which has its own `.venv`, beside it for three minutes. `--minutes` is how long memory is
watched, after WARM_UP_S of the same work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import linregress
from scipy.stats import t as student

from bench.load_service import ClientProcess, Service, running
from bench.trainer_cpu import ROOT, load
from tests.servers import Postgres, Valkey

SUBMISSIONS, CLIENTS, WARM_UP, ROUNDS = 500, 8, 50, 3
SUBMIT_WITHIN_S = 30.0
VIEWERS = 200
LISTS = 100
FEW, MANY, MOST = 550, 2_300, 5_000
"""Queued jobs."""
SIM_SLOTS = 4
IDLE_S = 20.0
WATCHED_VIEWERS, SAMPLE_S, WARM_UP_S = 50, 2.0, 300.0
FILL_AGAINST_S = 60.0

CPU_MS_SUBMISSION, RATIO_VIEWERS, RATIO_LIST = 5.0, 1.5, 1.25
CPU_MS_TICK, S_AFTER_END, S_SHUTDOWN = 20.0, 0.5, 3.0
MB_WORKER, MB_PER_MINUTE = 10.0, 0.1


@dataclass
class Row:
    """One line of the table. holds: whether the bound is kept; None: there is none."""

    what: str
    value: float
    unit: str
    bound: str = ""
    holds: bool | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        notes = "".join(f", {name} {number:.4g}" for name, number in self.notes.items())
        verdict = "" if self.holds is None else f" (bound {self.bound}: {'holds' if self.holds else 'MISSED'})"
        return f"{self.what}: {self.value:.4g} {self.unit}{notes}{verdict}"


def main(arguments: Sequence[str] = ()) -> list[str]:
    options = _parse(arguments)
    tables: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="shoestring-load-") as folder, _databases(options.db, folder) as databases:
        valkey = Valkey()
        try:
            for name, urls in databases.items():
                tables[name] = measure(ROOT, next(urls), Path(folder, name), valkey, options.minutes)
                print("\n".join(row.line() for row in tables[name]), flush=True)  # whatever becomes of the rest
                if options.against:
                    against = f"{name}, {options.against.name}"
                    tables[against] = measure_api(options.against, next(urls), Path(folder, against), valkey)
        finally:
            valkey.stop()
    print(json.dumps({name: [row.__dict__ for row in rows] for name, rows in tables.items()}))
    return [f"{name}: {row.line()}" for name, rows in tables.items() for row in rows] + [f"load {load()}"]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench load", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--against", type=lambda text: Path(text).resolve(), metavar="CHECKOUT")
    parser.add_argument("--db", choices=("sqlite", "postgresql", "both"), default="both")
    return parser.parse_args(list(arguments))


@contextlib.contextmanager
def _databases(chosen: str, folder: str) -> Iterator[dict[str, Iterator[str]]]:
    """URLs of new databases, by kind."""
    with contextlib.ExitStack() as stack:
        urls: dict[str, Iterator[str]] = {}
        if chosen != "postgresql":
            urls["SQLite"] = (f"sqlite:///{folder}/{number}.db" for number in range(9))
        if chosen != "sqlite":
            postgres = Postgres()
            stack.callback(postgres.stop)
            urls["PostgreSQL"] = (postgres.url(postgres.create()) for _ in range(9))
        yield urls


def measure(checkout: Path, url: str, folder: Path, valkey: Valkey, minutes: float) -> list[Row]:
    """All rows of one checkout on one database."""
    with running(checkout, url, folder, valkey) as (service, clients):
        rows = submissions_and_lists(service, clients)
        rows.append(shutdown(service, clients))
        service.start_api()
        rows += ticks(service, clients)
        rows += memory(service, clients, minutes)
        rows.append(Row("SIGTERM, the worker", service.terminate("worker"), "s", f"< {S_SHUTDOWN} s"))
        rows[-1].holds = rows[-1].value < S_SHUTDOWN
    return rows


def measure_api(checkout: Path, url: str, folder: Path, valkey: Valkey) -> list[Row]:
    """What concerns the API alone, of a checkout whose worker may be of another kind: about three minutes."""
    with running(checkout, url, folder, valkey) as (service, clients):
        return [*submissions_and_lists(service, clients), shutdown(service, clients)]


def submissions_and_lists(service: Service, clients: ClientProcess) -> list[Row]:
    clients.do("submit", count=WARM_UP, clients=CLIENTS, within_s=SUBMIT_WITHIN_S)
    alone = submit(service, clients, "an empty queue")
    few = lists(service, clients, FEW)
    queued_jobs = FEW + fill(service, clients, MANY - FEW)
    many = lists(service, clients, queued_jobs)
    many.bound, many.holds = f"<= {RATIO_LIST} x", many.value <= RATIO_LIST * few.value
    queued = submit(service, clients, f"{queued_jobs:,} queued")
    memory_before = service.memory_mb("api")
    clients.do("watch", viewers=VIEWERS)
    idle = idle_cpu(service, clients, "api")
    watched = submit(service, clients, f"{queued_jobs:,} queued, {VIEWERS} viewers")
    seen = clients.do("seen")
    watched.bound, watched.holds = f"<= {RATIO_VIEWERS} x", watched.value <= RATIO_VIEWERS * queued.value
    for row in (alone, queued):
        row.bound, row.holds = f"<= {CPU_MS_SUBMISSION} ms", row.value <= CPU_MS_SUBMISSION
    watched.notes["times"] = watched.value / queued.value
    return [
        alone, queued, watched, few, many,
        Row("the last job shown by every viewer after", seen["seconds"], "s", "all see all", seen["missed"] == 0),
        Row(f"{VIEWERS} viewers, nothing happens", idle * 1000, "ms of CPU a second"),
        Row(f"API's memory with {VIEWERS} viewers", service.memory_mb("api"), "MB", notes={"before": memory_before}),
    ]  # fmt: skip


def submit(service: Service, clients: ClientProcess, what: str) -> Row:
    """The round of median cost: on a computer that does other things too, single ones differ by a third."""
    rounds = sorted((_submit_once(service, clients, what) for _ in range(ROUNDS)), key=lambda row: row.value)
    middle = rounds[ROUNDS // 2]
    middle.notes |= {"lowest": rounds[0].value, "highest": rounds[-1].value}
    return middle


def _submit_once(service: Service, clients: ClientProcess, what: str) -> Row:
    before = service.cpu_s("api")
    result = clients.do("submit", count=SUBMISSIONS, clients=CLIENTS, within_s=SUBMIT_WITHIN_S)
    submitted = result["submitted"]
    cpu_ms = 1000 * (service.cpu_s("api") - before) / submitted
    notes = {"n": submitted, "a second": submitted / result["seconds"], "p50 ms": result["p50_ms"]}
    return Row(f"a submission, {what}", cpu_ms, "ms of CPU", notes=notes | {"p95 ms": result["p95_ms"]})


def fill(service: Service, clients: ClientProcess, count: int) -> int:
    """Queue so many more jobs, or of another checkout as many as there is time for. Returns how many."""
    if service.checkout == ROOT:
        service.fill(count)
        return count
    done, ends_at = 0, time.monotonic() + FILL_AGAINST_S
    while done < count and time.monotonic() < ends_at:
        done += clients.do("submit", count=50, clients=CLIENTS, within_s=SUBMIT_WITHIN_S)["submitted"]
    return done


def lists(service: Service, clients: ClientProcess, queued: int) -> Row:
    before = service.cpu_s("api")
    result = clients.do("list_jobs", count=LISTS)
    cpu_ms = 1000 * (service.cpu_s("api") - before) / LISTS
    return Row(f"a page of 50 jobs, {queued:,} queued", cpu_ms, "ms of CPU", notes={"p50 ms": result["p50_ms"]})


def idle_cpu(service: Service, clients: ClientProcess, name: str) -> float:
    """CPU seconds a second while nothing happens."""
    clients.do("sleep", seconds=1.0)
    before = service.cpu_s(name)
    clients.do("sleep", seconds=IDLE_S)
    return (service.cpu_s(name) - before) / IDLE_S


def shutdown(service: Service, clients: ClientProcess) -> Row:
    """SIGTERM while all viewers are connected."""
    clients.send("ended")
    seconds = service.terminate("api")
    clients.receive()
    return Row(f"SIGTERM, the API with {VIEWERS} streams", seconds, "s", f"< {S_SHUTDOWN} s", seconds < S_SHUTDOWN)


def ticks(service: Service, clients: ClientProcess) -> list[Row]:
    """The worker's CPU each second, in which it ticks once, and its memory."""
    service.start_worker()
    clients.do("launching", count=SIM_SLOTS)
    rows = []
    for queued, more in ((MANY + 2 * SUBMISSIONS, 0), (MOST, MOST - MANY - 2 * SUBMISSIONS)):
        if more:
            service.fill(more)
        cpu_ms = 1000 * idle_cpu(service, clients, "worker")
        memory_mb = service.memory_mb("worker")
        what = f"the worker, nothing happens, {queued:,} queued"
        rows.append(Row(what, cpu_ms, "ms of CPU a second", notes={"MB": memory_mb}))
    rows[-1].bound, rows[-1].holds = f"< {CPU_MS_TICK} ms a tick", rows[-1].value < CPU_MS_TICK
    growth = rows[-1].notes["MB"] - rows[0].notes["MB"]
    rows.append(
        Row("the worker's memory, more with 5,000 queued", growth, "MB", f"< {MB_WORKER} MB", growth < MB_WORKER)
    )
    again = statistics.median(clients.do("stop_running")["seconds"] for _ in range(SIM_SLOTS))
    rows.append(Row("a job stopped until the next has machines", again, "s", f"< {S_AFTER_END} s", again < S_AFTER_END))
    return rows


def memory(service: Service, clients: ClientProcess, minutes: float) -> list[Row]:
    """The slope of memory under steady work, once it has gone on for WARM_UP_S. Until then what is bounded grows to its
    bounds: connections and their pages, the messages kept for streams, threads, and what the allocator keeps free."""
    samples: dict[str, list[tuple[float, float]]] = {"api": [], "worker": []}
    clients.send("work", seconds=WARM_UP_S + 60 * minutes, viewers=WATCHED_VIEWERS)
    at_first = {name: service.memory_mb(name) for name in samples}
    warm_at = time.monotonic() + WARM_UP_S
    while (now := time.monotonic()) < warm_at + 60 * minutes:
        if now > warm_at:
            for name, taken in samples.items():
                taken.append((now / 60, service.memory_mb(name)))
        time.sleep(SAMPLE_S)
    clients.receive()
    rows = [describe_slope(name, taken) for name, taken in samples.items()]
    for row, name in zip(rows, samples, strict=True):
        row.notes |= {"MB before": at_first[name], "MB after the warm-up": samples[name][0][1]}
    return rows


def describe_slope(name: str, samples: Sequence[tuple[float, float]], blocks: int = 12) -> Row:
    """The slope over the means of consecutive blocks, since samples that follow each other are alike."""
    size = max(1, len(samples) // blocks)
    chunks = [samples[at : at + size] for at in range(0, len(samples) - size + 1, size)]
    minutes = [statistics.mean(minute for minute, _ in chunk) for chunk in chunks]
    megabytes = [statistics.mean(used for _, used in chunk) for chunk in chunks]
    fit = linregress(minutes, megabytes)
    half = student.ppf(0.975, len(chunks) - 2) * fit.stderr
    low, high = fit.slope - half, fit.slope + half
    what = f"memory of the {name} after {WARM_UP_S / 60:.0f} minutes of warm-up, slope"
    return Row(
        what, fit.slope, "MB a minute", f"95 % interval below {MB_PER_MINUTE}",
        bool(high < MB_PER_MINUTE), {"interval from": low, "to": high, "MB at the end": megabytes[-1]},
    )  # fmt: skip
