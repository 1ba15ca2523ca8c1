# SPDX-License-Identifier: Apache-2.0
"""The client of a real machine host: its results, and its errors when the host is down."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from shoestring_worker.providers import local
from shoestring_worker.providers.base import CALL_TIMEOUT_S, LaunchRefused, LaunchRequest, OutcomeUnknown
from shoestring_worker.providers.local import LocalProvider

from tests.servers import until
from tests.trainer.machinehost import local_cloud

REQUEST = LaunchRequest("token-1", "local", "", {"shoestring": "us"}, "local.cpu", "spot", "0.158", {"server_url": "x"})


@pytest.fixture
def host(tmp_path: Path) -> Iterator[local_cloud.LocalCloud]:
    host = local_cloud.LocalCloud(tmp_path)
    host.start(slots=2)
    yield host
    host.clean_up()


def provider_of(host: local_cloud.LocalCloud) -> LocalProvider:
    return LocalProvider(host.folder / "machinehost.json", slots=2, price_spot="0.158", price_on_demand="0.526")


def test_a_token_buys_one_machine_however_often_it_is_sent(host: local_cloud.LocalCloud):
    provider = provider_of(host)
    first, again = provider.launch(REQUEST), provider.launch(REQUEST)
    assert first.id == again.id
    assert [(one.token, one.tags) for one in provider.list()] == [("token-1", {"shoestring": "us"})]
    with pytest.raises(OutcomeUnknown, match="idempotency-mismatch"):
        provider.launch(replace(REQUEST, price="0.2"))


def test_full_slots_are_a_definite_no(host: local_cloud.LocalCloud):
    provider = provider_of(host)
    for number in (1, 2):
        provider.launch(replace(REQUEST, token=f"token-{number}"))
    with pytest.raises(LaunchRefused) as refused:
        provider.launch(replace(REQUEST, token="token-3"))
    assert refused.value.code == "capacity"


def test_an_ended_machine_keeps_its_times_and_its_cause(host: local_cloud.LocalCloud):
    provider = provider_of(host)
    machine = provider.launch(REQUEST)
    provider.terminate(machine.id)
    provider.terminate(machine.id)
    until(lambda: provider.list()[0].state == "ended")
    (ended,) = provider.list()
    assert ended.launched_at <= ended.ended_at
    assert ended.end_cause == "requested"
    with pytest.raises(OutcomeUnknown, match="token-ended"):
        provider.launch(REQUEST)


def test_a_host_started_again_is_found_at_its_new_address_with_its_new_key(host: local_cloud.LocalCloud):
    provider = provider_of(host)
    machine = provider.launch(REQUEST)
    host.kill_host()
    with pytest.raises(OutcomeUnknown):
        provider.list()
    host.start(slots=2)
    assert [one.id for one in provider.list()] == [machine.id]


def test_a_host_that_never_was_is_unknown_and_not_waited_for(tmp_path: Path):
    provider = LocalProvider(tmp_path / "machinehost.json", slots=2, price_spot="0.158", price_on_demand="0.526")
    began = time.monotonic()
    for ask in (provider.list, lambda: provider.launch(REQUEST), lambda: provider.terminate("lm-1")):
        with pytest.raises(OutcomeUnknown, match="machine host"):
            ask()
    assert time.monotonic() - began < 1


def test_a_host_that_accepts_and_never_answers_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "CALL_TIMEOUT_S", 0.3)
    assert CALL_TIMEOUT_S <= 20
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        told = tmp_path / "machinehost.json"
        told.write_text(f'{{"url": "http://127.0.0.1:{deaf.getsockname()[1]}", "key": "k", "pid": 1}}')
        provider = LocalProvider(told, slots=2, price_spot="0.158", price_on_demand="0.526")
        with pytest.raises(OutcomeUnknown, match="did not answer"):
            provider.launch(REQUEST)
