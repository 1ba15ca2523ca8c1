# SPDX-License-Identifier: Apache-2.0
"""One job that outlives every part of the service: each test interrupts it once more, the last compares its bits.

The job trains slowly until the file `hurry` exists, so that waiting for processes costs neither CPU nor steps. Machines
that are taken with a notice: `test_demo.py`, and `make soak ONLY=exactness` with the bits of the state.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoestring_core import rest

from tests.e2e import witness
from tests.e2e.service import Service, service_processes, start, until
from tests.soak import exactness
from tests.trainer.training.gangs import finished

EPOCHS = 3
TOPOLOGY = exactness.CASES["two-machines"]
HOOKS = """
import pathlib, time
def on_batch(context, images, labels):
    if not pathlib.Path(HURRY).exists():
        time.sleep(0.4 if context.step < 180 else 2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interruptions")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    database = {"SHOESTRING_DATABASE_URL": database_url(folder)}
    service = start(folder, options=("--budget", "9.00", "--slots", "2"), environment=database)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def job(service: Service, folder: Path) -> rest.Job:
    """A job that has begun to train, with everything on that a resume could get wrong."""
    submitted = service.client.submit(spec(folder, "interrupted"))
    return service.trained(submitted.id, 3)


@pytest.mark.parametrize("child", ["api", "worker", "beat", "redis", "machines"])
def test_a_dead_child_is_started_again_and_the_job_trains_on(service: Service, job: rest.Job, child: str) -> None:
    before = service.client.attempts(job.id)
    dead = service.child(child)
    os.kill(dead, signal.SIGKILL)
    until(lambda: (service.find_child(child) or dead) != dead, what=f"{child} to be back")
    service.trained(job.id, before.steps + 3)
    attempts = service.client.attempts(job.id).attempts
    assert [len(one.generations) for one in attempts] == [len(one.generations) for one in before.attempts]


def test_machines_outlive_a_killed_service_and_the_next_start_adopts_them(service: Service, job: rest.Job) -> None:
    steps = service.client.attempts(job.id).steps
    (team,) = (one for one in service.client.budgets() if one.kind == "team")
    service.client.set_budget(team.id, "8.50")
    service.kill()
    alive = living(service)
    assert len(alive) == 2

    service.start()
    assert "keeps its limit of $8.50" in " ".join(service.data.with_suffix(".up.log").read_text().split())
    service.trained(job.id, steps + 3)
    assert living(service) == alive  # no machine was rented twice
    assert service.client.attempts(job.id).rolled_back_steps == 0
    assert [one.limit.amount for one in service.client.budgets() if one.kind == "team" and one.limit] == ["8.50"]


def test_ctrl_c_lets_machines_checkpoint_and_the_next_start_resumes(service: Service, job: rest.Job) -> None:
    before = service.client.attempts(job.id)
    assert service.interrupt() == 0
    assert not living(service)
    witness.require_none_alive(service.data)
    assert not (left := service_processes(service)), f"left behind by the service: {left}"

    service.start()
    service.wait(job.id, lambda found: found.generation > before.attempts[-1].generations[-1].number)
    service.trained(job.id, before.steps + 3)
    attempts = service.client.attempts(job.id)
    assert attempts.attempts[-1].generations[-1].start_step >= before.steps > 0
    assert attempts.rolled_back_steps == 0


def test_an_interrupted_job_leaves_the_same_bits_as_an_uninterrupted_one(
    service: Service, job: rest.Job, folder: Path
) -> None:
    (folder / "hooks" / "hurry").touch()
    exactness.require_whole_curve(service.client, service.settled(job.id))
    left = exactness.state(service.client, job.id, folder / job.name)
    exactness.require_everything_on(folder / job.name, TOPOLOGY)
    first = next((service.data / "cloud" / "machines").glob("*/gen/1/task.json"))
    undisturbed = finished(
        folder / "undisturbed", nodes=TOPOLOGY.nodes, threads=(cores_of_each(),), **json.loads(first.read_text())
    ).state_hashes()
    assert left == {name: undisturbed[name] for name in left}
    witness.require_none_alive(service.data)
    witness.require_one_machine_a_slot(service.data)
    witness.require_exact_bills(service.data, database_url(folder))


def cores_of_each() -> int:
    """The cores that each machine of a gang gets of this computer, as an agent shares them out."""
    return max(1, len(os.sched_getaffinity(0)) // TOPOLOGY.nodes)


def spec(folder: Path, name: str) -> dict[str, object]:
    hooks = folder / "hooks" / "hooks.py"
    hooks.parent.mkdir(exist_ok=True)
    hooks.write_text(HOOKS.replace("HURRY", repr(str(hooks.with_name("hurry")))))
    tree = exactness.spec(TOPOLOGY, 1, name, EPOCHS)
    return tree | {"params": tree["params"] | {"width": 4, "hooks_file": str(hooks)}}


def database_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'store.db'}"


def living(service: Service) -> set[str]:
    """The tokens of the machines that live, by their journals."""
    return {life.token for life in witness.lives(service.data) if life.ended is None}
