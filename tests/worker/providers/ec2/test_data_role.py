# SPDX-License-Identifier: Apache-2.0
"""The role that machines get to read their job's data: who gets it, who may give it, and what a wrong one says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError
from shoestring_api.serializers.statuses import status_of
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.store import queries
from shoestring_worker.providers.base import LaunchRefused
from shoestring_worker.providers.ec2.account import __main__ as command
from shoestring_worker.providers.ec2.account import bootstrap, policies
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.data_role import find_data_role
from shoestring_worker.providers.ec2.account.doctor import check_data_role, check_region
from shoestring_worker.providers.ec2.offers import make_offers
from shoestring_worker.providers.ec2.settings import Ec2Region, Ec2Settings

from tests.servers import until
from tests.worker.conftest import World
from tests.worker.providers.fake_aws import IMAGE, REGION, UNLISTED, ZONE, FakeAws, launch_request

ROLE = "training-data"
IN_S3 = {"recipe": "imagefolder/resnet9", "data": {"train": "s3://images/cats"}}
PROFILE_ARN = "arn:aws:iam::123456789012:instance-profile/ml/training-data"


def with_role(world: World, aws: FakeAws, role: str) -> None:
    world.control_loop = world.another_control_loop(ec2=aws.provider(settings=aws.settings(data_role=role)))


def profiles_asked(aws: FakeAws) -> list[str | None]:
    return [call["parameters"].get("IamInstanceProfile.Name") for call in aws.calls("RunInstances")]


@pytest.fixture
def world(make_world: Callable[..., World], aws: FakeAws) -> World:
    aws.control("prices", **{ZONE: {"g5.xlarge": "0.41"}})
    return make_world("ec2")


@pytest.mark.any_database
def test_a_machine_gets_the_role_if_its_job_s_data_are_in_s3_and_otherwise_none(world: World, aws: FakeAws):
    aws.make_data_role(ROLE, "images")
    with_role(world, aws, ROLE)
    for number, fields in enumerate((IN_S3, {}, {**IN_S3, "data": {"train": "/data/cats"}}), start=1):
        world.submit(provider="ec2", **fields)
        until(lambda number=number: world.tick(1) or len(aws.calls("RunInstances")) == number)
    assert profiles_asked(aws) == [ROLE, None, None]
    with_role(world, aws, "")
    world.submit(provider="ec2", **IN_S3)
    until(lambda: world.tick(1) or len(aws.calls("RunInstances")) == 4)
    assert profiles_asked(aws)[3] is None
    assert [bool(one.get("IamInstanceProfile")) for one in aws.instances()].count(True) == 1


@pytest.mark.any_database
@pytest.mark.parametrize("later", ["", "other-data"])
def test_a_launch_is_repeated_with_the_role_that_it_was_planned_with(world: World, aws: FakeAws, later: str):
    aws.make_data_role(ROLE, "images")
    with_role(world, aws, ROLE)
    aws.control("listing-lag", listings=UNLISTED)
    aws.fault("lost_reply")
    job = world.submit(provider="ec2", **IN_S3)
    until(lambda: world.tick(1) or aws.calls("RunInstances"), every_s=0)
    with_role(world, aws, later)
    until(lambda: world.tick(1) or len(aws.calls("RunInstances")) == 2, every_s=0)
    first, second = aws.calls("RunInstances")
    assert first == second
    aws.control("listing-lag", listings=0)
    until(lambda: world.tick(1) or world.machines(job)[0].state == "running", every_s=0)
    (row,) = world.machines(job)
    assert [one["InstanceId"] for one in aws.instances()] == [row.provider_id]


def status_text(world: World, job: UUID) -> str:
    with world.store.read() as db:
        return status_of(queries.load_job_rows(db, queries.load_jobs(db, [job]))[0]).text()


def test_a_profile_that_is_so_new_that_ec2_does_not_know_it_is_waited_for_and_the_page_says_so(
    world: World, aws: FakeAws
):
    """docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html, Changes that I make are not always immediately
    visible"""
    with_role(world, aws, ROLE)
    job = world.submit(provider="ec2", **IN_S3)
    until(lambda: world.tick(1) or len(aws.calls("RunInstances")) == 3, every_s=0)
    told = "could not be launched yet; the launch is retried. InvalidParameterValue: "
    until(lambda: world.tick(0) or told in status_text(world, job), every_s=0)
    assert f"the instance profile {ROLE}: make one" in status_text(world, job)
    aws.make_data_role(ROLE, "images")
    until(lambda: world.tick(1) or "running" in {one.state for one in world.machines(job)}, every_s=0)
    assert profiles_asked(aws)[-1] == ROLE
    assert told not in status_text(world, job)


@pytest.mark.any_database
def test_a_profile_that_is_not_there_ends_the_job_with_what_to_do_and_launches_nothing(world: World, aws: FakeAws):
    with_role(world, aws, "trainig-data")
    job = world.submit(provider="ec2", **IN_S3)
    until(lambda: world.tick(10) or world.job(job).ended_at, every_s=0)
    text = status_text(world, job)
    assert world.job(job).end_reason == "account"
    assert "SHOESTRING_EC2_DATA_ROLE names the instance profile trainig-data: make one" in text
    assert aws.instances() == []


@pytest.mark.parametrize(
    ("message", "of_role"),
    [
        ("You are not authorized to perform this operation. Encoded authorization failure message: 4hG", True),
        ("User: arn:a is not authorized to perform: iam:PassRole on resource: arn:b", True),
        ("User: arn:a is not authorized to perform: ec2:RunInstances on resource: arn:b", False),
    ],
)
def test_a_role_that_the_service_may_not_pass_is_told_with_what_to_do(aws: FakeAws, message: str, of_role: bool):
    """docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html"""
    aws.fault("error", code="UnauthorizedOperation", status=403, message=message, times=2)
    for role in (ROLE, None):
        with pytest.raises(LaunchRefused) as refused:
            aws.provider().launch(launch_request(data_role=role))
        assert refused.value.kind is RefusalKind.ACCOUNT
        assert ("need iam:PassRole" in str(refused.value)) == (of_role and role is not None)


def test_a_profile_without_a_role_is_told_with_what_to_do(aws: FakeAws):
    aws.make_data_role(ROLE, "images")
    client = Aws(aws.url)
    client.write("iam", REGION, "remove_role_from_instance_profile", InstanceProfileName=ROLE, RoleName=ROLE)
    with pytest.raises(LaunchRefused, match=f"the instance profile {ROLE}: make one of that name with a role") as no:
        aws.provider().launch(launch_request(data_role=ROLE))
    assert no.value.kind is RefusalKind.ROLE
    with pytest.raises(AwsError, match=f"There is no role in the instance profile {ROLE}"):
        find_data_role(client, ROLE)


@pytest.mark.parametrize("named", [ROLE, PROFILE_ARN, ""])
def test_the_setting_is_the_name_or_the_arn_of_a_profile_and_offers_carry_it(named: str):
    regions = {REGION: Ec2Region(image=IMAGE, subnets={ZONE: "subnet-00000001"})}
    settings = Ec2Settings(regions=regions, data_role=named)
    assert {offer.data_role for offer in make_offers("ec2", settings)} == {named or None}


@pytest.mark.parametrize("named", ["arn:aws:iam::123456789012:role/training-data", "training data", "a/b", "x" * 129])
def test_what_can_not_be_a_profile_is_refused_as_a_setting(named: str):
    regions = {REGION: Ec2Region(image=IMAGE, subnets={ZONE: "subnet-00000001"})}
    with pytest.raises(ValidationError, match="is not the name of an instance profile"):
        Ec2Settings(regions=regions, data_role=named)


def test_the_worker_may_pass_that_role_to_machines_alone_and_without_one_none():
    role = "arn:aws:iam::123456789012:role/training-data"

    def passing(**more: Any) -> list[dict[str, Any]]:
        policy = policies.worker_policy("123456789012", [REGION], "shoestring-123456789012-us-east-1", **more)
        return [one for one in policy["Statement"] if any(action.startswith("iam:") for action in one["Action"])]

    assert passing() == []
    (allowed,) = passing(data_role=role)
    assert (allowed["Action"], allowed["Resource"]) == (["iam:PassRole"], [role])
    assert allowed["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}


def test_bootstrap_prints_the_permission_for_the_role_in_the_profile_and_keeps_the_setting(aws: FakeAws):
    role, account = aws.make_data_role(ROLE, "images"), Aws(aws.url)

    def printed(named: str) -> bootstrap.Made:
        wanted = bootstrap.Wanted((REGION,), image=IMAGE, dry_run=True, data_role=named)
        return bootstrap.bootstrap(account, wanted, lambda _: None)

    made = printed(ROLE)
    assert made.policies["API and worker"]["Statement"][-1]["Resource"] == [role]
    assert bootstrap.environment(made, "")["SHOESTRING_EC2_DATA_ROLE"] == ROLE
    assert "SHOESTRING_EC2_DATA_ROLE" not in bootstrap.environment(printed(""), "")
    with pytest.raises(AwsError, match=r"no instance profile trainig-data\. Correct SHOESTRING_EC2_DATA_ROLE"):
        printed("trainig-data")


def test_doctor_tries_a_launch_with_the_role_and_tells_what_is_wrong_with_it(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch
):
    account = command.Account()
    monkeypatch.setattr(account, "endpoint", aws.url)

    def findings(settings: Ec2Settings) -> list[tuple[str, str, str]]:
        found = [
            *check_data_role(account.open_client, REGION, settings.data_role),
            *check_region(account.open_client, settings, REGION),
        ]
        return [(one.level, one.text, one.advice) for one in found if ROLE in one.text]

    settings = aws.settings(data_role=ROLE)
    absent, refused = findings(settings)
    assert (absent[0], absent[1]) == ("error", f"The account has no instance profile {ROLE}.")
    assert (refused[0], "make one of that name" in refused[2]) == ("error", True)
    role = aws.make_data_role(ROLE, "images")
    there, allowed = findings(settings)
    assert (there[0], role in there[1]) == ("ok", True)
    assert (allowed[0], f"role {ROLE}) is allowed" in allowed[1]) == ("ok", True)
    named = {"IamInstanceProfile.Name": ROLE}
    aws.fault("error", code="UnauthorizedOperation", status=403, message="no", parameters=named)
    assert [(level, "need iam:PassRole" in advice) for level, _, advice in findings(settings)][1] == ("error", True)
    assert findings(settings.model_copy(update={"data_role": ""})) == []
    account.endpoint = "http://127.0.0.1:1"
    assert [one.level for one in check_data_role(account.open_client, REGION, ROLE)] == ["warning"]
    assert aws.instances() == []
