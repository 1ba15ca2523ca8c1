# SPDX-License-Identifier: Apache-2.0
"""Promises of the whole service that need many machines in turn; `make test` has their decisions on the virtual clock.

    python -m tests.soak.jobs --case CASE --seed N

`sizing`: runs on one machine and on two are measured, and a time limit then picks between them. `queue`: gangs that
need all slots run one after another, and each says why it waits. `warm-start`: a job starts with what another has
learned.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from shoestring import ServiceError
from shoestring_core import money
from shoestring_core.exit_codes import ExitCode

from tests.client.test_cli import shoestring
from tests.e2e import witness
from tests.e2e.service import SMALL_JOB, Service, start

SEEDS = 1
QUICK = {"recipe": "digits/quickstart", "params": {"epochs": 8, "width": 8, "sync_batch_norm": False}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shoestring-jobs-"))
    print(f"case {options.case}, seed {options.seed}, in {folder}", flush=True)
    service = start(folder, options=("--budget", "5.00", "--slots", "2"))
    try:
        CASES[options.case](service)
    finally:
        service.stop()
    shutil.rmtree(folder)  # a broken run's is left to look at
    return 0


def prove_sizing(service: Service) -> None:
    client = service.client
    first = client.submit(QUICK | {"limits": {"time": "10m"}})
    assert "No similar run has been measured" in first.sizing.text
    assert service.settled(first.id).end_reason == "succeeded"
    assert service.settled(client.submit(QUICK | {"resources": {"nodes": 2}}).id).end_reason == "succeeded"

    quote = client.quote(QUICK | {"limits": {"time": "20m"}})
    assert (quote.outcome, quote.runs) == ("chosen", 2)
    measured = {one.nodes: one for one in quote.machine_counts if one.basis == "measured"}
    assert set(measured) == {1, 2}
    fitting = [one for one in quote.machine_counts if one.infeasible_reason is None]
    assert quote.nodes == min(fitting, key=lambda one: money.from_decimal(one.cost.expected.amount)).nodes
    assert quote.why_not_faster

    with pytest.raises(ServiceError) as refusal:
        client.submit(QUICK | {"limits": {"time": "1s"}})
    assert refusal.value.code == "time-limit-unmet"

    login = {"SHOESTRING_URL": service.url, "SHOESTRING_KEY": (service.data / "admin.key").read_text().strip()}
    arguments = ("quote", "digits/quickstart", "epochs=8", "width=8", "sync_batch_norm=false")
    shown = shoestring(*arguments, "limits.time=20m", home=service.data.parent, **login)
    assert shown.returncode == ExitCode.OK
    assert shown.stdout.splitlines()[:2] == [quote.summary.text, quote.why_not_faster.text]
    assert "2 × local.cpu" in shown.stdout
    refused = shoestring(*arguments, "limits.time=1s", home=service.data.parent, **login)
    assert refused.returncode == ExitCode.NO_CAPACITY

    job = client.submit(QUICK | {"limits": {"time": "20m"}})
    assert job.spec["resources"]["nodes"] == quote.nodes
    assert job.sizing.text == f"{quote.summary.text} {quote.why_not_faster.text}"
    done = service.settled(job.id)
    assert done.end_reason == "succeeded"
    machines = [machine for attempt in client.attempts(job.id).attempts for machine in attempt.machines]
    assert {machine.type for machine in machines} == {quote.type}
    assert len({machine.slot for machine in machines}) == quote.nodes


def prove_queue(service: Service) -> None:
    client = service.client
    jobs = [client.submit(SMALL_JOB | {"name": name}) for name in ("first", "second", "third")]
    service.wait(jobs[0].id, lambda job: job.state in ("launching", "running"))
    second = service.wait(jobs[1].id, lambda job: job.wait_reason == "slots")
    third = service.wait(jobs[2].id, lambda job: job.wait_reason == "slots")
    assert "needs 2 machines, 0 of 2 are free" in second.status_text
    assert "needs 2 machines, 0 of 2 are free" in third.status_text
    assert "an earlier job waits for them too" in third.status_text

    assert [service.settled(job.id).end_reason for job in jobs] == ["succeeded"] * 3
    in_turn = [[life for life in witness.lives(service.data) if life.job == str(job.id)] for job in jobs]
    assert [len(gang) for gang in in_turn] == [2, 2, 2]
    for before, after in itertools.pairwise(in_turn):
        assert max(life.ended for life in before if life.ended) <= min(life.launched for life in after)
    witness.require_none_alive(service.data)


def prove_warm_start(service: Service) -> None:
    client = service.client
    first = service.settled(client.submit(QUICK).id)
    second = service.settled(client.submit(QUICK | {"init": f"job/{first.id}"}).id)
    assert [job.end_reason for job in (first, second)] == ["succeeded"] * 2
    events = client.events(second.id).events
    (warm_start,) = [one.data for one in events if one.kind == "agent" and one.data.event == "warm_start"]
    assert "fresh" not in (warm_start.model_extra or {})["message"]
    began = [client.metrics(job.id, keys="train/loss").curves[0].values[0] for job in (first, second)]
    assert began[0] > 2.0  # ten classes, nothing known
    assert began[1] < 1.0


CASES = {"sizing": prove_sizing, "queue": prove_queue, "warm-start": prove_warm_start}

if __name__ == "__main__":
    sys.exit(main())
