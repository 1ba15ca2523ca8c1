# SPDX-License-Identifier: Apache-2.0
"""`shoestring aws` against the fake: what it makes, finds, ends and removes, wherever it is stopped."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from shoestring_worker.providers.ec2.account import __main__ as command
from shoestring_worker.providers.ec2.account import inventory, removal, teardown
from shoestring_worker.providers.ec2.account.aws import Aws, AwsError
from shoestring_worker.providers.ec2.account.bootstrap import Made, Wanted, bootstrap

from tests.worker.providers.fake_aws import IMAGE, OTHER_REGION, REGION, ZONE, FakeAws

WANTED = Wanted((REGION,), "me@example.org", image=IMAGE)
FOREIGN_BUCKET = "shoestring-website"


def silent(_message: str) -> None:
    """Nobody reads along."""


class Killed(BaseException):
    """As by kill -9: nothing of ours handles it."""


class StoppedAfter(Aws):
    """Dies with its first call that changes something, once that has taken effect."""

    def write(self, *where: str, **arguments: Any) -> dict[str, Any]:
        super().write(*where, **arguments)
        raise Killed


class WithoutRightsThere(Aws):
    """As with the printed policies, which allow nothing of somebody else's bucket."""

    def read(self, *where: str, **arguments: Any) -> dict[str, Any]:
        if arguments.get("Bucket") == FOREIGN_BUCKET:
            raise AwsError("s3 refused it", "AccessDenied")
        return super().read(*where, **arguments)


@functools.cache
def account_of(url: str) -> Aws:
    """Shared: its clients take longer to make than a call."""
    return Aws(url)


@functools.cache
def stopped_account_of(url: str) -> StoppedAfter:
    """Shared, as `account_of` is."""
    return StoppedAfter(url)


def tables(aws: FakeAws) -> dict[str, Any]:
    """What the account has, in two regions, by boto3 alone; without the ids, which differ each time."""
    account = account_of(aws.url)
    of_regions = {}
    for region in (REGION, OTHER_REGION):
        ec2 = aws.ec2(region)
        of_regions[region] = {
            "vpcs": sorted(each["CidrBlock"] for each in ec2.describe_vpcs()["Vpcs"]),
            "subnets": sorted(
                (each["CidrBlock"], each["AvailabilityZone"]) for each in ec2.describe_subnets()["Subnets"]
            ),
            "gateways": [len(each["Attachments"]) for each in ec2.describe_internet_gateways()["InternetGateways"]],
            "routes": sorted(
                len(each["Routes"]) for each in ec2.describe_route_tables()["RouteTables"]
            ),
            "groups": sorted(
                (each["GroupName"], len(each["IpPermissions"]))
                for each in ec2.describe_security_groups()["SecurityGroups"]
            ),
            "endpoints": [
                each["ServiceName"]
                for each in ec2.describe_vpc_endpoints()["VpcEndpoints"]
                if each["State"] not in ("deleting", "deleted")
            ],
            "instances": len(aws.instances(region)),
            "volumes": len(ec2.describe_volumes()["Volumes"]),
            "addresses": len(ec2.describe_addresses()["Addresses"]),
        }  # fmt: skip
    buckets = [each["Name"] for each in aws.s3().list_buckets()["Buckets"]]
    return of_regions | {
        "buckets": {name: aws.s3().list_objects_v2(Bucket=name)["KeyCount"] for name in buckets},
        "roles": [each["RoleName"] for each in account.read_all("iam", REGION, "list_roles", "Roles")],
        "profiles": [
            each["InstanceProfileName"]
            for each in account.read_all("iam", REGION, "list_instance_profiles", "InstanceProfiles")
        ],
        "budgets": [
            each["BudgetName"]
            for each in account.read_all("budgets", REGION, "describe_budgets", "Budgets", AccountId="123456789012")
        ],
    }


def run_bootstrap(aws: Aws) -> Made:
    return bootstrap(aws, WANTED, silent)


def run_teardown(aws: Aws) -> None:
    assert teardown.teardown(aws, teardown.find(aws).things, silent, sleep=lambda _: None) == {}


def killed_again_and_again(verb: Callable[[Aws], Any], url: str) -> int:
    """Run a verb, which is killed after its first change, until it has none left to make; returns how often."""
    stopped = stopped_account_of(url)
    for kills in range(100):
        try:
            verb(stopped)
        except Killed:
            continue
        return kills
    raise AssertionError("it never ends")


def changes(aws: FakeAws) -> int:
    """Calls so far that may have changed something."""
    reads = ("Describe", "List", "Get", "Head")
    return sum(not call["action"].startswith(reads) for call in aws.read("calls"))


def test_each_verb_run_twice_changes_nothing(aws: FakeAws):
    account = account_of(aws.url)
    made = run_bootstrap(account)
    after, calls = tables(aws), changes(aws)
    again = run_bootstrap(account)
    assert (again.created, again.settings, again.bucket) == (0, made.settings, made.bucket)
    assert (tables(aws), changes(aws)) == (after, calls)
    run_teardown(account)
    calls = changes(aws)
    run_teardown(account)
    assert changes(aws) == calls


def test_a_dry_run_tells_each_step_and_changes_nothing(aws: FakeAws):
    before, told = tables(aws), list[str]()
    made = bootstrap(stopped_account_of(aws.url), Wanted((REGION,), "me@example.org", dry_run=True), told.append)
    assert tables(aws) == before
    created = run_bootstrap(account_of(aws.url)).created
    assert made.created == created == sum(step.startswith("to create") for step in told)
    for policy in made.policies.values():
        assert len(json.dumps(policy, separators=(",", ":"))) <= 6_144, "IAM takes no longer managed policy"


def test_killed_after_each_of_its_calls_and_run_again_bootstrap_and_teardown_end_the_same(aws: FakeAws):
    before = tables(aws)
    calls = changes(aws)
    steps = killed_again_and_again(run_bootstrap, aws.url)
    whole = tables(aws)
    assert changes(aws) - calls == steps, "nothing is made twice"
    # a group takes its rules with it, a VPC its route, a bucket what was said of it
    assert killed_again_and_again(run_teardown, aws.url) == steps - 6
    assert tables(aws) == before
    run_bootstrap(account_of(aws.url))
    assert tables(aws) == whole
    run_teardown(account_of(aws.url))
    assert tables(aws) == before


def gateway_of_its_vpc(aws: FakeAws, made: Made) -> tuple[str, str]:
    """Of bootstrap's subnets: the gateway of their VPC, and the one that their route leads to."""
    ec2 = aws.ec2()
    (subnet, *_) = ec2.describe_subnets(SubnetIds=list(made.settings[REGION]["subnets"].values()))["Subnets"]
    attached = [{"Name": "attachment.vpc-id", "Values": [subnet["VpcId"]]}]
    (gateway,) = ec2.describe_internet_gateways(Filters=attached)["InternetGateways"]
    of_vpc = [{"Name": "vpc-id", "Values": [subnet["VpcId"]]}, {"Name": "association.main", "Values": ["true"]}]
    (table,) = ec2.describe_route_tables(Filters=of_vpc)["RouteTables"]
    (route,) = [each for each in table["Routes"] if each.get("DestinationCidrBlock") == "0.0.0.0/0"]
    return gateway["InternetGatewayId"], route["GatewayId"]


def test_a_route_to_a_gateway_that_is_gone_leads_to_the_new_one(aws: FakeAws):
    gateway, _ = gateway_of_its_vpc(aws, run_bootstrap(account_of(aws.url)))
    removed = inventory.Thing(REGION, "internet gateway", gateway)
    assert removal.remove_all(account_of(aws.url), [removed]) == {}  # by a teardown that was killed then
    new, routed = gateway_of_its_vpc(aws, run_bootstrap(account_of(aws.url)))
    assert new == routed != gateway


def test_each_of_two_networks_that_were_made_at_once_has_its_own_gateway(aws: FakeAws):
    ec2, tags = aws.ec2(), [{"Key": "shoestring-account", "Value": "bootstrap"}]

    def make(kind: str, method: str, key: str, **arguments: str) -> str:
        tagged = [{"ResourceType": kind, "Tags": tags}]
        return str(getattr(ec2, method)(TagSpecifications=tagged, **arguments)[key][f"{key}Id"])

    vpcs = sorted(make("vpc", "create_vpc", "Vpc", CidrBlock="10.83.0.0/16") for _ in range(2))
    gateways = sorted(make("internet-gateway", "create_internet_gateway", "InternetGateway") for _ in range(2))
    for vpc, gateway in zip(vpcs, reversed(gateways), strict=True):
        ec2.attach_internet_gateway(VpcId=vpc, InternetGatewayId=gateway)
    made = run_bootstrap(account_of(aws.url))
    assert gateway_of_its_vpc(aws, made) == (gateways[1], gateways[1])
    assert run_bootstrap(account_of(aws.url)).settings == made.settings
    run_teardown(account_of(aws.url))
    left = {each["VpcId"] for each in ec2.describe_vpcs()["Vpcs"]}
    assert left & set(vpcs) == set()


def test_the_bucket_is_private_and_forgets_aborted_uploads_and_only_the_gang_reaches_its_machines(aws: FakeAws):
    made = run_bootstrap(account_of(aws.url))
    s3 = aws.s3()
    blocked = s3.get_public_access_block(Bucket=made.bucket)["PublicAccessBlockConfiguration"]
    assert len(blocked) == 4
    assert all(blocked.values())
    (rule,) = s3.get_bucket_lifecycle_configuration(Bucket=made.bucket)["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    groups = made.settings[REGION]["security_groups"]
    (group,) = aws.ec2().describe_security_groups(GroupIds=groups)["SecurityGroups"]
    (permission,) = group["IpPermissions"]
    assert (permission["IpRanges"], [pair["GroupId"] for pair in permission["UserIdGroupPairs"]]) == ([], groups)


def test_a_quota_that_is_used_up_is_told_with_what_to_do(aws: FakeAws):
    for action, method, code in (
        ("CreateVpc", "create_vpc", "VpcLimitExceeded"),
        ("AllocateAddress", "allocate_address", "AddressLimitExceeded"),
        ("RunInstances", "run_instances", "VcpuLimitExceeded"),
    ):
        aws.fault("error", action, code=code, status=400)
        arguments = {"CidrBlock": "10.83.0.0/16"} if method == "create_vpc" else {}
        arguments |= {"MinCount": 1, "MaxCount": 1} if method == "run_instances" else {}
        with pytest.raises(AwsError, match=f"{code}: .*quota"):
            account_of(aws.url).write("ec2", REGION, method, **arguments)


@pytest.mark.parametrize("code", ["AuthFailure", "SignatureDoesNotMatch", "RequestExpired"])
@pytest.mark.parametrize(("off_s", "said"), [(86_400, "24 hours ahead of AWS's"), (-86_400, "24 hours behind AWS's")])
@pytest.mark.parametrize("verb", [run_bootstrap, teardown.find])
def test_a_clock_that_is_a_day_off_is_named_before_anything_is_made_or_removed(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch, verb: Callable[[Aws], Any], off_s: int, said: str, code: str
):
    for action in ("DescribeVpcs", "DescribeSpotInstanceRequests", "DescribeRegions"):
        aws.fault("error", action, code=code, status=403, times=9)
    now, calls = time.time() + off_s, changes(aws)
    monkeypatch.setattr(time, "time", lambda: now)
    with pytest.raises(AwsError, match=f"{code}: planned The clock of the service's computer is {said}: set it"):
        verb(account_of(aws.url))
    assert changes(aws) == calls


def test_a_bucket_that_someone_else_filled_is_not_touched(aws: FakeAws):
    name = f"shoestring-123456789012-{REGION}"
    aws.s3().create_bucket(Bucket=name)
    aws.s3().put_object(Bucket=name, Key="theirs", Body=b"theirs")
    with pytest.raises(AwsError, match="was not made by this command"):
        run_bootstrap(account_of(aws.url))
    run_teardown(account_of(aws.url))
    assert tables(aws)["buckets"] == {name: 1}


def test_a_bucket_that_bootstrap_was_killed_before_it_tagged_is_removed(aws: FakeAws):
    aws.s3().create_bucket(Bucket=f"shoestring-123456789012-{REGION}")
    aws.s3().create_bucket(Bucket="shoestring-123456789012-website")
    run_teardown(account_of(aws.url))
    assert tables(aws)["buckets"] == {"shoestring-123456789012-website": 0}


def test_teardown_deletes_all_versions_and_says_what_to_do_about_those_that_a_lock_keeps(aws: FakeAws):
    name, s3, account = f"shoestring-123456789012-{REGION}", aws.s3(), account_of(aws.url)
    s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)  # which turns on versions, too
    s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": [{"Key": "shoestring-account", "Value": "bootstrap"}]})
    for body in (b"1", b"2"):
        s3.put_object(Bucket=name, Key="rewritten", Body=body)
    s3.delete_object(Bucket=name, Key="rewritten")
    lock = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": datetime(2100, 1, 1, tzinfo=UTC)}
    locked = s3.put_object(Bucket=name, Key="locked", Body=b"3", **lock)["VersionId"]
    ((thing, why),) = teardown.teardown(account, teardown.find(account).things, silent, sleep=lambda _: None).items()
    assert name in thing
    assert "1 version of objects can't be deleted, such as locked: AccessDenied" in why
    assert "s3:BypassGovernanceRetention" in why
    assert [one["VersionId"] for one in s3.list_object_versions(Bucket=name)["Versions"]] == [locked]
    s3.delete_object(Bucket=name, Key="locked", VersionId=locked, BypassGovernanceRetention=True)
    run_teardown(account)
    assert tables(aws)["buckets"] == {}


@pytest.mark.parametrize(
    ("code", "account_stays"), [("Unavailable", True), ("UnauthorizedOperation", False), ("OptInRequired", False)]
)
def test_a_region_that_can_not_be_listed_is_told_and_keeps_no_other_from_being_removed(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, account_stays: bool
):
    monkeypatch.setenv("SHOESTRING_EC2_ENDPOINT_URL", aws.url)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    before = tables(aws)
    run_bootstrap(account_of(aws.url))
    made = tables(aws)
    aws.fault("error", "DescribeInstances", region=OTHER_REGION, code=code, status=503, times=3)
    assert command.main(["teardown", "--yes"]) == 1
    said = capsys.readouterr().err
    assert f"Error: left: all in {OTHER_REGION}: it can't be listed: ec2 in {OTHER_REGION} refused" in said
    assert (f"it stays until {OTHER_REGION} can be listed" in said) == account_stays
    assert tables(aws)[REGION] == before[REGION]
    assert tables(aws)["buckets"] == (made if account_stays else before)["buckets"]


def test_what_a_machine_used_is_tried_again_until_it_is_free_and_told_if_it_never_is(aws: FakeAws):
    account, ec2, waited = account_of(aws.url), aws.ec2(), list[float]()
    tags = [{"ResourceType": "volume", "Tags": [{"Key": "shoestring", "Value": "us"}]}]
    for times, left in ((2, 0), (99, 1)):
        ec2.create_volume(AvailabilityZone=ZONE, Size=8, TagSpecifications=tags)
        aws.fault("error", "DeleteVolume", code="VolumeInUse", status=400, times=times)
        now = iter(range(10_000))
        failed = teardown.teardown(
            account,
            teardown.find(account).things,
            silent,
            monotonic=lambda now=now: float(next(now)),
            sleep=waited.append,
        )
        assert (len(failed), "VolumeInUse" in str(failed), tables(aws)[REGION]["volumes"]) == (left, left > 0, left)
    assert len(waited) < 100


def test_teardown_lists_images_snapshots_and_addresses_and_leaves_foreign_ones(aws: FakeAws):
    ec2, tags = aws.ec2(), [{"Key": "shoestring-account", "Value": "bootstrap"}]
    for ours in (tags, []):
        specification = {"TagSpecifications": [{"ResourceType": "elastic-ip", "Tags": ours}]} if ours else {}
        ec2.allocate_address(Domain="vpc", **specification)
        volume = ec2.create_volume(AvailabilityZone=ZONE, Size=8)["VolumeId"]
        snapshot = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        if ours:
            ec2.create_tags(Resources=[volume, snapshot], Tags=ours)
    account = account_of(aws.url)
    assert {thing.kind for thing in teardown.find(account).things} == {"address", "volume", "snapshot"}
    run_teardown(account)
    assert [tables(aws)[REGION][kind] for kind in ("volumes", "addresses")] == [1, 1]
    assert inventory.images(account, REGION) == []


def test_a_bucket_whose_name_begins_like_ours_keeps_nothing_from_being_removed(aws: FakeAws):
    aws.s3().create_bucket(Bucket=FOREIGN_BUCKET)
    account = WithoutRightsThere(aws.url)
    run_bootstrap(account)
    run_teardown(account)
    assert tables(aws)["buckets"] == {FOREIGN_BUCKET: 0}
