# SPDX-License-Identifier: Apache-2.0
"""One budget that is never overspent, however many workers share it out, and what becomes of jobs when it runs out.

On PostgreSQL, where two workers really write at once (`--db sqlite`: on SQLite, as `make soak` runs it); `tests/worker`
has the same races on both databases.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from shoestring.cli.terminal import format_dollars
from shoestring_core import rest

from tests.e2e import witness
from tests.e2e.service import SMALL_JOB, Service, environment, start, until
from tests.servers import PATIENCE_S, Postgres, end_group

FOR_ONE = "0.03"
"""Covers the first hold of one machine (135 s at $0.526 an hour: $0.019725), not those of two."""
SLOW_UNTIL_HURRY = """
import pathlib, time
def on_batch(context, images, labels):
    if not pathlib.Path(HURRY).exists():
        time.sleep(0.3 if context.step < 150 else 2)
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("money")
    database_url = f"sqlite:///{folder / 'store.db'}"
    if request.config.getoption("--db") != "sqlite":
        postgres: Postgres = request.getfixturevalue("postgres")
        database_url = postgres.url(postgres.create())
    environment = {"SHOESTRING_DATABASE_URL": database_url}
    service = start(folder, options=("--budget", FOR_ONE, "--slots", "2"), environment=environment)
    yield service
    service.stop()


class Jobs(NamedTuple):
    """One machine each; what they do when the money runs out."""

    pausing: rest.Job
    stopping: rest.Job


@pytest.fixture(scope="module")
def jobs(service: Service) -> Jobs:
    """Two jobs that two workers found at once, when there was money for one."""
    with second_worker(service) as second:
        workers = [service.child("worker"), second.pid]
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        submitted = [service.client.submit(spec(service) | {"on_budget": what}) for what in ("pause", "stop")]
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        any_job(service, submitted, lambda job: job.wait_reason == "budget")
        any_job(service, submitted, lambda job: job.state == "running")
    return Jobs(*submitted)


def test_of_two_jobs_that_race_for_money_for_one_exactly_one_starts(service: Service, jobs: Jobs) -> None:
    (winner,) = (job for job in look(service, jobs) if job.state == "running")
    (loser,) = (job for job in look(service, jobs) if job.state == "queued")
    assert {life.job for life in witness.lives(service.data)} == {str(winner.id)}
    assert loser.wait_reason == "budget"
    assert "The budget of team" in loser.status_text
    assert "short" in loser.status_text
    assert "`shoestring budget set`" in loser.status_text


def test_a_limit_cut_mid_run_saves_and_pauses_until_a_grant(service: Service, jobs: Jobs) -> None:
    client, team = service.client, budget(service)
    client.set_budget(team.id, "1.00", reason="a grant")
    pausing, stopping = jobs
    for job in jobs:
        service.trained(job.id, 20)
    assert [len(lives_of(service, job)) for job in jobs] == [1, 1]
    watchers = [watch(service, job) for job in jobs]
    cut = client.set_budget(team.id, "0.0001", reason="the grant is over")
    assert Decimal(cut.overdraft.amount) == Decimal(cut.posted.amount) + Decimal(cut.held.amount) - Decimal("0.0001")

    paused = service.wait(pausing.id, lambda job: job.state == "paused")
    stopped = service.settled(stopping.id)
    assert [watcher.wait(PATIENCE_S) for watcher in watchers] == [4, 4]
    assert paused.wait_reason == "budget"
    assert "budget exhausted" in paused.status_text
    assert "shoestring budget set" in paused.status_text
    assert stopped.end_reason == "budget"
    witness.require_none_alive(service.data)
    until(lambda: Decimal(budget(service).held.amount) == 0, "the machines' final bills", every_s=0.5)
    spent = sum(witness.spent_usd(service.data, str(job.id)) for job in jobs)
    red = budget(service)
    assert Decimal(red.posted.amount) == spent
    assert Decimal(red.overdraft.amount) == spent - Decimal("0.0001")
    assert format_dollars(red.overdraft) in shoestring(service, "budget", "show").stdout
    refused = shoestring(service, "submit", "digits/quickstart")
    assert refused.returncode == 4
    assert "budget" in refused.stderr

    own = shoestring(service, "budget", "set", "0.01", "--job", str(pausing.id))  # covers what is spent, not a hold
    assert own.returncode == 0, own.stderr
    client.set_budget(team.id, "2.00", reason="a new grant")
    assert Decimal(budget(service).overdraft.amount) == 0
    short = service.wait(pausing.id, lambda job: job.wait_reason == "budget")
    assert "The budget of this job" in short.status_text
    assert "`shoestring budget set --job`" in short.status_text
    hurry(service).touch()
    assert shoestring(service, "budget", "set", "1.00", "--job", str(pausing.id)).returncode == 0
    done = service.settled(pausing.id)
    assert done.end_reason == "succeeded"
    attempts = client.attempts(pausing.id)
    assert attempts.rolled_back_steps == 0
    assert attempts.attempts[-1].generations[-1].start_step > 20
    loss = next(curve for curve in client.metrics(pausing.id).curves if curve.name == "train/loss")
    assert loss.steps == list(range(1, attempts.steps + 1))
    assert Decimal(done.cost.spent.amount) == witness.spent_usd(service.data, str(pausing.id))
    assert Decimal(budget(service).posted.amount) == sum(life.bill_micro for life in witness.lives(service.data)) / (
        Decimal(1_000_000)
    )
    witness.require_none_alive(service.data)


def spec(service: Service) -> dict[str, Any]:
    """A job on one machine, slow until `hurry`."""
    hooks = service.hooks / "slow.py"
    hooks.write_text(SLOW_UNTIL_HURRY.replace("HURRY", repr(str(hurry(service)))))
    params = SMALL_JOB["params"] | {"epochs": 5, "hooks_file": str(hooks)}
    return SMALL_JOB | {"params": params, "resources": {"nodes": 1}, "limits": {}}


def hurry(service: Service) -> Path:
    return service.hooks / "hurry"


@contextlib.contextmanager
def second_worker(service: Service) -> Iterator[subprocess.Popen[bytes]]:
    """One more worker on the same database and broker: the command and environment of the first."""
    first = Path(f"/proc/{service.child('worker')}")
    command = (first / "cmdline").read_text().split("\0")[:-1]
    variables = dict(line.split("=", 1) for line in (first / "environ").read_text().split("\0") if line)
    log = service.data / "logs" / "second-worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [word if word != "warning" else "info" for word in command],
            env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: b"shoestring.tick" in log.read_bytes(), "a tick of the second worker")
        yield worker
    finally:
        end_group(worker)


def budget(service: Service) -> rest.Budget:
    """The team's."""
    return next(one for one in service.client.budgets() if one.kind == "team")


def look(service: Service, jobs: list[rest.Job] | Jobs) -> list[rest.Job]:
    return [service.client.job(job.id) for job in jobs]


def any_job(service: Service, jobs: list[rest.Job], ready: Callable[[rest.Job], bool]) -> None:
    """Wait until one of the jobs is ready. Each question costs the API and this process 15 ms for each job."""
    until(lambda: any(ready(job) for job in look(service, jobs)), "one of the jobs", every_s=0.5)


def lives_of(service: Service, job: rest.Job) -> list[witness.Life]:
    return [life for life in witness.lives(service.data) if life.job == str(job.id)]


def watch(service: Service, job: rest.Job) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "shoestring", "watch", str(job.id)], env=environment(service.data, {}),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def shoestring(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoestring", *arguments], env=environment(service.data, {}) | {"COLUMNS": "200"},
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
