# SPDX-License-Identifier: Apache-2.0
"""`shoestring aws panic` ends everything of ours by credentials alone, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from shoestring_core.exit_codes import ExitCode
from shoestring_worker.providers.ec2.account import __main__ as command
from shoestring_worker.providers.ec2.account import panic, teardown
from shoestring_worker.providers.ec2.account.aws import Aws

from tests.worker.providers.ec2.test_account import killed_again_and_again
from tests.worker.providers.ec2.test_sweeps import REGIONS, plant, there
from tests.worker.providers.fake_aws import IMAGE, OTHER_REGION, REGION, FakeAws


@pytest.fixture(autouse=True)
def at_the_fake(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    """No service and no database: an endpoint and credentials."""
    monkeypatch.setenv("SHOESTRING_EC2_ENDPOINT_URL", aws.url)
    monkeypatch.setattr(panic, "POLL_S", 0)


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = command.main(["panic", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def named(things: list[dict[str, str]]) -> set[str]:
    return {one["id"] for one in things}


def test_everything_with_our_tag_ends_in_all_regions_and_nothing_without_it(
    aws: FakeAws, capsys: pytest.CaptureFixture[str]
):
    for region in REGIONS:
        aws.ec2(region).run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)
        aws.ec2(region).allocate_address(Domain="vpc")
    foreign = {region: there(aws, region) for region in REGIONS}
    planted = {one for region in REGIONS for deployment in ("us", "lab") for one in plant(aws, region, deployment)}
    code, listed = run(capsys, "--dry-run")
    assert (code, planted - named(listed["left"])) == (ExitCode.OK, set())
    assert all(planted & there(aws, region) for region in REGIONS), "a dry run changes nothing"
    code, result = run(capsys, "--yes")
    assert (code, result["left"], result["problems"]) == (ExitCode.OK, [], [])
    assert planted <= named(result["ended"])
    assert {region: there(aws, region) for region in REGIONS} == foreign
    assert run(capsys, "--yes") == (ExitCode.OK, result | {"ended": []}), "again it changes nothing"


@pytest.mark.parametrize("verb", ["panic", "bootstrap"])
def test_a_region_that_is_not_there_is_named_with_the_one_that_was_meant(
    aws: FakeAws, capsys: pytest.CaptureFixture[str], verb: str
):
    calls = len(aws.read("calls"))
    assert command.main([verb, "--region", "us-esat-1"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "us-esat-1 is no region that is enabled in this account. Did you mean us-east-1? There are: eu-w" in said
    assert [call["action"] for call in aws.read("calls")[calls:]] == ["DescribeRegions"]


def test_a_page_in_place_of_an_answer_is_a_sentence(aws: FakeAws, capsys: pytest.CaptureFixture[str]):
    aws.fault("garbled", "DescribeRegions", times=9)
    assert command.main(["panic", "--yes"]) == ExitCode.NETWORK
    assert "ec2 in us-east-1 did not answer DescribeRegions" in capsys.readouterr().err


def test_of_one_deployment_and_region_alone(aws: FakeAws, capsys: pytest.CaptureFixture[str]):
    ours, theirs = (plant(aws, REGION, deployment) for deployment in ("us", "lab"))
    elsewhere = plant(aws, OTHER_REGION, "us")
    code, result = run(capsys, "--yes", "--deployment", "us", "--region", REGION)
    assert (code, set(ours) <= named(result["ended"])) == (ExitCode.OK, True)
    assert there(aws, REGION) & {*ours, *theirs} == set(theirs)
    assert set(elsewhere) <= there(aws, OTHER_REGION)


@pytest.mark.parametrize("action", ["DescribeInstances", "TerminateInstances"])
def test_a_region_that_refuses_keeps_no_other_from_being_cleared_and_is_told(
    aws: FakeAws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, action: str
):
    planted = {region: plant(aws, region, "us") for region in (REGION, OTHER_REGION)}
    aws.fault("error", action, region=REGION, code="UnauthorizedOperation", status=403, times=1_000)
    monkeypatch.setattr(panic, "PATIENCE_S", 0)
    code, result = run(capsys, "--yes", "--region", REGION, "--region", OTHER_REGION)
    assert code == 1
    assert {problem.partition(":")[0] for problem in result["problems"]} == {REGION}
    assert "UnauthorizedOperation" in result["problems"][0]
    assert set(planted[OTHER_REGION]) & there(aws, OTHER_REGION) == set()


def test_without_a_terminal_it_ends_nothing_unless_told(aws: FakeAws, capsys: pytest.CaptureFixture[str]):
    planted = plant(aws, REGION, "us")
    assert command.main(["panic", "--region", REGION]) == ExitCode.USAGE
    told = capsys.readouterr()
    assert all(one in told.out for one in planted)
    assert "--yes" in told.err
    assert set(planted) <= there(aws, REGION)


def test_credentials_that_are_missing_or_a_silent_aws_are_told_with_what_to_do(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert command.main(["panic"]) == ExitCode.AUTH
    assert "AWS_PROFILE" in capsys.readouterr().err


def test_a_region_that_does_not_answer_is_a_problem_of_its_own():
    (found,) = panic.find_everything(Aws("http://127.0.0.1:1"), [REGION], None)
    assert "Could not connect" in found.problems[0]


def tagged(kind: str) -> dict[str, Any]:
    tags = [{"Key": "shoestring", "Value": "us"}]
    return {"TagSpecifications": [{"ResourceType": kind, "Tags": tags}]}


def test_what_a_machine_that_is_not_ours_has_of_ours_is_left_at_once_with_what_to_do_and_untouched(aws: FakeAws):
    ec2, account = aws.ec2(), Aws(aws.url)
    subnet = aws.subnet()
    (foreign,) = ec2.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1, SubnetId=subnet)["Instances"]
    theirs = foreign["InstanceId"]
    volume = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=8, **tagged("volume"))["VolumeId"]
    ec2.attach_volume(VolumeId=volume, InstanceId=theirs, Device="/dev/sdf")
    interface = ec2.create_network_interface(SubnetId=subnet, **tagged("network-interface"))["NetworkInterface"]
    interface = interface["NetworkInterfaceId"]
    ec2.attach_network_interface(NetworkInterfaceId=interface, InstanceId=theirs, DeviceIndex=1)
    address = ec2.allocate_address(Domain="vpc", **tagged("elastic-ip"))["AllocationId"]
    ec2.associate_address(AllocationId=address, InstanceId=theirs)
    planted, waited = plant(aws, REGION, "us"), list[float]()
    (result,) = panic.end_everything(
        account, panic.find_everything(account, [REGION], None), None, lambda _: None, sleep=waited.append
    )
    assert {one.id for one in result.left} == {volume, interface, address}
    assert all(f"{theirs}, which isn't ours, uses it. Detach it" in problem for problem in result.problems)
    assert len(result.problems) == 3
    assert set(planted) & there(aws, REGION) == set()
    assert len(waited) <= 2, "nobody waits for what will not change by itself"
    assert theirs in there(aws, REGION)
    left = teardown.teardown(account, teardown.find(account).things, lambda _: None, sleep=waited.append)
    assert {why.partition(",")[0] for why in left.values()} == {theirs}
    assert {volume, interface, address} <= there(aws, REGION)


def test_killed_after_each_of_its_calls_and_run_again_panic_leaves_nothing_of_ours(aws: FakeAws):
    before, planted = there(aws, REGION), plant(aws, REGION, "us")

    def run_panic(account: Aws) -> None:
        found = panic.find_everything(account, [REGION], None)
        panic.end_everything(account, found, None, lambda _: None, sleep=lambda _: None)

    assert killed_again_and_again(run_panic, aws.url) == len(planted) - 1, "both machines go in one call"
    assert there(aws, REGION) == before


def test_a_home_region_that_does_not_answer_keeps_no_other_from_being_cleared(
    aws: FakeAws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    planted = plant(aws, OTHER_REGION, "us")
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    monkeypatch.setattr(panic, "PATIENCE_S", 0)
    for action in ("DescribeRegions", "DescribeSpotInstanceRequests", "GetCallerIdentity"):
        aws.fault("error", action, region=REGION, code="Unavailable", status=503, times=1_000)
    code, result = run(capsys, "--yes")
    assert (code, {problem.partition(":")[0] for problem in result["problems"]}) == (1, {REGION})
    assert set(planted) & there(aws, OTHER_REGION) == set()


def test_machines_that_never_end_are_left_and_listed(aws: FakeAws):
    planted, account = plant(aws, REGION, "us"), Aws(aws.url)
    found = panic.find_everything(account, [REGION], None)
    aws.fault("error", "TerminateInstances", code="OperationNotPermitted", status=400, times=1_000)
    now = iter(range(0, 10_000, 50))
    (result,) = panic.end_everything(
        account, found, None, lambda _: None, monotonic=lambda: float(next(now)), sleep=lambda _: None
    )
    assert {one.id for one in result.left if one.kind == "machine"} == set(planted[:2])
    assert "OperationNotPermitted" in result.problems[0]
