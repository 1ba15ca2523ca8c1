# SPDX-License-Identifier: Apache-2.0
"""`shoestring aws doctor`: what would fail later is told before, each with what to do; nothing is launched."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from shoestring_core.exit_codes import ExitCode
from shoestring_worker.providers.ec2.account import __main__ as command
from shoestring_worker.providers.ec2.account import doctor
from shoestring_worker.providers.ec2.account.doctor import (
    check_account,
    check_agent_url,
    check_bucket,
    check_region,
    check_spot_role,
    find_home,
)
from shoestring_worker.providers.ec2.quotas import quota_of

from tests.worker.providers.fake_aws import IMAGE, OTHER_REGION, REGION, ZONE, FakeAws

QUOTAS = {
    "All G and VT Spot Instance Requests": 8.0,
    "Running On-Demand G and VT instances": 0.0,
    "All P4, P3 and P2 Spot Instance Requests": 96.0,
    "All P5 Spot Instance Requests": 192.0,
    "Running On-Demand P instances": 64.0,
    "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests": 5.0,
    "All DL Spot Instance Requests": 1.0,
    "Number of EIPs - VPC EIPs": 5.0,
}


class Quotas:
    """A client of Service Quotas, which the fake of EC2 lacks."""

    def get_paginator(self, _operation: str) -> Quotas:
        return self

    def paginate(self, **_arguments: str) -> list[dict[str, Any]]:
        return [{"Quotas": [{"QuotaName": name, "Value": value}]} for name, value in QUOTAS.items()]


@pytest.fixture
def open_client(aws: FakeAws) -> Callable[[str, str], Any]:
    account = command.Account()
    account.endpoint = aws.url

    def open_one(service: str, region: str) -> Any:
        match service:
            case "service-quotas":
                return Quotas()
            case "pricing":
                return account.open_client(service, region)
        return aws.ec2(region)

    return open_one


def told(aws: FakeAws, open_client: Callable[[str, str], Any], **changed: Any) -> dict[str, list[str]]:
    """What the checks of the region say, by level, when these fields of its settings differ."""
    settings = aws.settings(ZONE)
    region = settings.regions[REGION].model_copy(update=changed)
    found = list(check_region(open_client, settings.model_copy(update={"regions": {REGION: region}}), REGION))
    assert all(finding.advice for finding in found if finding.level != "ok")
    return {level: [one.text for one in found if one.level == level] for level in ("ok", "warning", "error")}


def test_a_region_that_is_set_up_passes_all_but_the_quota_that_is_nothing(
    aws: FakeAws, open_client: Callable[[str, str], Any]
):
    found = told(aws, open_client)
    assert any(IMAGE in text for text in found["ok"])
    assert f"subnets in {ZONE}" in found["ok"]
    assert [text for text in found["ok"] if text.startswith("a launch of ")] != []
    assert any(text.startswith("All G and VT Spot Instance Requests: 8 vCPUs, 2 ") for text in found["ok"])
    assert [text.partition(":")[0] for text in found["error"]] == ["Running On-Demand G and VT instances"]
    assert aws.instances() == [], "nothing is launched"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"image": "ami-0000dead0000dead0"}, "ami-0000dead0000dead0 is not there"),
        ({"subnets": {ZONE: "subnet-0000dead0000dead0"}}, f"set for {ZONE}, does not exist"),
    ],
)
def test_a_wrong_setting_is_told(
    aws: FakeAws, open_client: Callable[[str, str], Any], changed: dict[str, Any], says: str
):
    assert any(says in text for text in told(aws, open_client, **changed)["error"]), says


@pytest.mark.parametrize(
    ("action", "says"), [("RunInstances", "would be refused"), ("DescribeSubnets", "can't be asked")]
)
def test_a_missing_permission_is_told(aws: FakeAws, open_client: Callable[[str, str], Any], action: str, says: str):
    settings = aws.settings(ZONE)
    aws.fault("error", action, code="UnauthorizedOperation", status=403, times=9)
    texts = [one.text for one in check_region(open_client, settings, REGION) if one.level == "error"]
    assert any(says in text and "UnauthorizedOperation" in text for text in texts), texts


def test_quotas_that_can_not_be_read_are_a_warning(aws: FakeAws, open_client: Callable[[str, str], Any]):
    class Refuses(Quotas):
        def paginate(self, **_arguments: str) -> list[dict[str, Any]]:
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "ListServiceQuotas")

    found = told(
        aws, lambda service, region: Refuses() if service == "service-quotas" else open_client(service, region)
    )
    assert found["warning"] == ["The quotas can't be read: AccessDeniedException: no"]


def test_a_region_without_known_prices_is_a_warning(aws: FakeAws, open_client: Callable[[str, str], Any]):
    settings = aws.settings(f"{OTHER_REGION}a")
    found = list(check_region(open_client, settings, OTHER_REGION))
    assert [one.level for one in found] == ["ok", "ok", "warning"]


@pytest.mark.parametrize(
    ("type_", "market", "name"),
    [
        ("g5.xlarge", "spot", "All G and VT Spot Instance Requests"),
        ("g6e.12xlarge", "on_demand", "Running On-Demand G and VT instances"),
        ("p4de.24xlarge", "spot", "All P4, P3 and P2 Spot Instance Requests"),
        ("p5.48xlarge", "spot", "All P5 Spot Instance Requests"),
        ("p5.48xlarge", "on_demand", "Running On-Demand P instances"),
        ("dl1.24xlarge", "spot", "All DL Spot Instance Requests"),
        ("trn1.2xlarge", "spot", None),
    ],
)
def test_the_quota_of_a_type_is_found_by_its_name(type_: str, market: str, name: str | None):
    found = quota_of(QUOTAS, type_, market)
    assert (found and found[0]) == name


def test_a_disk_that_the_image_does_not_fit_is_told(aws: FakeAws, open_client: Callable[[str, str], Any]):
    settings = aws.settings(ZONE, disk_gib=8)
    texts = [one.text for one in check_region(open_client, settings, REGION) if one.level == "error"]
    assert f"{IMAGE} alone needs a disk of 15 GiB; SHOESTRING_EC2_DISK_GIB is 8." in texts


def test_a_bucket_is_written_and_read_and_left_as_it_was(aws: FakeAws):
    aws.s3().create_bucket(Bucket="ours")
    abroad = {"LocationConstraint": OTHER_REGION}
    aws.s3(OTHER_REGION).create_bucket(Bucket="abroad", CreateBucketConfiguration=abroad)

    def check(store: str) -> tuple[str, str]:
        (found,) = check_bucket(lambda _, region: aws.s3(region), REGION, store, [REGION])
        return found.level, found.text

    assert check("") == ("ok", "none: checkpoints go through the service")
    assert check("s3://ours/checkpoints") == ("ok", f"ours in {REGION} can be written and read")
    assert aws.s3().list_objects_v2(Bucket="ours")["KeyCount"] == 0
    level, text = check("s3://abroad")
    assert (level, f"abroad is in {OTHER_REGION}" in text) == ("warning", True)
    level, text = check("s3://nobodys")
    assert (level, "NoSuchBucket" in text) == ("error", True)
    aws.fault("error", "PutObject", code="AccessDenied", status=403)
    level, text = check("s3://ours")
    assert (level, "AccessDenied" in text) == ("error", True)


def test_a_bucket_whose_key_these_credentials_may_not_use_is_told_with_what_to_allow(aws: FakeAws):
    aws.s3().create_bucket(Bucket="ours")
    message = "User: us is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:x"
    aws.fault("error", "PutObject", code="AccessDenied", status=403, message=message)
    (found,) = check_bucket(lambda _, region: aws.s3(region), REGION, "s3://ours", [REGION])
    assert (found.level, "kms:GenerateDataKey" in found.advice) == ("error", True)


@pytest.mark.parametrize("code", ["OptInRequired", "AuthFailure"])
def test_a_region_that_the_account_has_not_enabled_is_told_with_what_to_do(
    aws: FakeAws, open_client: Callable[[str, str], Any], code: str
):
    aws.fault("error", "DescribeImages", code=code, status=403)
    (found,) = check_region(open_client, aws.settings(ZONE), REGION)
    assert (found.level, "SHOESTRING_EC2_REGIONS" in found.advice) == ("error", True)


class Sts:
    """AWS's clock, or its refusal."""

    def __init__(self, at: datetime, code: str = "", message: str = "") -> None:
        self.at, self.error = at, {"Error": {"Code": code, "Message": message}}

    def get_caller_identity(self) -> dict[str, Any]:
        if self.error["Error"]["Code"]:
            raise ClientError(self.error, "GetCallerIdentity")
        date = self.at.strftime("%a, %d %b %Y %H:%M:%S GMT")
        return {"Account": "1", "Arn": "arn:x", "ResponseMetadata": {"HTTPHeaders": {"date": date}}}


def _same(client: Any, _service: str, _region: str) -> Any:
    return client


@pytest.mark.parametrize(
    ("off_s", "level", "said"),
    [
        (0, "ok", ""),
        (200, "ok", ""),
        (600, "error", "10 minutes ahead"),
        (-600, "error", "10 minutes behind"),
        (-86_400, "error", "24 hours behind"),
    ],
)
def test_a_clock_that_is_off_is_told(off_s: int, level: str, said: str):
    now = datetime(2026, 11, 28, tzinfo=UTC)
    credentials, clock = check_account(partial(_same, Sts(now - timedelta(seconds=off_s))), REGION, now)
    assert (credentials.level, clock.level) == ("ok", level)
    assert said in clock.text


def test_refused_credentials_are_told_and_a_signature_that_is_too_old_names_the_clock():
    now = datetime(2026, 11, 28, tzinfo=UTC)
    for code, message, advice in (
        ("InvalidClientTokenId", "The security token is invalid", "AWS_PROFILE"),
        ("SignatureDoesNotMatch", "Signature expired: …", "clock"),
    ):
        sts = Sts(now, code, message)
        (finding,) = check_account(partial(_same, sts), REGION, now)
        assert (finding.level, advice in finding.advice) == ("error", True)


def test_a_home_region_that_is_silent_or_disabled_is_told_and_another_knows_the_credentials():
    now = datetime(2026, 11, 28, tzinfo=UTC)

    def open_one(_service: str, region: str) -> Any:
        if region == "af-south-1":
            raise EndpointConnectionError(endpoint_url="https://sts.af-south-1.amazonaws.com")
        return Sts(now, "InvalidClientTokenId" if region == "ap-east-1" else "")

    homes = ["ap-east-1", "af-south-1", REGION, OTHER_REGION]
    home, found = find_home(open_one, homes, lambda: now)
    assert (home, [(one.level, one.subject) for one in found]) == (
        REGION,
        [("warning", "ap-east-1"), ("warning", "af-south-1"), ("ok", "credentials"), ("ok", "clock")],
    )
    assert "AWS_DEFAULT_REGION" in found[0].advice
    home, found = find_home(open_one, homes[:2], lambda: now)
    assert (home, [(one.level, one.subject) for one in found]) == (None, [("error", "credentials")])


def test_a_clock_that_is_off_is_told_once_and_no_other_region_is_asked():
    now, asked = datetime(2026, 11, 28, tzinfo=UTC), []

    def open_one(_service: str, region: str) -> Any:
        asked.append(region)
        return Sts(now, "SignatureDoesNotMatch", "Signature expired: …")

    home, (found,) = find_home(open_one, [REGION, OTHER_REGION], lambda: now)
    assert (home, asked, "clock" in found.advice) == (None, [REGION], True)


def test_configured_regions_are_checked_though_the_home_region_does_not_answer(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SHOESTRING_EC2_ENDPOINT_URL", aws.url)
    monkeypatch.setenv("SHOESTRING_EC2_SIMULATED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "me-south-1")
    monkeypatch.setattr(doctor, "_check_quotas", lambda *_: iter(()))
    there = {region: {"image": IMAGE, "subnets": {f"{region}a": aws.subnet(f"{region}a")}} for region in
             (REGION, OTHER_REGION)}  # fmt: skip
    monkeypatch.setenv("SHOESTRING_EC2_REGIONS", json.dumps(there))
    open_one = command.Account.open_client
    silent = {"me-south-1", OTHER_REGION}

    def open_client(account: command.Account, service: str, region: str) -> Any:
        if region in silent:
            raise EndpointConnectionError(endpoint_url=f"https://{service}.{region}.amazonaws.com")
        return open_one(account, service, region)

    monkeypatch.setattr(command.Account, "open_client", open_client)
    command.Account().open_client("iam", REGION).create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    assert command.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {(one["level"], one["subject"]) for one in found if one["level"] != "ok"} == {
        ("warning", "me-south-1"),
        ("error", OTHER_REGION),
    }
    assert any(one["subject"] == REGION and "is allowed" in one["text"] for one in found)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("AWS_PROFILE", "trainig", "The config profile (trainig) could not be found. Correct AWS_PROFILE"),
        ("AWS_CONFIG_FILE", "broken", "Unable to parse config file"),
        ("SHOESTRING_EC2_ENDPOINT_URL", "localhost:5000", "SHOESTRING_EC2_ENDPOINT_URL: "),
    ],
)
@pytest.mark.parametrize("verb", ["doctor", "panic"])
def test_a_setting_of_aws_that_can_not_be_read_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    verb: str, variable: str, value: str, said: str,
):  # fmt: skip
    (tmp_path / "broken").write_text("[default\nregion")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, value)
    assert command.main([verb]) in (ExitCode.AUTH, ExitCode.USAGE)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("https://train.example.org", "ok"),
        ("http://train.example.org", "error"),
        ("https://127.0.0.1:8000", "error"),
        ("https://localhost", "error"),
        ("", "warning"),  # before `aws up` there is none
    ],
)
def test_a_service_url_that_machines_can_not_use_is_told(url: str, level: str):
    assert check_agent_url(url, simulated=False, resolve=lambda _: ["203.0.114.7"]).level == level
    assert check_agent_url(url or "http://127.0.0.1:8000", simulated=True).level == "ok"


def test_a_service_url_without_an_address_or_with_a_private_one_is_told():
    def resolve(_host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    url = "https://train.example.org"
    assert "has no address: Name or service not known" in check_agent_url(url, simulated=False, resolve=resolve).text
    for private in ("10.0.0.7", "192.168.1.2", "fe80::1%eth0"):
        found = check_agent_url(url, simulated=False, resolve=lambda _, private=private: ["203.0.114.7", private])
        assert (found.level, private in found.text) == ("error", True)


def test_an_account_without_the_role_for_spot_machines_is_told(aws: FakeAws):
    account = command.Account()
    account.endpoint = aws.url
    assert check_spot_role(account.open_client, REGION).level == "error"
    account.open_client("iam", REGION).create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    assert check_spot_role(account.open_client, REGION).level == "ok"
    account.endpoint = "http://127.0.0.1:1"
    assert check_spot_role(account.open_client, REGION).level == "warning"


def test_the_command_without_settings_says_which_and_fails(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SHOESTRING_EC2_ENDPOINT_URL", aws.url)
    assert command.main(["doctor"]) == 1
    assert "SHOESTRING_EC2_REGIONS" in capsys.readouterr().out
    monkeypatch.setenv("SHOESTRING_EC2_REGIONS", "{us-east-1: {image: ami-1}}")
    assert command.main(["up"]) == ExitCode.USAGE
    assert "SHOESTRING_EC2_REGIONS is not JSON" in capsys.readouterr().err
    regions = {REGION: {"image": IMAGE, "subnets": {ZONE: aws.subnet()}}}
    monkeypatch.setenv("SHOESTRING_EC2_REGIONS", json.dumps(regions))
    monkeypatch.setenv("SHOESTRING_EC2_SIMULATED", "true")
    monkeypatch.setattr(doctor, "_check_quotas", lambda *_: iter(()))
    command.Account().open_client("iam", REGION).create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    assert command.main(["doctor", "--json"]) == ExitCode.OK
    assert {one["level"] for one in json.loads(capsys.readouterr().out)} == {"ok"}
