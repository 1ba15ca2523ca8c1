# SPDX-License-Identifier: Apache-2.0
"""500 machines launched and terminated at the rates that EC2 allows, on a virtual clock: boto3's own calls, and a
transport in this process that throttles as EC2 does."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from shoestring_core.decide.reconcile import MachineRef
from shoestring_worker.fake_ec2.throttling import Limit, Throttle
from shoestring_worker.fake_ec2.wire import Call
from shoestring_worker.launcher import MAX_CONCURRENT_LAUNCHES
from shoestring_worker.providers.base import OutcomeUnknown
from shoestring_worker.providers.ec2.provider import Ec2Provider
from shoestring_worker.providers.ec2.rate_limits import RateLimits
from shoestring_worker.providers.ec2.settings import Ec2Region, Ec2Settings

from tests.worker.providers.fake_aws import IMAGE, REGION, ZONE, launch_request

MACHINES = 500
RATES = {
    "RunInstances": Limit(size=5, per_s=2),
    "TerminateInstances": Limit(size=100, per_s=5),
    "DescribeImages": Limit(size=100, per_s=20),
}
"""docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html"""

INSTANCE = (
    "<RunInstancesResponse><instancesSet><item><instanceId>{}</instanceId><instanceState><name>pending</name>"
    "</instanceState><launchTime>2026-11-28T00:00:00.000Z</launchTime></item></instancesSet></RunInstancesResponse>"
)
IMAGES = (
    "<DescribeImagesResponse><imagesSet><item><rootDeviceName>/dev/sda1</rootDeviceName></item></imagesSet>"
    "</DescribeImagesResponse>"
)
THROTTLED = "<Response><Errors><Error><Code>RequestLimitExceeded</Code></Error></Errors></Response>"


class Ec2:
    """Its clock moves only while somebody waits. `launched_by`: instances by token."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.launched_by: dict[str, str] = {}
        self.terminated_at: dict[str, float] = {}
        self.throttled: list[str] = []
        self._throttle = Throttle(lambda: self.now)
        self._throttle.set(RATES)
        session = boto3.Session(aws_access_key_id="any", aws_secret_access_key="any", region_name=REGION)
        session.events.register("before-send.ec2", self._answer)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def _answer(self, request: Any, **_: object) -> AWSResponse:
        body = request.body if isinstance(request.body, str) else request.body.decode()
        parameters = dict(parse_qsl(body))
        call = Call(REGION, parameters["Action"], parameters)
        if not self._throttle.allows(call):
            self.throttled.append(call.action)
            return self._reply(request, 503, THROTTLED)
        if call.action == "DescribeImages":
            return self._reply(request, 200, IMAGES)
        if call.action == "RunInstances":
            token = parameters["ClientToken"]
            return self._reply(request, 200, INSTANCE.format(self.launched_by.setdefault(token, f"i-{token}")))
        for name, instance in parameters.items():
            if name.startswith("InstanceId."):
                self.terminated_at.setdefault(instance, self.now)
        return self._reply(request, 200, "<TerminateInstancesResponse/>")

    @staticmethod
    def _reply(request: Any, status: int, text: str) -> AWSResponse:
        return AWSResponse(request.url, status, {}, _Raw(text))


class _Raw(io.BytesIO):
    def __init__(self, text: str) -> None:
        super().__init__(text.encode())

    def stream(self, **_: object) -> Iterable[bytes]:
        yield self.read()


def test_no_termination_waits_half_a_minute_and_no_call_is_throttled_while_500_machines_launch(monkeypatch):
    """As the worker does it: each second it asks again for what is not done, terminations first, launches by eights."""
    ec2 = Ec2(monkeypatch)
    region = Ec2Region(image=IMAGE, subnets={ZONE: "subnet-0a0a0a0a"})
    settings = Ec2Settings(regions={REGION: region})
    provider = Ec2Provider("ec2", settings, limits=RateLimits(lambda: ec2.now, ec2.wait))
    asked_at: dict[str, float] = {}
    while len(ec2.terminated_at) < MACHINES:
        ec2.wait(1)
        running = [one for one in ec2.launched_by.values() if one not in ec2.terminated_at]
        stopped_early = [one for one in running if int(one.removeprefix("i-")) < MACHINES // 2]
        done = len(ec2.launched_by) == MACHINES
        for instance in running if done else stopped_early if len(ec2.launched_by) > MACHINES // 2 else []:
            asked_at.setdefault(instance, ec2.now)
            attempt(provider.terminate, MachineRef(REGION, instance))
        waiting = [str(number) for number in range(MACHINES) if str(number) not in ec2.launched_by]
        for token in waiting[:MAX_CONCURRENT_LAUNCHES]:
            attempt(provider.launch, launch_request(token))
    assert ec2.throttled == []
    assert max(ec2.terminated_at[one] - asked_at[one] for one in asked_at) < 30
    assert ec2.now < MACHINES / RATES["RunInstances"].per_s + 30


def attempt(call: Any, *arguments: object) -> None:
    """What is not sent is asked again; a LaunchRefused, which users see, fails the test."""
    with contextlib.suppress(OutcomeUnknown):
        call(*arguments)
