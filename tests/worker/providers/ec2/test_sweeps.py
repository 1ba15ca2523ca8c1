# SPDX-License-Identifier: Apache-2.0
"""Nothing of ours stays at EC2 without a row, in whatever region, of whatever kind; what isn't ours is left alone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pytest
from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import S
from shoestring_core.store import jobs
from shoestring_core.store.fleet import leaks
from shoestring_core.store.tables import LeakRow
from shoestring_worker.providers.base import OutcomeUnknown
from shoestring_worker.providers.ec2.provider import Ec2Provider
from sqlalchemy import select

from tests.servers import PATIENCE_S
from tests.worker.conftest import World
from tests.worker.providers.fake_aws import IMAGE, OTHER_REGION, REGION, ZONE, FakeAws, launch_request

REGIONS = (REGION, OTHER_REGION, "us-west-2")
OTHER_ZONE = f"{OTHER_REGION}a"


class TwoRegions(Ec2Provider):
    """Offers in the second region what there is in the first, a little dearer."""

    def offers(self, requirements: Collection[Requirements]) -> list[Offer]:
        here = [offer for offer in super().offers(requirements) if offer.market == "spot"]
        return [*here, *(replace(offer, region=OTHER_REGION, zone=OTHER_ZONE, price="0.42") for offer in here)]


@pytest.fixture
def ec2_world(make_world: Callable[..., World], aws: FakeAws) -> World:
    world = make_world("ec2")
    aws.control("prices", **{ZONE: {"g5.xlarge": "0.41"}})
    world.control_loop = world.another_control_loop(ec2=aws.provider())
    return world


def tags(kind: str, deployment: str) -> list[dict[str, Any]]:
    ours = [{"Key": DEPLOYMENT_TAG, "Value": deployment}, {"Key": PROVIDER_TAG, "Value": "ec2"}]
    return [{"ResourceType": kind, "Tags": ours}]


def plant(aws: FakeAws, region: str, deployment: str) -> list[str]:
    """Half a gang and one of each kind that the sweep knows; returns their ids."""
    ec2, zone = aws.ec2(region), f"{region}a"
    provider = aws.provider(zone)
    gang = [provider.launch(launch_request(f"{deployment}-{zone}-{slot}", deployment, zone)).id for slot in (0, 2)]
    volume = ec2.create_volume(AvailabilityZone=zone, Size=100, TagSpecifications=tags("volume", deployment))
    interface = ec2.create_network_interface(
        SubnetId=ec2.describe_subnets()["Subnets"][0]["SubnetId"],
        TagSpecifications=tags("network-interface", deployment),
    )["NetworkInterface"]["NetworkInterfaceId"]
    address = ec2.allocate_address(Domain="vpc", TagSpecifications=tags("elastic-ip", deployment))
    asked = ec2.request_spot_instances(TagSpecifications=tags("spot-instances-request", deployment))
    request = asked["SpotInstanceRequests"][0]["SpotInstanceRequestId"]
    group = f"{deployment}-{region}"
    ec2.create_placement_group(
        GroupName=group, Strategy="cluster", TagSpecifications=tags("placement-group", deployment)
    )
    return [*gang, volume["VolumeId"], interface, address["AllocationId"], request, group]


def there(aws: FakeAws, region: str) -> set[str]:
    """What of the kinds that are planted has not ended in a region, by boto3 alone."""
    ec2 = aws.ec2(region)
    active = [{"Name": "state", "Values": ["open", "active"]}]
    return {
        *(instance["InstanceId"] for instance in aws.instances(region)),
        *(volume["VolumeId"] for volume in ec2.describe_volumes()["Volumes"]),
        *(interface["NetworkInterfaceId"] for interface in ec2.describe_network_interfaces()["NetworkInterfaces"]),
        *(address["AllocationId"] for address in ec2.describe_addresses()["Addresses"]),
        *(
            request["SpotInstanceRequestId"]
            for request in ec2.describe_spot_instance_requests(Filters=active)["SpotInstanceRequests"]
        ),
        *(group["GroupName"] for group in ec2.describe_placement_groups()["PlacementGroups"]),
    }


@pytest.mark.any_database
def test_orphans_in_three_regions_are_gone_after_two_sweeps_and_what_is_not_ours_is_untouched(
    ec2_world: World, aws: FakeAws
):
    planted = {region: plant(aws, region, ec2_world.control_loop.deployment) for region in REGIONS}
    mine = {region: there(aws, region) for region in REGIONS}
    for region in REGIONS:
        plant(aws, region, "another")
        aws.ec2(region).run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)
        aws.ec2(region).create_volume(AvailabilityZone=f"{region}b", Size=8)
        aws.ec2(region).allocate_address(Domain="vpc")
        subnet = aws.ec2(region).describe_subnets()["Subnets"][0]["SubnetId"]
        aws.ec2(region).create_network_interface(SubnetId=subnet)
    foreign = {region: there(aws, region) - mine[region] for region in REGIONS}
    ec2_world.tick(1)
    for region in REGIONS:
        assert set(planted[region][:2]) & there(aws, region) == set(), "machines end in the first sweep"
        assert set(planted[region][2:]) <= there(aws, region), "the rest waits for the second"
    ec2_world.tick(3_600)
    assert {region: there(aws, region) for region in REGIONS} == foreign
    ec2_world.tick(30)
    with ec2_world.store.read() as db:
        found = db.sql.scalars(select(LeakRow)).all()
        assert {row.provider_id for row in found} == {id_ for ids in planted.values() for id_ in ids[:-1]}, "it is free"
        assert [row.provider_id for row in found if row.ended_at is None] == []
        assert leaks.leaked(db) > 0


def test_a_region_that_does_not_answer_hides_no_other(ec2_world: World, aws: FakeAws):
    deployment = ec2_world.control_loop.deployment
    strays = {region: aws.provider(f"{region}a").launch(launch_request(region, deployment, f"{region}a")).id
              for region in REGIONS}  # fmt: skip
    aws.fault("error", "DescribeInstances", region=REGION)
    ec2_world.tick(1)
    assert {region: strays[region] in there(aws, region) for region in REGIONS} == {
        REGION: True, OTHER_REGION: False, "us-west-2": False,
    }  # fmt: skip
    ec2_world.tick(10)
    assert strays[REGION] not in there(aws, REGION)


OF_A_REGION = ("DescribeSpotPriceHistory", "DescribeInstanceTypes", "DescribeInstances", "DescribeRegions")


@pytest.mark.any_database
@pytest.mark.parametrize("code", ["OptInRequired", "AuthFailure", "Unavailable"])
def test_while_a_region_is_disabled_or_down_for_an_hour_the_others_are_offered_swept_and_launched_in(
    ec2_world: World, aws: FakeAws, caplog: pytest.LogCaptureFixture, code: str
):
    aws.control("prices", **{zone: {"g5.xlarge": "0.41"} for zone in (ZONE, OTHER_ZONE)})
    aws.control("on-demand", **{OTHER_REGION: {"g5.xlarge": "1.1"}})
    for action in OF_A_REGION:
        aws.fault("error", action, region=OTHER_REGION, code=code, status=503, times=1_000)
    provider = aws.provider(OTHER_ZONE, ZONE, monotonic=lambda: ec2_world.clock.now / S)
    ec2_world.control_loop = ec2_world.another_control_loop(ec2=provider)
    stray = aws.provider("us-west-2a").launch(launch_request("x", ec2_world.control_loop.deployment, "us-west-2a")).id
    job = ec2_world.submit(provider="ec2")
    for seconds in (1, 9, 700, 1_400, 1_400):
        ec2_world.tick(seconds)
        ec2_world.report(job)
    assert stray not in there(aws, "us-west-2"), "all enabled regions are known"
    assert {machine.region for machine in ec2_world.machines(job)} == {REGION}
    assert {offer.region for offer in provider.offers(())} == {REGION}
    told = next(line for line in caplog.messages if "the spot prices of eu-west-1 can't be read" in line)
    assert ("SHOESTRING_EC2_REGIONS" in told) == (code != "Unavailable")


@pytest.mark.any_database
def test_a_quota_of_nothing_in_one_region_keeps_no_job_from_another(ec2_world: World, aws: FakeAws):
    aws.control("prices", **{ZONE: {"g5.xlarge": "0.41"}, OTHER_ZONE: {"g5.xlarge": "0.60"}})
    aws.control("on-demand", **{OTHER_REGION: {"g5.xlarge": "1.1"}})
    names = ("All G and VT Spot Instance Requests", "Running On-Demand G and VT instances")
    aws.control("quotas", **{REGION: dict.fromkeys(names, 0.0), OTHER_REGION: dict.fromkeys(names, 8.0)})
    ec2_world.control_loop = ec2_world.another_control_loop(ec2=aws.provider(ZONE, OTHER_ZONE))
    job = ec2_world.submit(provider="ec2")
    for _ in range(2):
        ec2_world.tick(5)
    assert {machine.region for machine in ec2_world.machines(job)} == {OTHER_REGION}


def test_a_region_that_falls_silent_is_offered_until_its_prices_are_old_and_again_once_it_answers(aws: FakeAws):
    aws.control("prices", **{zone: {"g5.xlarge": "0.41"} for zone in (ZONE, OTHER_ZONE)})
    aws.control("on-demand", **{OTHER_REGION: {"g5.xlarge": "1.1"}})
    now = 0.0
    provider = aws.provider(ZONE, OTHER_ZONE, monotonic=lambda: now)

    def regions() -> set[str]:
        return {offer.region for offer in provider.offers(())}

    assert regions() == {REGION, OTHER_REGION}
    aws.fault("error", "DescribeSpotPriceHistory", region=OTHER_REGION, times=2)
    now = 310.0
    assert regions() == {REGION, OTHER_REGION}
    now = 370.0
    assert regions() == {REGION}
    now = 405.0
    assert regions() == {REGION, OTHER_REGION}


@pytest.mark.parametrize(
    ("lost", "listed_late", "seconds", "expected"),
    [
        ("lost_reply", 0, 5, [1, 0]),
        ("lost_reply", 1, 5, [1, 0]),  # its repetition was refused, but the first call had launched it
        ("lost_request", 0, 70, [0, 1]),  # nothing was launched: after the launch window the other region has it
    ],
)
def test_a_failover_to_another_region_after_a_lost_call_buys_one_machine(
    ec2_world: World, aws: FakeAws, lost: str, listed_late: int, seconds: int, expected: list[int]
):
    monotonic = lambda: ec2_world.clock.now / S  # noqa: E731
    provider = TwoRegions("ec2", aws.settings(ZONE, OTHER_ZONE), monotonic=monotonic, read_timeout_s=PATIENCE_S)
    ec2_world.control_loop = ec2_world.another_control_loop(ec2=provider)
    aws.control("listing-lag", listings=listed_late)
    aws.fault(lost, region=REGION)
    aws.fault("error", region=REGION, code="InsufficientInstanceCapacity", times=100)
    job = ec2_world.submit(provider="ec2")
    for _ in range(seconds // 5):
        ec2_world.tick(1)
        ec2_world.tick(4)
    assert [len(aws.instances(region)) for region in (REGION, OTHER_REGION)] == expected
    (alive,) = ec2_world.alive(job)
    assert alive.region == (REGION, OTHER_REGION)[expected.index(1)]


def test_regions_without_machines_are_asked_for_seldom_and_a_quiet_one_each_30_s(ec2_world: World, aws: FakeAws):
    ec2_world.tick(1)
    swept = len(aws.calls("DescribeInstances"))
    assert swept == len(REGIONS)
    for seconds, regions in ((10, 0), (289, 0), (10, 1), (3_291, 3)):
        ec2_world.tick(seconds)
        assert len(aws.calls("DescribeInstances")) - swept == regions
        swept += regions


@pytest.mark.any_database
def test_a_machine_that_lost_its_tags_trains_on_while_it_reports_and_is_ended_if_it_gets_them_back(
    ec2_world: World, aws: FakeAws
):
    job = ec2_world.submit(provider="ec2")
    for _ in range(2):
        ec2_world.tick(1)
    ec2_world.form(job)
    (machine,) = ec2_world.alive(job)
    aws.ec2().delete_tags(Resources=[machine.provider_id], Tags=[{"Key": DEPLOYMENT_TAG}])
    for _ in range(15):
        ec2_world.report(job)
        ec2_world.tick(25)
    assert [(row.id, row.state) for row in ec2_world.machines(job)] == [(machine.id, "running")]
    ec2_world.store.write(lambda db: jobs.stop(db, job, "ann"))
    ec2_world.tick(1)
    ec2_world.tick(40)
    (row,) = ec2_world.machines(job)
    assert (row.state, row.end_evidence) == ("terminated", "inferred")
    assert machine.provider_id in there(aws, REGION), "what has no tag of ours is not touched: its agent ends it"
    tags_again = [{"Key": DEPLOYMENT_TAG, "Value": ec2_world.control_loop.deployment}]
    aws.ec2().create_tags(Resources=[machine.provider_id], Tags=tags_again)
    ec2_world.tick(310)
    assert machine.provider_id not in there(aws, REGION)


@pytest.mark.any_database
def test_what_has_half_of_our_tags_is_swept_if_nobody_uses_it_and_else_left(ec2_world: World, aws: FakeAws):
    """A volume, an interface and a spot request of ours with a machine that isn't, or that another deployment has."""
    deployment, ec2 = ec2_world.control_loop.deployment, aws.ec2()
    foreign = ec2.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    theirs = aws.provider().launch(launch_request("theirs", "another")).id
    held = {}
    for instance in (foreign, theirs):
        volume = ec2.create_volume(AvailabilityZone=ZONE, Size=8, TagSpecifications=tags("volume", deployment))
        ec2.attach_volume(VolumeId=volume["VolumeId"], InstanceId=instance, Device="/dev/sdf")
        address = ec2.allocate_address(Domain="vpc", TagSpecifications=tags("elastic-ip", deployment))
        ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=instance)
        held[instance] = {volume["VolumeId"], address["AllocationId"]}
    without_provider = [{"ResourceType": "volume", "Tags": [{"Key": DEPLOYMENT_TAG, "Value": deployment}]}]
    stray = ec2.create_volume(AvailabilityZone=ZONE, Size=8, TagSpecifications=without_provider)["VolumeId"]
    for seconds in (1, 310, 310):
        ec2_world.tick(seconds)
    left = there(aws, REGION)
    assert {foreign, theirs, *held[foreign], *held[theirs]} <= left
    assert stray not in left
    with ec2_world.store.read() as db:
        assert [row.provider_id for row in db.sql.scalars(select(LeakRow))] == [stray]


def test_an_orphan_that_somebody_stopped_is_ended_too_for_its_disk_costs(ec2_world: World, aws: FakeAws):
    stray = aws.provider().launch(launch_request("stray", ec2_world.control_loop.deployment)).id
    aws.ec2().stop_instances(InstanceIds=[stray])
    ec2_world.tick(1)
    assert aws.instances(states=("stopping", "stopped")) == []


def test_deleting_what_is_gone_changes_nothing_and_another_error_is_no_deletion(aws: FakeAws):
    provider = aws.provider()
    plant(aws, REGION, "us")
    found = provider.list_leftovers("us", REGION)
    assert {one.kind for one in found} == {"volume", "network_interface", "address", "spot_request", "placement_group"}
    for one in found:
        provider.delete(one)
        provider.delete(one)
    assert provider.list_leftovers("us", REGION) == []
    assert len(aws.instances()) == 2, "an instance outlives its spot request"
    aws.fault("error", "DeleteVolume", code="UnauthorizedOperation", status=403)
    with pytest.raises(OutcomeUnknown, match="UnauthorizedOperation"):
        provider.delete(next(one for one in found if one.kind == "volume"))
