# SPDX-License-Identifier: Apache-2.0
"""`shoestring aws verify` against the fake's tables: each rule holds there, and whatever happens nothing is left."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from shoestring_core.decide.reconcile import MachineRef, ProviderMachine
from shoestring_core.launch_request import LaunchRequest
from shoestring_worker.fake_ec2.quotas import SPOT
from shoestring_worker.providers.ec2.account import __main__ as command
from shoestring_worker.providers.ec2.account import verify, verify_trial
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.clock import Clock
from shoestring_worker.providers.ec2.account.verify import Verification
from shoestring_worker.providers.ec2.account.verify_rules import RULES
from shoestring_worker.providers.ec2.provider import Ec2Provider

from tests.worker.providers.ec2.test_account import Killed, account_of, silent
from tests.worker.providers.fake_aws import OTHER_REGION, REGION, UBUNTU_IMAGE, ZONE, FakeAws, launch_request

BUCKET = f"shoestring-123456789012-{REGION}"


class Operator:
    """Somebody who waits, while machines power themselves off after some seconds: a hundred times as fast."""

    def __init__(self, aws: FakeAws) -> None:
        self.aws, self._now, self.waited = aws, 0.0, 0
        self.while_waiting: Callable[[], None] = self.power_off
        aws.s3().create_bucket(Bucket=BUCKET)
        aws.control("prices", **{ZONE: {"t3.nano": "0.0016", "g5.xlarge": "0.41"}})
        aws.control("quotas", **{REGION: {SPOT["t"]: 8.0}})

    def verify(self, report: Callable[[str], None] = silent) -> Verification:
        clock = Clock(lambda: self._now, self.wait)
        return verify.verify(account_of(self.aws.url), self.aws.settings(), BUCKET, report, clock)

    def wait(self, seconds: float) -> None:
        self._now += 100 * seconds
        self.waited += 1
        self.while_waiting()

    def power_off(self) -> None:
        for one in self.aws.instances():
            self.aws.control("end", region=REGION, instance=one["InstanceId"], code="Client.InstanceInitiatedShutdown")

    def left(self) -> tuple[int, int]:
        return len(self.aws.instances()), self.aws.s3().list_objects_v2(Bucket=BUCKET)["KeyCount"]


@pytest.fixture
def operator(aws: FakeAws) -> Operator:
    return Operator(aws)


def test_each_rule_holds_on_the_fake_and_nothing_is_left(aws: FakeAws, operator: Operator):
    theirs = aws.provider().launch(launch_request(deployment="us"))
    aws.provider().launch(launch_request("of-a-run-that-was-killed", deployment="verify"))
    operator.while_waiting = lambda: [  # type: ignore[assignment]
        aws.control("end", region=REGION, instance=one["InstanceId"], code="Client.InstanceInitiatedShutdown")
        for one in aws.instances()
        if one["InstanceId"] != theirs.id
    ]
    result = operator.verify()
    assert [(one.rule, one.verdict, one.found) for one in result.verdicts if one.verdict != "holds"] == []
    assert (result.holds, result.image, len(result.verdicts)) == (True, UBUNTU_IMAGE, len(RULES))
    assert operator.left() == (1, 0)
    assert [one["InstanceId"] for one in aws.instances()] == [theirs.id], "a deployment's machines are not touched"
    launched = [call["parameters"]["InstanceType"] for call in aws.calls("RunInstances")]
    assert set(launched) == {"t3.nano", "g5.xlarge"}
    text = verify.render(result)
    assert text.count("| holds |") == len(RULES)
    assert "Nothing is left." in text
    assert f"**Not AWS answered, but {aws.url}" in text
    assert "stands in for it: this says" not in verify.render(replace(result, endpoint=""))


def test_a_rule_that_does_not_hold_and_one_that_was_not_reached_are_told(aws: FakeAws, operator: Operator):
    aws.fault("error", "DescribeSpotPriceHistory", code="UnauthorizedOperation", status=403, times=9)
    aws.fault("duplicate", "PutObject")
    operator.while_waiting = lambda: None
    result = operator.verify()
    verdicts = {one.rule: (one.verdict, one.found) for one in result.verdicts}
    assert verdicts["Spot prices are told by zone"][0] == "not tried"
    assert "UnauthorizedOperation" in verdicts["Spot prices are told by zone"][1]
    verdict, found = verdicts["A machine that finds no service powers itself off, and is terminated"]
    assert (verdict, found.startswith("it has not powered itself off within")) == ("differs", True)
    assert not result.holds
    assert operator.left() == (0, 0)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Interrupts, also where SIGINT is ignored, as a shell does for what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_everything_and_the_report_says_what_was_not_tried(aws: FakeAws, operator: Operator):
    operator.while_waiting = lambda: os.kill(os.getpid(), signal.SIGINT)
    told: list[str] = []

    def report(line: str) -> None:
        told.append(line)
        if line.startswith("Interrupted"):
            operator.while_waiting = lambda: os.kill(os.getpid(), signal.SIGINT)  # somebody is in a hurry

    before = signal.getsignal(signal.SIGINT)
    result = operator.verify(report)
    assert result.verdicts[-1].found == "interrupted"
    assert operator.left() == (0, 0)
    assert not result.holds
    assert signal.getsignal(signal.SIGINT) is before


class Mortal:
    """A process that is killed after its nth change, once that has taken effect: it makes no further call."""

    def __init__(self, changes: int) -> None:
        self.changes = changes

    def call(self, call: Callable[[], Any], *, changes: bool) -> Any:
        if self.changes == 0:
            raise Killed
        self.changes -= changes
        answer = call()
        if self.changes == 0:
            raise Killed
        return answer


def mortal_account(url: str, process: Mortal) -> Aws:
    class Account(Aws):
        def read(self, *where: str, **arguments: Any) -> dict[str, Any]:
            return process.call(lambda: Aws.read(self, *where, **arguments), changes=False)

        def read_all(self, *where: str, **arguments: Any) -> list[Any]:
            return process.call(lambda: Aws.read_all(self, *where, **arguments), changes=False)

        def write(self, *where: str, **arguments: Any) -> dict[str, Any]:
            return process.call(lambda: Aws.write(self, *where, **arguments), changes=True)

    return Account(url)


def test_killed_after_each_of_its_calls_and_run_again_it_leaves_nothing(
    aws: FakeAws, operator: Operator, monkeypatch: pytest.MonkeyPatch
):
    process = Mortal(0)

    class Provider(Ec2Provider):
        def launch(self, request: LaunchRequest) -> ProviderMachine:
            return process.call(lambda: Ec2Provider.launch(self, request), changes=True)

        def terminate(self, ref: MachineRef) -> None:
            process.call(lambda: Ec2Provider.terminate(self, ref), changes=True)

    monkeypatch.setattr(verify_trial, "Ec2Provider", Provider)
    account, left = mortal_account(aws.url, process), []
    for kills in range(1, 100):
        process.changes, clock = kills, Clock(lambda: operator._now, operator.wait)
        try:
            result = verify.verify(account, aws.settings(), BUCKET, silent, clock)
        except Killed:
            left.append(operator.left())
            continue
        break
    assert {(1, 0), (1, 1)} & set(left), "it is killed while there is something"
    assert (result.holds, operator.left(), kills > len(RULES) // 2) == (True, (0, 0), True)


def test_it_never_begins_what_could_cost_more_than_its_cap():
    assert verify.highest_cost(8) < verify.CAP_USD == Decimal("0.10")
    with pytest.raises(AwsError, match=r"could cost \$.*, more than \$0.10"):
        verify.highest_cost(2_000)


def test_the_command_asks_first_and_writes_its_report(
    aws: FakeAws,
    operator: Operator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("SHOESTRING_EC2_ENDPOINT_URL", aws.url)
    regions = {REGION: {"image": UBUNTU_IMAGE, "subnets": {f"{REGION}a": aws.subnet()}}}
    monkeypatch.setenv("SHOESTRING_EC2_REGIONS", json.dumps(regions))
    report = tmp_path / "report.md"
    assert command.main(["verify", "--report", str(report)]) == 2
    assert "there is no terminal to ask" in capsys.readouterr().err
    assert (aws.calls("RunInstances"), report.exists()) == ([], False)
    aws.fault("error", code="InsufficientInstanceCapacity", status=500, times=99)
    assert command.main(["verify", "--report", str(report), "--yes", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["holds"], found["left"], found["region"]) == (False, [], REGION)
    assert "| not tried | capacity: InsufficientInstanceCapacity" in report.read_text()
    assert OTHER_REGION not in report.read_text()
