# SPDX-License-Identifier: Apache-2.0
"""The rules that the fake adds to moto, as plain boto3 sees them. Each test names the AWS page whose rule it checks."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from tests.worker.providers.fake_aws import IMAGE, OTHER_REGION, REGION, FakeAws


def run(aws: FakeAws, token: str | None = "t", region: str = REGION, **changed: Any) -> str:
    """Launch one instance; returns its id."""
    arguments = {"ImageId": IMAGE, "InstanceType": "g5.xlarge", "MinCount": 1, "MaxCount": 1} | changed
    if token is not None:
        arguments["ClientToken"] = token
    return aws.ec2(region).run_instances(**arguments)["Instances"][0]["InstanceId"]


def code_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    response = error.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def state_of(aws: FakeAws, instance: str) -> tuple[str, str, str]:
    (found,) = aws.ec2().describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"]
    return found["State"]["Name"], found["StateReason"]["Code"], found["StateTransitionReason"]


def test_a_token_with_the_same_parameters_gives_the_same_instance(aws: FakeAws):
    """docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html"""
    assert run(aws) == run(aws)
    assert len(aws.instances()) == 1


def test_a_token_with_other_parameters_is_a_mismatch(aws: FakeAws):
    """docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html"""
    run(aws)
    with pytest.raises(ClientError) as refused:
        run(aws, InstanceType="g5.2xlarge")
    assert code_of(refused) == ("IdempotentParameterMismatch", 400)
    assert len(aws.instances()) == 1


def test_a_token_holds_in_its_region_alone(aws: FakeAws):
    """docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html: tokens are regional."""
    assert run(aws) != run(aws, region=OTHER_REGION)
    assert (len(aws.instances()), len(aws.instances(OTHER_REGION))) == (1, 1)


def test_without_a_token_each_request_launches_an_instance(aws: FakeAws):
    """docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html; boto3 makes up a token where none is given."""
    assert run(aws, None) != run(aws, None)


def test_a_token_that_is_too_long_is_refused(aws: FakeAws):
    """docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html: up to 64 ASCII characters."""
    assert run(aws, "t" * 64)
    with pytest.raises(ClientError) as refused:
        run(aws, "t" * 65)
    assert code_of(refused) == ("InvalidClientToken", 400)


def test_the_token_of_a_terminated_instance_is_refused(aws: FakeAws):
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html: IdempotentInstanceTerminated."""
    aws.ec2().terminate_instances(InstanceIds=[run(aws)])
    with pytest.raises(ClientError) as refused:
        run(aws)
    assert code_of(refused) == ("IdempotentInstanceTerminated", 400)


def test_a_launch_that_was_refused_leaves_its_token_free(aws: FakeAws):
    """docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html: success binds a token."""
    aws.fault("error", code="InsufficientInstanceCapacity")
    with pytest.raises(ClientError):
        run(aws)
    assert run(aws, InstanceType="g5.2xlarge")


@pytest.mark.parametrize(
    ("code", "status"),
    [("InsufficientInstanceCapacity", 500), ("MaxSpotInstanceCountExceeded", 400), ("VcpuLimitExceeded", 400)],
)
def test_capacity_and_quota_errors_come_on_demand_and_launch_nothing(aws: FakeAws, code: str, status: int):
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html: server and client errors."""
    aws.fault("error", code=code, status=status, parameters={"InstanceType": "g5.xlarge"})
    run(aws, "other", InstanceType="g5.2xlarge")
    with pytest.raises(ClientError) as refused:
        run(aws)
    assert code_of(refused) == (code, status)
    assert len(aws.instances()) == 1
    assert run(aws)


SPOT_QUOTA, ON_DEMAND_QUOTA = "All G and VT Spot Instance Requests", "Running On-Demand G and VT instances"
SPOT = {"InstanceMarketOptions": {"MarketType": "spot"}}


@pytest.mark.parametrize(
    ("quota", "market", "code"),
    [(SPOT_QUOTA, SPOT, "MaxSpotInstanceCountExceeded"), (ON_DEMAND_QUOTA, {}, "VcpuLimitExceeded")],
)
def test_a_launch_beyond_a_quota_of_vcpus_is_refused_in_its_market_and_region_alone(
    aws: FakeAws, quota: str, market: dict[str, Any], code: str
):
    """docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html: vCPUs of running instances of a family."""
    aws.control("quotas", **{REGION: {quota: 8}})
    first = run(aws, "a", **market)
    with pytest.raises(ClientError) as refused:
        run(aws, "b", InstanceType="g5.2xlarge", **market)
    assert code_of(refused) == (code, 400)
    run(aws, "c", InstanceType="g6.xlarge", **market)  # of the same family: 4 + 4 vCPUs
    with pytest.raises(ClientError):
        run(aws, "d", **market)
    assert run(aws, "a", **market) == first, "a token that has launched is answered as before"
    run(aws, "other-market", **({} if market else SPOT))
    run(aws, "other-region", region=OTHER_REGION, **market)
    run(aws, "other-family", InstanceType="t3.small", **market)
    aws.ec2().terminate_instances(InstanceIds=[first])
    run(aws, "d", **market)


def test_quotas_are_listed_page_by_page(aws: FakeAws):
    """docs.aws.amazon.com/servicequotas/2019-06-24/apireference/API_ListServiceQuotas.html: fewer than were asked for
    may come, and NextToken says whether there are more."""
    quotas = {SPOT_QUOTA: 8.0, ON_DEMAND_QUOTA: 0.0, "All P5 Spot Instance Requests": 192.0}
    aws.control("quotas", **{REGION: quotas})
    client = boto3.client("service-quotas", region_name=REGION, endpoint_url=aws.url)
    pages = list(client.get_paginator("list_service_quotas").paginate(ServiceCode="ec2"))
    assert len(pages) == 2
    assert {one["QuotaName"]: one["Value"] for page in pages for one in page["Quotas"]} == quotas


def test_calls_beyond_the_limit_of_their_action_are_throttled(aws: FakeAws):
    """docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html: each action and region by itself."""
    aws.control("limits", RunInstances={"size": 2, "per_s": 0.001})
    for token in "ab":
        run(aws, token)
    with pytest.raises(ClientError) as refused:
        run(aws, "c")
    assert code_of(refused) == ("RequestLimitExceeded", 503)
    assert len(aws.instances()) == 2
    assert run(aws, region=OTHER_REGION)


def test_new_instances_are_missing_in_the_first_listings(aws: FakeAws):
    """docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html"""
    seen = run(aws, "seen")
    aws.control("listing-lag", listings=2)
    run(aws, "late")
    assert [[one["InstanceId"] for one in aws.instances()] for _ in range(2)] == [[seen], [seen]]
    assert len(aws.instances()) == 2


def test_spot_prices_are_those_that_were_set(aws: FakeAws):
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotPriceHistory.html"""
    aws.control("prices", **{"us-east-1a": {"g5.xlarge": "0.41", "g6.xlarge": "0.3"}, "eu-west-1a": {"g5.xlarge": "1"}})
    history = aws.ec2().describe_spot_price_history(InstanceTypes=["g5.xlarge"])["SpotPriceHistory"]
    assert [(one["AvailabilityZone"], one["InstanceType"], one["SpotPrice"]) for one in history] == [
        ("us-east-1a", "g5.xlarge", "0.41")
    ]


def test_an_instance_that_ends_while_it_is_pending_has_a_state_reason(aws: FakeAws):
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html"""
    aws.fault("ends_pending", code="Server.InsufficientInstanceCapacity")
    state, reason, transition = state_of(aws, run(aws))
    assert (state, reason) == ("terminated", "Server.InsufficientInstanceCapacity")
    assert transition.startswith("Service initiated (")


def test_an_instance_that_ec2_interrupts_has_the_state_reason_of_spot(aws: FakeAws):
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html"""
    instance = run(aws)
    aws.control("end", region=REGION, instance=instance)
    assert state_of(aws, instance)[:2] == ("terminated", "Server.SpotInstanceTermination")


def test_a_repeated_termination_succeeds_and_changes_nothing(aws: FakeAws):
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/API_TerminateInstances.html: "This action is idempotent"."""
    instance = run(aws)
    for _ in range(2):
        aws.ec2().terminate_instances(InstanceIds=[instance])
    ended = state_of(aws, instance)
    assert ended[:2] == ("terminated", "Client.UserInitiatedShutdown")
    with pytest.raises(ClientError) as refused:
        aws.ec2().terminate_instances(InstanceIds=["i-00000000000000000"])
    assert code_of(refused) == ("InvalidInstanceID.NotFound", 400)


@pytest.mark.parametrize(("kind", "running"), [("lost_request", 0), ("lost_reply", 1)])
def test_a_connection_breaks_before_or_after_the_launch(aws: FakeAws, kind: str, running: int):
    """No rule of AWS, but what networks do."""
    aws.fault(kind)
    with pytest.raises(ConnectionClosedError):
        run(aws)
    assert len(aws.instances()) == running


def test_a_request_that_arrives_twice_launches_one_instance(aws: FakeAws):
    """docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html"""
    aws.fault("duplicate")
    run(aws)
    assert len(aws.instances()) == 1


def test_an_answer_that_is_late_comes_after_the_launch(aws: FakeAws):
    """No rule of AWS, but what networks do."""
    aws.fault("delay", "DescribeVolumes", seconds=1)
    client = aws.impatient_client(0.2)
    with pytest.raises(ReadTimeoutError):
        client.describe_volumes()
    assert client.describe_volumes()["Volumes"] == []


def test_an_unknown_fault_is_refused(aws: FakeAws):
    with pytest.raises(Exception, match="400"):
        aws.fault("earthquake")


def test_a_placement_group_has_a_name_of_its_own_and_stays_while_an_instance_is_in_it(aws: FakeAws):
    """docs.aws.amazon.com/AWSEC2/latest/UserGuide/placement-groups.html, placement-strategies.html and
    docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html: InvalidPlacementGroup.…
    """
    ec2, tags = aws.ec2(), [{"Key": "job", "Value": "j"}]
    close = {"Placement": {"GroupName": "close"}}
    with pytest.raises(ClientError) as refused:
        run(aws, **close)
    assert code_of(refused) == ("InvalidPlacementGroup.Unknown", 400)
    made = {"GroupName": "close", "Strategy": "cluster"}
    ec2.create_placement_group(**made, TagSpecifications=[{"ResourceType": "placement-group", "Tags": tags}])
    with pytest.raises(ClientError) as refused:
        ec2.create_placement_group(**made)
    assert code_of(refused) == ("InvalidPlacementGroup.Duplicate", 400)
    (described,) = ec2.describe_placement_groups()["PlacementGroups"]
    expected = {"GroupName": "close", "Strategy": "cluster", "State": "available", "Tags": tags}
    assert {name: described[name] for name in expected} == expected
    assert aws.ec2(OTHER_REGION).describe_placement_groups()["PlacementGroups"] == []
    with pytest.raises(ClientError) as refused:
        run(aws, InstanceType="t3.medium", **close)
    assert code_of(refused) == ("InvalidParameterCombination", 400)

    def in_zone(zone: str) -> dict[str, Any]:
        return {"NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": aws.subnet(zone)}]}

    instance = run(aws, **close, **in_zone("us-east-1a"))
    with pytest.raises(ClientError) as refused:
        run(aws, "another", **close, **in_zone("us-east-1b"))
    assert code_of(refused)[1] == 400
    with pytest.raises(ClientError) as refused:
        ec2.delete_placement_group(GroupName="close")
    assert code_of(refused) == ("InvalidPlacementGroup.InUse", 400)
    ec2.terminate_instances(InstanceIds=[instance])
    ec2.delete_placement_group(GroupName="close")
    assert ec2.describe_placement_groups()["PlacementGroups"] == []


def test_the_enabled_regions_are_three(aws: FakeAws):
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeRegions.html"""
    listed = aws.ec2().describe_regions()["Regions"]
    assert [region["RegionName"] for region in listed] == ["eu-west-1", "us-east-1", "us-west-2"]


def test_a_spot_request_is_open_until_it_is_cancelled(aws: FakeAws):
    """docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CancelSpotInstanceRequests.html"""
    (asked,) = aws.ec2().request_spot_instances()["SpotInstanceRequests"]
    request = asked["SpotInstanceRequestId"]
    assert (asked["State"], "InstanceId" in asked) == ("open", False)
    assert aws.read("left")["spot_requests"] == [request]
    aws.ec2().cancel_spot_instance_requests(SpotInstanceRequestIds=[request])
    assert aws.read("left")["spot_requests"] == []
    with pytest.raises(ClientError, match=r"InvalidSpotInstanceRequestID\.NotFound"):
        aws.ec2().cancel_spot_instance_requests(SpotInstanceRequestIds=["sir-00000000"])
