# SPDX-License-Identifier: Apache-2.0
"""The life of `shoestring up`: it starts, is interrupted, killed, started again, and its jobs go on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import servers
from tests.e2e import witness
from tests.e2e.service import SMALL_JOB, Service, environment, start, until

pytestmark = [pytest.mark.timeout(300)]

LONG_JOB = SMALL_JOB | {"params": SMALL_JOB["params"] | {"epochs": 24}}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = start(tmp_path, options=("--budget", "5.00", "--slots", "2"))
    yield service
    service.stop()


def test_ctrl_c_lets_machines_checkpoint_and_the_next_start_goes_on(service: Service) -> None:
    job = service.client.submit(LONG_JOB)
    service.trained(job.id, 20)
    assert service.interrupt() == 0
    witness.require_none_alive(service.data)

    service.start()
    done = service.settled(job.id)
    assert done.end_reason == "succeeded"
    attempts = service.client.attempts(job.id)
    assert attempts.steps == done.progress.steps_total
    assert attempts.steps_lost == 0
    assert attempts.attempts[-1].generations[-1].start_step > 0
    witness.require_one_machine_a_slot(service.data)


def test_machines_outlive_a_killed_service_and_the_next_start_adopts_them(service: Service) -> None:
    job = service.client.submit(LONG_JOB)
    service.trained(job.id, 20)
    service.kill()
    alive = {life.token for life in witness.lives(service.data) if life.ended is None}
    assert len(alive) == 2

    service.start()
    done = service.settled(job.id)
    assert done.end_reason == "succeeded"
    assert {life.token for life in witness.lives(service.data)} == alive  # no machine was rented twice
    assert service.client.attempts(job.id).steps_lost == 0
    witness.require_none_alive(service.data)


@pytest.mark.parametrize("child", ["api", "worker", "beat", "redis", "machines"])
def test_a_dead_child_is_started_again_and_the_job_finishes(service: Service, child: str) -> None:
    job = service.client.submit(SMALL_JOB)
    service.wait(job.id, lambda found: found.state == "running")
    dead = service.child(child)
    os.kill(dead, signal.SIGKILL)
    assert service.settled(job.id).end_reason == "succeeded"
    until(lambda: service.child(child) != dead, 30, f"{child} to be back")
    witness.require_one_machine_a_slot(service.data)


def test_a_stopped_job_ends_its_machines_and_is_billed(service: Service) -> None:
    job = service.client.submit(LONG_JOB)
    service.trained(job.id, 20)
    service.client.stop(job.id)
    done = service.settled(job.id)
    assert done.end_reason == "user_stop"
    assert f"{witness.spent_usd(service.data, str(job.id)):.6f}" == f"{float(done.cost.spent.amount):.6f}"
    witness.require_none_alive(service.data)


def refusal(data: Path, *options: str, extra: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoestring", "up", "--data", str(data), *options],
        env=environment(data, extra or {}), capture_output=True, text=True, timeout=90,
    )  # fmt: skip


def test_a_port_in_use_is_refused_with_what_to_type(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = refusal(tmp_path / "data", "--port", str(port))
    assert refused.returncode == 2
    assert f"shoestring up --port {port + 1}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_data_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = refusal(tmp_path / "file" / "data", "--port", str(servers.free_port()))
    assert refused.returncode == 2
    assert "can't be written" in refused.stderr
    assert "--data DIR" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_second_service_on_one_folder_is_refused(service: Service) -> None:
    refused = refusal(service.data, "--port", str(servers.free_port()))
    assert refused.returncode == 2
    assert "Another `shoestring up` runs" in refused.stderr


def test_a_started_service_says_where_it_is_and_is_ready_in_every_part(tmp_path: Path) -> None:
    service = start(tmp_path, options=("--budget", "5.00", "--json"))

    def parts() -> dict[str, str]:
        ready: dict[str, str] = httpx.get(f"{told['url']}/readyz", timeout=10).json()["parts"]
        return ready

    try:
        (line,) = (
            line for line in service.data.with_suffix(".up.log").read_text().splitlines() if line.startswith("{")
        )
        told = json.loads(line)
        assert (told["url"], told["data"]) == (service.url, str(service.data))
        assert Path(told["key_file"]).read_text().strip()
        assert httpx.get(told["login_url"], follow_redirects=True, timeout=10).status_code == 200
        until(lambda: set(parts().values()) == {"ok"}, 60, "every part to be ok")
    finally:
        service.stop()


def test_a_data_folder_of_a_newer_version_is_refused(service: Service) -> None:
    assert service.interrupt() == 0
    with sqlite3.connect(service.data / "store.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    refused = refusal(service.data, "--port", str(servers.free_port()))
    assert refused.returncode == 2
    assert "this version of Shoestring knows up to" in refused.stderr
    assert "Traceback" not in refused.stderr
