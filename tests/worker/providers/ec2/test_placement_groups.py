# SPDX-License-Identifier: Apache-2.0
"""Machines of a job that are placed close together: one group for each attempt, in one zone, and nothing left of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from shoestring_core.decide.requirements import Requirements
from shoestring_core.store import jobs
from shoestring_worker.providers.base import LaunchRefused, OutcomeUnknown

from tests.worker.conftest import World
from tests.worker.providers.fake_aws import REGION, ZONE, FakeAws, launch_request

OTHER_ZONE = "us-east-1b"


def groups(aws: FakeAws) -> list[str]:
    return [group["GroupName"] for group in aws.ec2().describe_placement_groups()["PlacementGroups"]]


def test_offers_say_which_network_their_type_has_and_whether_it_can_be_placed_close_together(aws: FakeAws):
    aws.control("prices", **{ZONE: {"g5.xlarge": "0.41"}})
    aws.fault("error", "DescribeInstanceTypes", code="UnauthorizedOperation", status=403)
    now = [0.0]
    provider = aws.provider(settings=aws.settings(max_price="20.00"), monotonic=lambda: now[0])
    assert not any(offer.hardware.cluster for offer in provider.offers([Requirements()]))
    now[0] += 300
    known = {offer.type: offer.hardware for offer in provider.offers([Requirements()])}
    small, large = known["g5.xlarge"], known["g5.48xlarge"]
    assert (small.network_mbps, small.cluster, small.efa) == (2_500, True, False)
    assert (large.network_mbps, large.cluster, large.efa) == (100_000, True, True)
    asked = len(aws.calls("DescribeInstanceTypes"))
    now[0] += 300
    provider.offers([Requirements()])
    assert len(aws.calls("DescribeInstanceTypes")) == asked, "types stay as they are"


def test_a_group_is_made_once_with_the_tags_of_its_attempt_and_before_its_machines(aws: FakeAws):
    provider, close = aws.provider(), {"placement_group": "shoestring-j-1"}
    for slot in ("0", "1"):
        request = launch_request(f"token-{slot}", **close)
        provider.launch(request)
        provider.launch(request)
    (group,) = aws.ec2().describe_placement_groups()["PlacementGroups"]
    tags = {tag["Key"]: tag["Value"] for tag in group["Tags"]}
    assert (group["Strategy"], tags) == ("cluster", {key: request.tags[key] for key in request.tags if key != "slot"})
    assert len(aws.instances()) == 2
    names = {call["parameters"]["Placement.GroupName"] for call in aws.calls("RunInstances")}
    assert names == {"shoestring-j-1"}
    provider.launch(launch_request("alone"))
    assert "Placement.GroupName" not in aws.calls("RunInstances")[-1]["parameters"]


@pytest.mark.parametrize("efa", [False, True])
def test_efa_is_on_the_only_interface_which_has_a_public_address(aws: FakeAws, efa: bool):
    aws.provider().launch(launch_request(placement_group="g", efa=efa, type="g5.48xlarge"))
    asked = aws.calls("RunInstances")[0]["parameters"]
    assert asked.get("NetworkInterface.1.InterfaceType") == ("efa" if efa else None)
    assert asked["NetworkInterface.1.AssociatePublicIpAddress"] == "true"
    assert "NetworkInterface.2.DeviceIndex" not in asked


def test_a_group_that_was_swept_just_before_its_launch_is_made_again(aws: FakeAws):
    provider, request = aws.provider(), launch_request(placement_group="g")
    aws.fault("error", "RunInstances", code="InvalidPlacementGroup.Unknown", status=400)
    with pytest.raises(OutcomeUnknown, match=r"InvalidPlacementGroup\.Unknown"):
        provider.launch(request)
    aws.ec2().delete_placement_group(GroupName="g")
    assert provider.launch(request).state == "pending"
    assert groups(aws) == ["g"]


@pytest.mark.parametrize("kind", ["lost_request", "lost_reply"])
def test_a_group_whose_making_is_unanswered_launches_nothing_and_is_made_once(aws: FakeAws, kind: str):
    provider, request = aws.provider(), launch_request(placement_group="g")
    aws.fault(kind, "CreatePlacementGroup")
    with pytest.raises(OutcomeUnknown):
        provider.launch(request)
    assert aws.instances() == []
    provider.launch(request)
    assert (groups(aws), len(aws.instances())) == (["g"], 1)


def test_a_group_that_ec2_refuses_refuses_the_launch(aws: FakeAws):
    aws.fault("error", "CreatePlacementGroup", code="PlacementGroupLimitExceeded", status=400)
    with pytest.raises(LaunchRefused, match="PlacementGroupLimitExceeded") as refused:
        aws.provider().launch(launch_request(placement_group="g"))
    assert refused.value.kind == "quota"
    assert aws.calls("RunInstances") == []


@pytest.mark.any_database
def test_a_gang_is_in_one_group_and_zone_though_one_of_it_was_refused_and_the_group_goes_after_it(
    make_world: Callable[..., World], aws: FakeAws
):
    world = make_world("ec2")
    aws.control("prices", **{ZONE: {"g5.xlarge": "0.41"}, OTHER_ZONE: {"g5.xlarge": "0.42"}})
    world.control_loop = world.another_control_loop(ec2=aws.provider(ZONE, OTHER_ZONE))
    foreign = {"GroupName": "theirs", "Strategy": "cluster"}
    aws.ec2().create_placement_group(**foreign)
    asked = {"nodes": 2, "gpu": "A10G", "spot": "only", "placement": "cluster"}
    job = world.submit(resources=asked)
    aws.fault("error", code="InsufficientInstanceCapacity")
    for _ in range(10):
        world.tick(1)
    assert [row.zone for row in world.alive(job)] == [ZONE, ZONE], "the other zone has a dearer one, too far away"
    assert len(world.machines(job)) == 3, "one was refused"
    name = f"shoestring-{job}-1"
    assert {call["parameters"]["Placement.GroupName"] for call in aws.calls("RunInstances")} == {name}
    world.form(job)
    for _ in range(6):
        world.tick(15)
        world.report(job)
    assert groups(aws) == ["theirs", name], "it is swept only when its machines have ended"
    world.store.write(lambda db: jobs.stop(db, job, "user", "stop"))
    for _ in range(8):
        world.tick(100)
    assert aws.instances(REGION) == []
    assert groups(aws) == ["theirs"]
