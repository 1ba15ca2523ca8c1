# SPDX-License-Identifier: Apache-2.0
"""What every provider promises, on each of them: the machine host, the simulation, and EC2 as the fake has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from shoestring_core.decide.reconcile import MachineRef
from shoestring_core.decide.timeouts import S
from shoestring_core.launch_request import LaunchRequest
from shoestring_worker import machinehost_client
from shoestring_worker.providers import local
from shoestring_worker.providers.base import LaunchRefused, OutcomeUnknown, Provider
from shoestring_worker.providers.sim import SimulatedProvider

from tests.servers import FaultProxy, until
from tests.trainer.machinehost.local_cloud import LocalCloud
from tests.worker.providers.fake_aws import FakeAws, launch_request

Lost = Literal["request", "reply"]


@dataclass
class Rig:
    """A provider, and what a test can do behind its back.

    running  how many machines there are, by other evidence than the provider's
    losing   while it is entered, the requests of launches are lost, or their replies
    fill     from now on there is no capacity
    """

    provider: Provider
    request: LaunchRequest
    running: Callable[[], int]
    losing: Callable[[Lost], AbstractContextManager[None]]
    fill: Callable[[], None]

    def requests(self, count: int) -> list[LaunchRequest]:
        return [replace(self.request, token=f"token-{number}") for number in range(count)]


@pytest.fixture
def local_rig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_proxy: Callable[[int], FaultProxy]
) -> Iterator[Rig]:
    host = LocalCloud(tmp_path)
    host.start(slots=2)
    address = json.loads((tmp_path / "machinehost.json").read_text())
    proxy = fault_proxy(int(address["url"].rpartition(":")[2]))
    behind = tmp_path / "behind-the-proxy.json"
    behind.write_text(json.dumps(address | {"url": f"http://127.0.0.1:{proxy.port}"}))
    provider = local.LocalProvider("local", behind, slots=2, price_spot="0.158", price_on_demand="0.526")

    @contextmanager
    def losing(what: Lost) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(machinehost_client, "CALL_TIMEOUT_S", 0.5)
            provider._host._client = None
            setattr(proxy, "mute" if what == "reply" else "blackhole", True)
            yield
            proxy.mute = proxy.blackhole = False
            provider._host._client = None

    def running() -> int:
        return sum(machine["state"] != "ended" for machine in host.client.get("/machines").json()["machines"])

    def fill() -> None:
        for number in range(2):
            host.launch(f"other-{number}")

    request = replace(launch_request(), region="local", zone="", type="local.cpu")
    yield Rig(provider, request, running, losing, fill)
    host.clean_up()


@pytest.fixture
def sim_rig() -> Rig:
    provider = SimulatedProvider(lambda: 1_000 * S, slots=2)

    @contextmanager
    def losing(what: Lost) -> Iterator[None]:
        provider.fault = lambda _: "lost_reply" if what == "reply" else "lost_request"
        yield
        provider.fault = lambda _: None

    def fill() -> None:
        provider.slots = 0

    request = replace(launch_request(), region="sim", zone="", type="sim")
    return Rig(provider, request, lambda: len(provider.alive()), losing, fill)


@pytest.fixture
def ec2_rig(aws: FakeAws) -> Rig:
    @contextmanager
    def losing(what: Lost) -> Iterator[None]:
        aws.fault(f"lost_{what}")
        yield

    def fill() -> None:
        aws.fault("error", code="InsufficientInstanceCapacity", status=500, times=100)

    return Rig(aws.provider(), launch_request(), lambda: len(aws.instances()), losing, fill)


@pytest.fixture(params=["local", "sim", "ec2"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return request.getfixturevalue(f"{request.param}_rig")


def test_repeated_launches_with_a_token_launch_one_machine(rig: Rig):
    first, again = rig.provider.launch(rig.request), rig.provider.launch(rig.request)
    assert (first.id, first.token) == (again.id, rig.request.token)
    assert rig.running() == 1


def test_launches_with_one_token_at_the_same_time_launch_one_machine(rig: Rig):
    with ThreadPoolExecutor(4) as threads:
        machines = list(threads.map(rig.provider.launch, [rig.request] * 4))
    assert len({machine.id for machine in machines}) == 1
    assert rig.running() == 1


def test_a_token_with_another_request_launches_nothing_and_its_outcome_is_unknown(rig: Rig):
    rig.provider.launch(rig.request)
    with pytest.raises(OutcomeUnknown):
        rig.provider.launch(replace(rig.request, tags=rig.request.tags | {"job": "another"}))
    assert rig.running() == 1


@pytest.mark.parametrize(("lost", "running"), [("request", 0), ("reply", 1)])
def test_a_launch_without_an_answer_is_unknown_and_its_repetition_leads_to_one_machine(
    rig: Rig, lost: Lost, running: int
):
    with rig.losing(lost), pytest.raises(OutcomeUnknown):
        rig.provider.launch(rig.request)
    until(lambda: rig.running() == running)  # who asked may have given up before the machine was there
    rig.provider.launch(rig.request)
    assert rig.running() == 1


def test_a_launch_without_capacity_is_refused_and_launches_nothing(rig: Rig):
    rig.fill()
    before = rig.running()
    with pytest.raises(LaunchRefused) as refused:
        rig.provider.launch(rig.request)
    assert refused.value.kind == "capacity"
    assert rig.running() == before


def test_machines_are_listed_with_token_and_tags_in_their_own_deployment_only(rig: Rig):
    mine, others = rig.requests(2)
    others = replace(others, tags=others.tags | {"shoestring": "others"})
    machines = {request.token: rig.provider.launch(request) for request in (mine, others)}
    (listed,) = rig.provider.list("us")
    assert (listed.id, listed.token, listed.tags) == (machines[mine.token].id, mine.token, mine.tags)
    assert [machine.token for machine in rig.provider.list("others")] == [others.token]
    assert rig.provider.list("nobody") == []


def test_a_terminated_machine_is_listed_as_ended_with_its_times_and_cause(rig: Rig):
    kept, ended = (rig.provider.launch(request) for request in rig.requests(2))
    for _ in range(2):
        rig.provider.terminate(ended.ref)

    def listed() -> dict[str, object]:
        return {machine.id: machine for machine in rig.provider.list("us")}

    until(lambda: listed()[ended.id].state == "ended")
    assert listed()[ended.id].launched_at <= listed()[ended.id].ended_at
    assert listed()[ended.id].end_cause == "requested"
    assert listed()[kept.id].state in ("pending", "running")
    assert rig.running() == 1


def test_a_token_whose_machine_has_ended_launches_no_other(rig: Rig):
    machine = rig.provider.launch(rig.request)
    rig.provider.terminate(machine.ref)
    until(lambda: rig.running() == 0)
    try:
        assert rig.provider.launch(rig.request).id == machine.id
    except OutcomeUnknown:
        pass
    assert rig.running() == 0


def test_terminating_a_machine_that_never_existed_changes_nothing(rig: Rig):
    rig.provider.launch(rig.request)
    unknown = "i-00000000000000000" if rig.request.region == "us-east-1" else "lm-0"
    rig.provider.terminate(MachineRef(rig.request.region, unknown))
    assert rig.running() == 1
