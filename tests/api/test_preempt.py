# SPDX-License-Identifier: Apache-2.0
"""Taking a machine away through the service, as a spot provider would, on a real machine host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from shoestring_core.store.db import open_store
from shoestring_core.store.tables import MachineRow
from sqlalchemy import update

from tests.api.deployment import Deployment
from tests.servers import until
from tests.trainer.machinehost.local_cloud import SPOT, LocalCloud

pytestmark = pytest.mark.any_database


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalCloud]:
    cloud = LocalCloud(tmp_path / "cloud")
    cloud.start()
    yield cloud
    cloud.clean_up()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Deployment]:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    store = open_store(url)
    store.migrate()
    store.close()
    with Deployment(url, tmp_path, machinehost_file=str(tmp_path / "cloud" / "machinehost.json")) as deployment:
        yield deployment


def test_an_admin_preempts_a_machine(service: Deployment, cloud: LocalCloud) -> None:
    machine = _machine(service)
    made = cloud.client.put(f"/machines/{machine}", json=SPOT).json()
    _name(service, machine, made["id"])
    answer = service.admin.post(f"/v1/machines/{machine}:preempt", json={"notice_s": 0})
    assert (answer.status_code, answer.json()["id"]) == (202, str(machine))
    until(lambda: cloud.client.get(f"/machines/{made['id']}").json()["end_cause"] == "preempted")


def test_a_machine_that_cannot_be_preempted_is_reported(service: Deployment, cloud: LocalCloud) -> None:
    assert service.admin.post(f"/v1/machines/{uuid4()}:preempt").status_code == 404
    machine = _machine(service)
    _name(service, machine, "lm-unknown")
    assert service.admin.post(f"/v1/machines/{machine}:preempt").status_code == 404
    assert service.admin.post(f"/v1/machines/{machine}:preempt", json={"notice_s": 1e9}).status_code == 422
    cloud.kill_host()
    answer = service.admin.post(f"/v1/machines/{machine}:preempt")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_without_a_machine_host_it_says_what_to_set(service: Deployment) -> None:
    answer = service.admin.post(f"/v1/machines/{_machine(service)}:preempt")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def _machine(service: Deployment) -> UUID:
    _, (agent,) = service.running()
    return agent.machine


def _name(service: Deployment, machine: UUID, provider_id: str) -> None:
    with service.store.writer.begin() as connection:
        connection.execute(update(MachineRow).where(MachineRow.id == machine).values(provider_id=provider_id))
