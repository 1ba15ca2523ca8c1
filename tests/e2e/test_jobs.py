# SPDX-License-Identifier: Apache-2.0
"""Jobs of one service: one that waits its turn, one that recovers, one that is stopped and retried.

It is served by https with a certificate that signs itself: agents, their checkpoints and clients trust it alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from shoestring_core import rest
from shoestring_core.exit_codes import ExitCode

from tests.certificates import make_certificate
from tests.client.test_cli import shoestring
from tests.e2e import witness
from tests.e2e.service import Service, start

BAD = 20
BROKEN_BATCH = f"""
import pathlib, time
def on_batch(context, images, labels):
    while not pathlib.Path(GO).exists():
        time.sleep(0.1)
    if context.step + 1 == {BAD}:
        return images * float("nan"), labels
"""
SLOW_UNTIL_HURRY = """
import pathlib, time
def on_batch(context, images, labels):
    if not pathlib.Path(HURRY).exists():
        time.sleep(0.3)
"""
ONE_MACHINE = {"recipe": "digits/quickstart", "params": {"epochs": 3, "width": 8}, "limits": {"cost": "0.50"}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("jobs")
    options = ("--budget", "5.00", "--slots", "2")
    service = start(folder, options=options, certificate=make_certificate(folder))
    yield service
    service.stop()


class Jobs(NamedTuple):
    gang: rest.Job
    """On both machines, with a batch that breaks the numbers."""
    waiting: rest.Job
    """Submitted while the gang trained; as it was then."""


@pytest.fixture(scope="module")
def jobs(service: Service) -> Jobs:
    go = service.hooks / "go"  # the gang has both machines until the other job was seen to wait
    hooks = BROKEN_BATCH.replace("GO", repr(str(go)))
    gang = service.client.submit(hooked(service, hooks, 1) | {"resources": {"nodes": 2}})
    service.wait(gang.id, lambda job: job.state in ("launching", "running"))
    waiting = service.client.submit(ONE_MACHINE)
    waiting = service.wait(waiting.id, lambda job: job.wait_reason == "slots")
    go.touch()
    return Jobs(gang, waiting)


def test_a_job_waits_for_slots_says_why_and_starts_by_itself(service: Service, jobs: Jobs) -> None:
    assert "Needs 1 machine, 0 of 2 are free" in jobs.waiting.status_text
    assert [service.settled(job.id).end_reason for job in jobs] == ["succeeded"] * 2
    gang, waiting = ([life for life in witness.lives(service.data) if life.job == str(job.id)] for job in jobs)
    assert (len(gang), len(waiting)) == (2, 1)
    assert min(life.ended or 0 for life in gang) <= waiting[0].launched, "it needs one machine of the two"


def test_a_gang_recovers_from_a_batch_that_breaks_the_numbers(service: Service, jobs: Jobs) -> None:
    done = service.settled(jobs.gang.id)
    assert done.end_reason == "succeeded", done.status_text
    assert f"skipping the batch of step {BAD}" in done.status_text
    assert done.result is not None
    assert done.result["steps_skipped"] == 1
    (curve,) = service.client.metrics(done.id, keys="train/loss").curves
    assert curve.steps == list(range(1, (done.progress.steps_total or 0) + 1))
    assert [step for step, loss in zip(curve.steps, curve.values, strict=True) if loss != loss] == [BAD]
    attempts = service.client.attempts(done.id)
    assert [len(one.machines) for one in attempts.attempts] == [2]
    assert attempts.attempts[0].generations[0].end_reason.code == "rolled_back"
    events = service.client.events(done.id).events
    assert [one.data.step for one in events if one.kind == "agent" and one.data.event == "skipped"] == [BAD]


def test_a_time_limit_is_judged_by_what_an_earlier_run_took(service: Service, jobs: Jobs, tmp_path: Path) -> None:
    service.settled(jobs.waiting.id)
    quote = service.client.quote(ONE_MACHINE | {"limits": {"time": "20m"}})
    assert (quote.outcome, quote.runs, quote.nodes) == ("chosen", 1, 1)
    assert {one.nodes for one in quote.machine_counts if one.basis == "measured"} == {1}
    login = {"SHOESTRING_URL": service.url, "SHOESTRING_KEY": (service.data / "admin.key").read_text().strip()}
    login["SHOESTRING_CA"] = str(service.data / "ca.pem")
    arguments = ("quote", "digits/quickstart", "epochs=3", "width=8", "limits.time=20m")
    shown = shoestring(*arguments, home=tmp_path, **login)
    assert shown.returncode == ExitCode.OK
    assert shown.stdout.splitlines()[:2] == [quote.summary.text, quote.why_not_faster.text]
    assert "1 × local.cpu" in shown.stdout


def test_a_stopped_job_is_billed_and_its_retry_resumes_from_its_last_checkpoint(service: Service) -> None:
    client = service.client
    hurry = service.hooks / "hurry"
    old = client.submit(hooked(service, SLOW_UNTIL_HURRY.replace("HURRY", repr(str(hurry))), 2))
    service.trained(old.id, 20)
    client.stop(old.id)
    stopped = service.settled(old.id)
    assert stopped.end_reason == "user_stop"
    assert f"{witness.spent_usd(service.data, str(old.id)):.6f}" == f"{float(stopped.cost.spent.amount):.6f}"

    hurry.touch()
    new = service.settled(client.retry(old.id).id)
    assert new.retried_from == old.id
    assert new.end_reason == "succeeded"
    start_step = client.attempts(new.id).attempts[0].generations[0].start_step
    assert start_step == stopped.progress.step > 20
    loss = next(curve for curve in client.metrics(new.id).curves if curve.name == "train/loss")
    assert loss.steps == list(range(start_step + 1, (stopped.progress.steps_total or 0) + 1))
    assert client.attempts(new.id).rolled_back_steps == 0


def test_no_machine_is_left_and_no_slot_had_two(service: Service, jobs: Jobs) -> None:
    for job in jobs:
        service.settled(job.id)
    witness.require_one_machine_a_slot(service.data)
    witness.require_none_alive(service.data)


def hooked(service: Service, text: str, epochs: int) -> dict[str, Any]:
    """The spec of a job with these hooks."""
    hooks = service.hooks / f"{epochs}.py"
    hooks.write_text(text)
    return ONE_MACHINE | {"params": {"epochs": epochs, "width": 8, "hooks_file": str(hooks)}}
