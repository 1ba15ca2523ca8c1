# SPDX-License-Identifier: Apache-2.0
"""The client of a real machine host: its results, and its errors when the host is down."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from shoestring_core.decide.reconcile import MachineRef
from shoestring_core.launch_request import LaunchRequest
from shoestring_core.wire import BootData
from shoestring_worker import machinehost_client
from shoestring_worker.providers.base import CALL_TIMEOUT_S, OutcomeUnknown
from shoestring_worker.providers.local import LocalProvider

from tests.servers import until
from tests.trainer.machinehost import local_cloud

USER_DATA = BootData(server_url="x", machine=UUID(int=1))
REQUEST = LaunchRequest("token-1", "local", "", {"shoestring": "us"}, "local.cpu", "spot", "0.158", USER_DATA)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[local_cloud.LocalCloud]:
    host = local_cloud.LocalCloud(tmp_path)
    host.start(slots=2)
    yield host
    host.clean_up()


def provider_at(address: Path) -> LocalProvider:
    return LocalProvider("local", address, slots=2, price_spot="0.158", price_on_demand="0.526")


def provider_of(host: local_cloud.LocalCloud) -> LocalProvider:
    return provider_at(host.folder / "machinehost.json")


def test_a_token_whose_machine_has_ended_is_never_answered_with_a_machine(host: local_cloud.LocalCloud):
    provider = provider_of(host)
    provider.terminate(provider.launch(REQUEST).ref)
    until(lambda: provider.list("us")[0].state == "ended")
    with pytest.raises(OutcomeUnknown, match="token-ended"):
        provider.launch(REQUEST)


def test_a_restarted_host_is_called_at_its_new_address_with_its_new_key(host: local_cloud.LocalCloud):
    provider = provider_of(host)
    machine = provider.launch(REQUEST)
    host.kill_host()
    with pytest.raises(OutcomeUnknown):
        provider.list("us")
    host.start(slots=2)
    assert [listed.id for listed in provider.list("us")] == [machine.id]


def test_without_a_host_the_outcome_is_unknown_without_waiting(tmp_path: Path):
    provider = provider_at(tmp_path / "machinehost.json")
    started = time.monotonic()
    for call in (
        lambda: provider.list("us"),
        lambda: provider.launch(REQUEST),
        lambda: provider.terminate(MachineRef("local", "lm-1")),
    ):
        with pytest.raises(OutcomeUnknown, match="machine host"):
            call()
    assert time.monotonic() - started < CALL_TIMEOUT_S


def test_a_call_to_a_host_that_never_replies_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machinehost_client, "CALL_TIMEOUT_S", 0.3)
    assert CALL_TIMEOUT_S <= 20
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address_file = tmp_path / "machinehost.json"
        address_file.write_text(f'{{"url": "http://127.0.0.1:{silent.getsockname()[1]}", "key": "k", "pid": 1}}')
        provider = provider_at(address_file)
        with pytest.raises(OutcomeUnknown, match="did not answer"):
            provider.launch(REQUEST)
