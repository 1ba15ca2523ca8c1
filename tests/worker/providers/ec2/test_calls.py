# SPDX-License-Identifier: Apache-2.0
"""The provider's calls to the fake EC2: what it asks, and what it concludes from each answer and each silence."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import boto3
import pytest
from botocore.exceptions import SSOTokenLoadError, UnauthorizedSSOTokenError
from shoestring_api.serializers.statuses import status_of
from shoestring_core.decide.billing import Evidence, bill
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, PROVIDER_TAG, MachineRef
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.timeouts import S
from shoestring_core.launch_request import LaunchDisk
from shoestring_core.store import queries
from shoestring_core.store.tables import LeakRow
from shoestring_worker.providers.base import LaunchRefused, OutcomeUnknown
from shoestring_worker.providers.ec2 import provider as ec2_provider
from shoestring_worker.providers.ec2 import user_data
from shoestring_worker.providers.ec2.calls import Calls
from shoestring_worker.providers.ec2.rate_limits import RateLimits
from shoestring_worker.providers.ec2.run_instances import RootDisk
from sqlalchemy import select

from tests.servers import FaultProxy, until
from tests.worker.conftest import World
from tests.worker.providers.ec2 import bill_oracle
from tests.worker.providers.fake_aws import IMAGE, OTHER_REGION, REGION, UNLISTED, ZONE, FakeAws, launch_request

OTHER_ZONE = f"{OTHER_REGION}a"
SPOT_QUOTA = "All G and VT Spot Instance Requests"


def test_a_machine_its_disk_its_interface_and_its_spot_request_are_created_with_their_tags(aws: FakeAws):
    request = launch_request()
    aws.provider().launch(request)
    expected = {"Key": DEPLOYMENT_TAG, "Value": "us"}
    (instance,), (volume,) = aws.instances(), aws.ec2().describe_volumes()["Volumes"]
    assert expected in instance["Tags"]
    assert expected in volume["Tags"]
    (interface,) = instance["NetworkInterfaces"]
    (described,) = aws.ec2().describe_network_interfaces(NetworkInterfaceIds=[interface["NetworkInterfaceId"]])[
        "NetworkInterfaces"
    ]
    assert expected in described["TagSet"]
    (spot_request,) = aws.ec2().describe_spot_instance_requests()["SpotInstanceRequests"]
    assert expected in spot_request["Tags"]
    asked = aws.calls("RunInstances")[0]["parameters"]
    tagged = {asked[name]: name.rpartition(".")[0] for name in asked if name.endswith(".ResourceType")}
    assert set(tagged) == {"instance", "volume", "network-interface", "spot-instances-request"}
    for place in tagged.values():
        tags = {asked[f"{place}.Tag.{n}.Key"]: asked[f"{place}.Tag.{n}.Value"] for n in range(1, 6)}
        assert tags == request.tags


def test_the_owner_s_tags_are_on_everything_that_is_launched_and_never_in_place_of_ours(aws: FakeAws):
    settings = aws.settings(tags="cost-centre=4711, project = vision")
    owners = [{"Key": "cost-centre", "Value": "4711"}, {"Key": "project", "Value": "vision"}]
    request = launch_request(placement_group="shoestring-j-1", type="g6e.24xlarge")
    ec2_provider.Ec2Provider("ec2", settings).launch(request)
    ec2, (instance,) = aws.ec2(), aws.instances()
    interfaces = ec2.describe_network_interfaces(
        NetworkInterfaceIds=[each["NetworkInterfaceId"] for each in instance["NetworkInterfaces"]]
    )["NetworkInterfaces"]
    tagged = [
        instance["Tags"],
        ec2.describe_volumes()["Volumes"][0]["Tags"],
        interfaces[0]["TagSet"],
        ec2.describe_spot_instance_requests()["SpotInstanceRequests"][0]["Tags"],
        ec2.describe_placement_groups()["PlacementGroups"][0]["Tags"],
    ]
    for tags in tagged:
        assert all(tag in tags for tag in [*owners, {"Key": DEPLOYMENT_TAG, "Value": "us"}])


def test_a_machine_is_launched_as_its_request_says(aws: FakeAws):
    aws.provider().launch(launch_request())
    (instance,), (volume,) = aws.instances(), aws.ec2().describe_volumes()["Volumes"]
    assert (instance["InstanceType"], instance["InstanceLifecycle"]) == ("g5.xlarge", "spot")
    assert instance["ImageId"] == IMAGE
    assert instance["ClientToken"] == "token-1"
    assert instance["Placement"]["AvailabilityZone"] == "us-east-1a"
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert (volume["Encrypted"], volume["VolumeType"], volume["Size"]) == (True, "gp3", 100)
    assert volume["Attachments"][0]["Device"] == instance["RootDeviceName"]
    asked = aws.calls("RunInstances")[0]["parameters"]
    assert asked["InstanceInitiatedShutdownBehavior"] == "terminate"
    image = user_data.render(launch_request().user_data, "/opt/shoestring/bin/python")
    assert base64.b64decode(asked["UserData"]).decode() == image


def test_a_machine_has_the_encrypted_disk_of_its_request(aws: FakeAws):
    aws.provider().launch(launch_request(disk=LaunchDisk(187, 6_000, 500)))
    (volume,) = aws.ec2().describe_volumes()["Volumes"]
    assert (volume["Encrypted"], volume["VolumeType"], volume["Size"]) == (True, "gp3", 187)
    asked = aws.calls("RunInstances")[0]["parameters"]  # moto gives every volume the same performance
    disk = {name: asked[f"BlockDeviceMapping.1.Ebs.{name}"] for name in ("Iops", "Throughput", "DeleteOnTermination")}
    assert disk == {"Iops": "6000", "Throughput": "500", "DeleteOnTermination": "true"}


def test_an_image_that_does_not_fit_on_the_disk_refuses_launches_before_they_are_sent(aws: FakeAws):
    (instance,) = aws.ec2().run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)["Instances"]
    large = aws.ec2().create_image(InstanceId=instance["InstanceId"], Name="large")["ImageId"]
    (image,) = aws.ec2().describe_images(ImageIds=[large])["Images"]
    needs = RootDisk.of(image).gib
    settings = aws.settings()
    region = settings.regions[REGION].model_copy(update={"image": large})
    provider = aws.provider(settings=settings.model_copy(update={"regions": {REGION: region}}))
    sent = len(aws.calls("RunInstances"))
    with pytest.raises(
        LaunchRefused, match=f"needs a disk of {needs} GiB, and this is one of {needs - 1} GiB"
    ) as refused:
        provider.launch(launch_request(disk=LaunchDisk(needs - 1, 3_000, 125)))
    assert (refused.value.kind, len(aws.calls("RunInstances"))) == (RefusalKind.INVALID, sent)


def test_an_on_demand_machine_has_no_spot_options(aws: FakeAws):
    aws.provider().launch(launch_request(market="on_demand"))
    assert "InstanceLifecycle" not in aws.instances()[0]
    asked = aws.calls("RunInstances")[0]["parameters"]
    assert not [name for name, value in asked.items() if "Spot" in name or value == "spot-instances-request"]


def test_a_launch_is_sent_once_whatever_is_answered(aws: FakeAws):
    """boto3's own retries would send it up to four times."""
    provider = aws.provider()
    for fault in ({"code": "InsufficientInstanceCapacity"}, {"code": "RequestLimitExceeded", "status": 503}):
        before = len(aws.calls("RunInstances"))
        aws.fault("error", **fault)
        with pytest.raises((LaunchRefused, OutcomeUnknown)):
            provider.launch(launch_request(f"token-{before}"))
        assert len(aws.calls("RunInstances")) == before + 1


@pytest.mark.parametrize(
    ("code", "status", "kind", "advice"),
    [
        ("InsufficientInstanceCapacity", 500, RefusalKind.CAPACITY, ""),
        ("MaxSpotInstanceCountExceeded", 400, RefusalKind.QUOTA, ""),
        ("UnauthorizedOperation", 403, RefusalKind.ACCOUNT, "shoestring aws doctor says what this account lacks."),
        ("InvalidAMIID.NotFound", 400, RefusalKind.IMAGE, "Correct the region's image in SHOESTRING_EC2_REGIONS; "),
        ("InvalidParameterValue", 400, RefusalKind.INVALID, "shoestring aws doctor tries such a launch."),
    ],
)
def test_a_refusal_says_of_which_kind_it_is_in_ec2_s_words_and_what_to_do_if_it_lasts(
    aws: FakeAws, code: str, status: int, kind: RefusalKind, advice: str
):
    aws.fault("error", code=code, status=status, message="as EC2 says it.")
    with pytest.raises(LaunchRefused, match=f"^{code}: as EC2 says it[.]( .*{advice}.*)?$") as refused:
        aws.provider().launch(launch_request())
    assert (refused.value.kind, advice in str(refused.value)) == (kind, True)
    assert aws.instances() == []


@pytest.mark.parametrize(
    ("code", "status"), [("InternalError", 500), ("Unavailable", 503), ("RequestExpired", 400), ("Unheard.Of", 500)]
)
def test_an_error_that_proves_nothing_leaves_the_outcome_unknown(aws: FakeAws, code: str, status: int):
    provider = aws.provider()
    aws.fault("error", code=code, status=status)
    with pytest.raises(OutcomeUnknown, match=code):
        provider.launch(launch_request())
    assert provider.launch(launch_request()).state == "pending"


def test_a_clock_that_is_ten_minutes_off_is_named_where_ec2_refuses_the_signature(aws: FakeAws):
    aws.fault("error", code="RequestExpired", status=400)
    with pytest.raises(OutcomeUnknown, match=r"RequestExpired.* clock of .*, which may be minutes off"):
        aws.provider().launch(launch_request())
    aws.fault("error", "DescribeInstances", code="RequestExpired", status=400)
    with pytest.raises(OutcomeUnknown, match=r"clock of the service's computer, which may be minutes off"):
        aws.provider().list_region("us", REGION)


@pytest.mark.parametrize("code", ["AuthFailure", "SignatureDoesNotMatch", "RequestExpired"])
@pytest.mark.parametrize(
    ("off_s", "message", "said"),
    [
        (600, "x", "is 10 minutes ahead of AWS's: set it"),
        (-600, "x", "is 10 minutes behind AWS's: set it"),
        (86_400, "x", "is 24 hours ahead of AWS's: set it"),
        (-86_400, "x", "is 24 hours behind AWS's: set it"),
        (0, "Signature expired: 20261129T000000Z is now earlier than 20261129T000500Z", "differs from AWS's: set it"),
    ],
)
def test_a_clock_is_told_apart_from_wrong_credentials_by_the_date_of_ec2_s_answer(
    aws: FakeAws, code: str, off_s: int, message: str, said: str
):
    provider = aws.provider(now=lambda: time.time() + off_s)
    aws.fault("error", code=code, status=403, message=message)
    with pytest.raises(OutcomeUnknown, match=f"The clock of the service's computer {said}") as unknown:
        provider.launch(launch_request())
    assert unknown.value.lasts


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("AuthFailure", "set others where it is started"),
        ("InvalidClientTokenId", "set others where it is started"),
        ("OptInRequired", "SHOESTRING_EC2_REGIONS"),
        ("UnauthorizedOperation", "bootstrap --dry-run prints the policy"),
    ],
)
def test_a_refusal_of_the_prices_of_all_regions_that_lasts_says_what_to_do(aws: FakeAws, code: str, advice: str):
    aws.fault("error", "DescribeSpotPriceHistory", code=code, status=403, times=2)
    with pytest.raises(OutcomeUnknown, match=f"{code}: planned. .*{advice}") as unknown:
        aws.provider(ZONE, OTHER_ZONE).offers(())
    assert unknown.value.lasts, "jobs that wait for it are told"


def test_without_credentials_a_launch_waits_and_says_how_to_set_them(aws: FakeAws, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", boto3.Session())
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(OutcomeUnknown, match="Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and ") as unknown:
        aws.provider().launch(launch_request())
    assert unknown.value.lasts


def test_a_profile_that_is_not_there_is_on_the_page_of_jobs_that_wait_with_what_to_do(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_PROFILE", "trainig")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(OutcomeUnknown, match=r"\(trainig\) could not be found. .*correct AWS_PROFILE") as unknown:
        aws.provider().launch(launch_request())
    assert unknown.value.lasts


@pytest.mark.parametrize(
    "error", [UnauthorizedSSOTokenError(), RuntimeError("still expired"), SSOTokenLoadError(error_msg="no login")]
)
def test_a_login_that_has_expired_is_told_with_what_to_do(aws: FakeAws, error: Exception):
    def call(_: object) -> None:
        raise error

    calls = Calls(aws.url, 5, RateLimits())
    with pytest.raises(OutcomeUnknown, match=r"Log in again where the service was started") as unknown:
        calls.read(REGION, "DescribeInstances", call)
    assert unknown.value.lasts


def test_a_page_in_place_of_an_answer_is_unknown_and_the_next_call_finds_the_machine(aws: FakeAws):
    provider = aws.provider()
    aws.fault("garbled")
    with pytest.raises(OutcomeUnknown, match="did not answer RunInstances"):
        provider.launch(launch_request())
    machine = provider.launch(launch_request())
    aws.fault("garbled", "TerminateInstances")
    with pytest.raises(OutcomeUnknown, match="did not answer TerminateInstances"):
        provider.terminate(machine.ref)
    assert len(provider.list("us")) == 1


def test_an_answer_that_is_late_is_unknown_and_the_next_call_finds_the_machine(aws: FakeAws):
    provider = aws.provider(read_timeout_s=2)  # which is enough for its other calls
    aws.fault("delay", seconds=3)
    with pytest.raises(OutcomeUnknown, match="did not answer RunInstances"):
        provider.launch(launch_request())
    assert len(aws.instances()) == 1
    assert provider.launch(launch_request()).id == aws.instances()[0]["InstanceId"]


def test_a_request_that_arrives_twice_launches_one_machine(aws: FakeAws):
    aws.fault("duplicate")
    machine = aws.provider().launch(launch_request())
    assert [instance["InstanceId"] for instance in aws.instances()] == [machine.id]


def test_an_image_that_is_not_there_refuses_launches_before_they_are_sent(aws: FakeAws):
    settings = aws.settings()
    missing = settings.regions[REGION].model_copy(update={"image": "ami-0000dead0000dead0"})
    provider = aws.provider(settings=settings.model_copy(update={"regions": {REGION: missing}}))
    with pytest.raises(LaunchRefused, match="Correct the region's image in ") as refused:
        provider.launch(launch_request())
    assert refused.value.kind == RefusalKind.IMAGE
    assert aws.calls("RunInstances") == []


def test_a_zone_that_the_settings_no_longer_have_is_refused_as_if_it_were_full(aws: FakeAws):
    with pytest.raises(LaunchRefused, match="no subnet in us-east-1b") as refused:
        aws.provider().launch(launch_request(zone="us-east-1b"))
    assert refused.value.kind == RefusalKind.CAPACITY


def test_machines_of_all_regions_are_listed_over_several_pages(aws: FakeAws, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ec2_provider, "PAGE_SIZE", 5)
    provider = aws.provider("us-east-1a", OTHER_ZONE)
    for number in range(7):
        provider.launch(launch_request(f"token-{number}"))
    provider.launch(launch_request("elsewhere", zone=OTHER_ZONE))
    assert {machine.token for machine in provider.list("us")} == {*(f"token-{n}" for n in range(7)), "elsewhere"}
    assert {machine.region for machine in provider.list("us")} == {REGION, OTHER_REGION}


@pytest.mark.parametrize("kind", ["error", "lost_reply", "garbled"])
def test_a_list_without_one_region_is_no_list(aws: FakeAws, kind: str):
    provider = aws.provider("us-east-1a", OTHER_ZONE)
    provider.launch(launch_request())
    aws.fault(kind, "DescribeInstances", region=OTHER_REGION)
    with pytest.raises(OutcomeUnknown, match=OTHER_REGION):
        provider.list("us")
    assert len(provider.list("us")) == 1


def test_a_machine_is_ended_only_when_ec2_says_so(aws: FakeAws):
    provider = aws.provider()
    machine = provider.launch(launch_request())
    aws.fault("lost_request", "TerminateInstances")
    with pytest.raises(OutcomeUnknown):
        provider.terminate(machine.ref)
    aws.fault("error", "TerminateInstances", code="InternalError", status=500)
    with pytest.raises(OutcomeUnknown, match="InternalError"):
        provider.terminate(machine.ref)
    assert provider.list("us")[0].state == "running"
    aws.fault("lost_reply", "TerminateInstances")
    with pytest.raises(OutcomeUnknown):
        provider.terminate(machine.ref)
    assert provider.list("us")[0].state == "ended"
    provider.terminate(machine.ref)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("Server.SpotInstanceTermination", "preempted"),
        ("Client.InstanceInitiatedShutdown", "exited"),
        ("Server.InsufficientInstanceCapacity", "capacity"),
        ("Client.VolumeLimitExceeded", "quota"),
        ("Client.InternalError", "account"),
        ("Server.InternalError", "crashed"),
    ],
)
def test_the_state_reason_tells_why_a_machine_ended(aws: FakeAws, code: str, cause: str):
    aws.fault("ends_pending", code=code)
    provider = aws.provider()
    provider.launch(launch_request())
    (machine,) = provider.list("us")
    assert (machine.state, machine.end_cause) == ("ended", cause)
    assert machine.ended_at is not None
    assert machine.ended_at >= machine.launched_at


def test_launches_beyond_ec2_s_limit_are_not_sent_and_terminations_are(aws: FakeAws):
    limits = RateLimits(monotonic=lambda: 0.0, sleep=lambda _: None)
    provider = aws.provider(limits=limits)
    machines = [provider.launch(launch_request(f"token-{number}")) for number in range(5)]
    aws.control("limits", RunInstances={"size": 0, "per_s": 1})
    for _ in range(2):  # two more come within the patience of a call
        with pytest.raises(OutcomeUnknown, match="RequestLimitExceeded"):
            provider.launch(launch_request("one-more"))
    with pytest.raises(OutcomeUnknown, match="not sent"):
        provider.launch(launch_request("one-more"))
    for machine in machines:
        provider.terminate(machine.ref)
    assert aws.instances() == []


def test_terminations_beyond_ec2_s_limit_go_with_the_next_call_and_an_unknown_one_keeps_none_alive(aws: FakeAws):
    now = [0.0]
    limits = RateLimits(monotonic=lambda: now[0], sleep=lambda _: None)
    provider = aws.provider(limits=limits)
    machines = [provider.launch(launch_request(f"token-{number}")).ref for number in range(4)]
    while limits.bucket(REGION, "TerminateInstances").take(0):
        pass
    for ref in (machines[0], MachineRef(REGION, "i-00000000000000bad"), machines[1]):
        with pytest.raises(OutcomeUnknown, match="not sent"):
            provider.terminate(ref)
    for second, left in ((1, 4), (2, 0)):  # the first call is refused as a whole, because of the unknown one
        now[0] = second * 0.2
        provider.terminate(machines[1 + second])
        assert len(aws.instances()) == left
    assert len(aws.calls("TerminateInstances")) == 2


def test_nothing_that_is_not_there_is_waited_for(aws: FakeAws, fault_proxy: Callable[[int], FaultProxy]):
    proxy = fault_proxy(int(aws.url.rpartition(":")[2]))
    settings = aws.settings().model_copy(update={"endpoint_url": f"http://127.0.0.1:{proxy.port}"})
    provider = aws.provider(settings=settings)
    proxy.refuse = True
    for call in (
        lambda: provider.list("us"),
        lambda: provider.launch(launch_request()),
        lambda: provider.terminate(MachineRef(REGION, "i-1")),
    ):
        with pytest.raises(OutcomeUnknown):
            call()


# Offers


def spot_offers(provider: ec2_provider.Ec2Provider) -> list[tuple[str, str, str]]:
    return [(one.zone, one.type, one.price) for one in provider.offers(()) if one.market == "spot"]


def test_spot_machines_are_offered_at_ec2_s_price_where_it_has_one_that_is_not_above_on_demand(aws: FakeAws):
    aws.control(
        "prices",
        **{
            "us-east-1a": {"g5.xlarge": "0.412300", "g6.xlarge": "0.9", "p5.48xlarge": "1"},
            "us-east-1f": {"g4dn.xlarge": "0.1"},
            OTHER_ZONE: {"g5.xlarge": "0.3"},
        },
    )
    provider = aws.provider("us-east-1a", "us-east-1b", OTHER_ZONE)
    assert spot_offers(provider) == [("us-east-1a", "g5.xlarge", "0.4123")]
    on_demand = {offer.zone for offer in provider.offers(()) if offer.market == "on_demand"}
    assert on_demand == {"us-east-1a", "us-east-1b"}


def test_spot_prices_are_asked_for_again_after_five_minutes(aws: FakeAws):
    now = [0.0]
    provider = aws.provider(monotonic=lambda: now[0])
    for at, price, offered in ((0, "0.41", "0.41"), (299, "0.40", "0.41"), (300, "0.39", "0.39")):
        now[0] = at
        aws.control("prices", **{"us-east-1a": {"g5.xlarge": price}})
        assert spot_offers(provider) == [("us-east-1a", "g5.xlarge", offered)]
    now[0] = 600
    aws.fault("error", "DescribeSpotPriceHistory")
    with pytest.raises(OutcomeUnknown, match="us-east-1"):
        provider.offers(())
    assert spot_offers(provider) == [("us-east-1a", "g5.xlarge", "0.39")]


def test_on_demand_prices_are_those_of_the_price_list_in_each_region_and_read_again_after_five_minutes(aws: FakeAws):
    now = [0.0]
    provider = aws.provider("us-east-1a", OTHER_ZONE, monotonic=lambda: now[0])

    def prices() -> dict[tuple[str, str], str]:
        offers = [offer for offer in provider.offers(()) if offer.type == "g5.xlarge"]
        for offer in offers:
            assert (offer.market == "on_demand") == offer.source.startswith("AWS Price List API, 20")
        return {(offer.zone, offer.market): offer.price for offer in offers}

    home = {("us-east-1a", "on_demand"): "1.006"}
    assert prices() == home, "nothing is offered where it has no price"
    abroad = {"g5.xlarge": "1.123", "g6.xlarge": "0.9", "g9.huge": "0.1"} | {f"x{n}.large": "1" for n in range(12)}
    aws.control("on-demand", **{OTHER_REGION: abroad})
    aws.control("prices", **{OTHER_ZONE: {"g5.xlarge": "0.3"}})
    assert prices() == home
    now[0] = 300
    known = home | {(OTHER_ZONE, "on_demand"): "1.123", (OTHER_ZONE, "spot"): "0.3"}
    assert prices() == known
    assert {call["region"] for call in aws.calls("GetProducts")} == {"us-east-1"}
    now[0] = 600
    aws.fault("error", "GetProducts", code="AccessDeniedException", status=400, times=2)
    assert prices() == known, "the last that were read"
    now[0] = 900
    prices()
    assert aws.calls("GetProducts")[-1]["region"] == "ap-south-1", "the next of three regions in which it answers"


def test_machines_that_end_do_not_delay_the_next_reading_of_quotas_and_on_demand_prices(aws: FakeAws):
    now = [0.0]
    provider = aws.provider(monotonic=lambda: now[0])
    provider.offers(())
    for at in range(100, 400, 100):
        now[0] = at
        machine = provider.launch(launch_request(f"token-{at}"))
        aws.control("end", region=REGION, instance=machine.id)
        provider.list("us")
        provider.offers(())
    assert len(aws.calls("DescribeSpotPriceHistory")) > 2
    asked = {call["parameters"].get("NextToken", "0") for call in aws.calls("GetProducts")}
    assert len(aws.calls("GetProducts")) == 2 * len(asked)


def test_the_built_in_prices_hold_while_the_price_list_can_not_be_read(aws: FakeAws):
    aws.fault("lost_request", "GetProducts", times=2)
    offers = aws.provider("us-east-1a", OTHER_ZONE).offers(())
    assert {offer.region for offer in offers} == {REGION}
    assert all("price list of 2026-01-19" in offer.source for offer in offers)


def test_quotas_are_read_by_name_every_five_minutes_and_kept_while_they_can_not_be_read(aws: FakeAws):
    now = [0.0]
    provider = aws.provider(monotonic=lambda: now[0])

    def quotas() -> set[tuple[str, float]]:
        offers = [offer for offer in provider.offers(()) if offer.type == "g5.xlarge"]
        return {(offer.quota.name, offer.quota.vcpus) for offer in offers if offer.quota}

    aws.control("prices", **{ZONE: {"g5.xlarge": "0.41"}})
    assert quotas() == set(), "without a quota that is known nothing is limited"
    given = {SPOT_QUOTA: 8, "All P5 Spot Instance Requests": 0, "Running On-Demand G and VT instances": 0}
    aws.control("quotas", **{REGION: given})
    assert quotas() == set()
    now[0] = 300
    assert quotas() == (told := {(SPOT_QUOTA, 8), ("Running On-Demand G and VT instances", 0)})
    now[0] = 600
    aws.fault("error", "ListServiceQuotas", code="AccessDeniedException", status=400)
    assert quotas() == told


def test_the_bill_of_what_ec2_describes_is_the_bill_of_what_happened_there(aws: FakeAws):
    """The fake has EC2's own record: when the instance was launched, ended and for what, and each price's time."""
    launched = round(time.time()) - 7_200
    ended = launched + 5_400
    history = ((launched - 3_000, "0.30"), (launched + 1_000, "0.60"), (launched + 2_500, "0.45"), (ended + 60, "9"))
    for at, price in history:
        aws.control("past-prices", at=at, prices={ZONE: {"g5.xlarge": price}})
    provider = aws.provider(settings=aws.settings(disk_gib=324))
    rules = next(offer.billing for offer in provider.offers(()) if offer.type == "g5.xlarge")
    machine = provider.launch(launch_request())
    aws.control("end", region=REGION, instance=machine.id, life=[launched, ended])
    (seen,) = provider.list("us")
    evidence = Evidence(
        "ec2", "g5.xlarge", "spot", "1", seen.launched_at, seen.ended_at, seen.end_cause,
        price_changes=seen.price_changes, rules=rules,
    )  # fmt: skip
    happened = bill_oracle.Instance(
        "spot", launched * S, ended * S, "Server.SpotInstanceTermination", "1",
        history=tuple((at * S, price) for at, price in history), gib=324, mib_per_s=250,
    )  # fmt: skip
    assert {line.line: line.amount for line in bill(evidence, 0)} == bill_oracle.bill(happened)
    assert bill_oracle.bill(happened)["machine"] == (1_000 * 30 + 1_500 * 60 + 2_900 * 45) * 10_000 // 3_600


def test_prices_that_ec2_does_not_tell_delay_no_list(aws: FakeAws):
    provider = aws.provider()
    machine = provider.launch(launch_request())
    aws.control("end", region=REGION, instance=machine.id)
    aws.fault("error", "DescribeSpotPriceHistory")
    assert [(seen.state, seen.price_changes) for seen in provider.list("us")] == [("ended", ())]


# With the control loop


@pytest.fixture
def ec2_world(make_world: Callable[..., World], aws: FakeAws) -> World:
    world = make_world("ec2")
    aws.control("prices", **{"us-east-1a": {"g5.xlarge": "0.41"}})
    world.control_loop = world.another_control_loop(ec2=aws.provider())
    return world


@pytest.mark.any_database
def test_foreign_and_untagged_machines_are_never_touched_and_strays_are_terminated(ec2_world: World, aws: FakeAws):
    deployment = ec2_world.control_loop.deployment
    provider = aws.provider("us-east-1a", OTHER_ZONE)
    stray = provider.launch(launch_request("stray", deployment))
    other_region = provider.launch(launch_request("other", deployment, zone=OTHER_ZONE))
    kept = {
        provider.launch(launch_request("foreign", "another")).id,
        provider.launch(
            replace(launch_request("other-provider", deployment), tags={DEPLOYMENT_TAG: deployment, PROVIDER_TAG: "x"})
        ).id,
        aws.ec2().run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"],
    }
    for _ in range(2):
        ec2_world.tick(1)
    assert {instance["InstanceId"] for instance in aws.instances()} == kept
    assert stray.id not in kept
    ec2_world.control_loop = ec2_world.another_control_loop(ec2=provider)
    ec2_world.tick(1)
    assert aws.instances(OTHER_REGION) == []
    assert other_region.region == OTHER_REGION


@pytest.mark.any_database
def test_a_job_gets_one_machine_though_replies_are_lost_and_listings_lag(ec2_world: World, aws: FakeAws):
    aws.control("listing-lag", listings=3)
    aws.fault("lost_reply")
    aws.fault("lost_request")
    aws.fault("duplicate")
    job = ec2_world.submit(provider="ec2")
    for _ in range(6):
        ec2_world.tick(1)
    (row,) = ec2_world.machines(job)
    until(lambda: aws.instances())  # what this test lists lags as well
    (instance,) = aws.instances()
    assert (row.state, row.provider_id, row.type) == ("running", instance["InstanceId"], instance["InstanceType"])
    assert (row.market, row.price, instance["InstanceLifecycle"]) == ("spot", "0.41", "spot")
    assert row.image == instance["ImageId"] == IMAGE
    assert instance["ClientToken"] == str(row.id)
    assert {tag["Key"]: tag["Value"] for tag in instance["Tags"]} == {
        DEPLOYMENT_TAG: ec2_world.control_loop.deployment,
        PROVIDER_TAG: "ec2",
        "job": str(job),
        "attempt": "1",
        "slot": "0",
    }


@pytest.mark.any_database
@pytest.mark.parametrize(
    ("changed", "state"), [("no such zone", "running"), ("no such region", "running"), ("no such image", "terminated")]
)
def test_a_launch_whose_repetition_changed_settings_refuse_leaves_no_machine_that_no_row_has(
    ec2_world: World, aws: FakeAws, changed: str, state: str
):
    """Whether an earlier call launched it, the list alone says: the refusal is of the repetition."""
    aws.control("listing-lag", listings=UNLISTED)
    aws.fault("lost_reply")
    job = ec2_world.submit(provider="ec2")
    until(lambda: ec2_world.tick(1) or aws.calls("RunInstances"), every_s=0)
    zone = {"no such zone": f"{REGION}b", "no such region": OTHER_ZONE}.get(changed, ZONE)
    settings = aws.settings(zone)
    if changed == "no such image":
        region = settings.regions[REGION].model_copy(update={"image": "ami-0000dead0000dead0"})
        settings = settings.model_copy(update={"regions": {REGION: region}})
    ec2_world.control_loop = ec2_world.another_control_loop(ec2=aws.provider(settings=settings))
    until(lambda: ec2_world.tick(1) or ec2_world.machines(job)[0].refusal != "unknown", every_s=0)
    aws.control("listing-lag", listings=0)
    for _ in range(3):
        ec2_world.tick(1)
    (row,) = ec2_world.machines(job)
    (instance,) = aws.instances(states=("running", "terminated"))
    assert (row.state, row.provider_id) == (state, instance["InstanceId"])
    assert instance["State"]["Name"] == state
    with ec2_world.store.read() as db:
        assert db.sql.scalars(select(LeakRow)).all() == []


@pytest.mark.any_database
@pytest.mark.parametrize("changed", ["image", "python"])
def test_a_launch_that_is_repeated_with_other_parameters_gets_the_machine_that_its_first_call_made(
    ec2_world: World, aws: FakeAws, changed: str
):
    """The row's id is the token, so that EC2 answers a mismatch, as after `aws bootstrap` with another image."""
    aws.control("listing-lag", listings=UNLISTED)
    aws.fault("lost_reply")
    job = ec2_world.submit(provider="ec2")
    until(lambda: ec2_world.tick(1) or aws.calls("RunInstances"), every_s=0)
    settings = aws.settings(python="/opt/new/bin/python") if changed == "python" else aws.settings()
    if changed == "image":
        other = next(one["ImageId"] for one in aws.ec2().describe_images()["Images"] if one["ImageId"] != IMAGE)
        region = settings.regions[REGION].model_copy(update={"image": other})
        settings = settings.model_copy(update={"regions": {REGION: region}})
    ec2_world.control_loop = ec2_world.another_control_loop(ec2=aws.provider(settings=settings))
    until(lambda: ec2_world.tick(1) or len(aws.calls("RunInstances")) > 1, every_s=0)
    aws.control("listing-lag", listings=0)
    until(lambda: ec2_world.tick(1) or ec2_world.machines(job)[0].state == "running", every_s=0)
    sent = [call["parameters"] for call in aws.calls("RunInstances")]
    assert sent[0] != sent[1]
    assert sent[0]["ClientToken"] == sent[1]["ClientToken"]
    (row,), (instance,) = ec2_world.machines(job), aws.instances()
    assert (row.state, row.provider_id, row.image) == ("running", instance["InstanceId"], IMAGE)
    ec2_world.tick(1)
    assert len(aws.calls("RunInstances")) == len(sent), "it isn't asked for again"


@pytest.mark.any_database
def test_a_clock_that_is_ten_minutes_off_is_on_the_job_s_page_until_it_is_set(ec2_world: World, aws: FakeAws):
    off = [600.0]
    ec2_world.control_loop = ec2_world.another_control_loop(ec2=aws.provider(now=lambda: time.time() + off[0]))
    job = ec2_world.submit(provider="ec2")
    aws.fault("error", code="AuthFailure", status=401, message="It can't be validated", times=2)
    until(lambda: ec2_world.tick(1) or len(aws.calls("RunInstances")) >= 2)
    advice = "The clock of the service's computer is 10 minutes ahead of AWS's: set it"
    assert advice in status(ec2_world, job)
    off[0] = 0
    until(lambda: ec2_world.tick(1) or aws.instances())
    until(lambda: ec2_world.tick(1) or advice not in status(ec2_world, job))
    with ec2_world.store.read() as db:
        events = queries.load_job_events(db, ec2_world.job(job), 0, 100)
    told = [row.data["state"] for row in events if advice in str(row.reason)]
    assert told == ["launching"], "once"
    (machine,) = ec2_world.machines(job)
    assert machine.state == "running", "nothing was refused"


@pytest.mark.any_database
def test_a_clock_that_is_off_from_the_start_is_why_jobs_wait_and_they_start_once_it_is_set(
    ec2_world: World, aws: FakeAws
):
    provider = aws.provider(now=lambda: time.time() - 600)
    ec2_world.control_loop = ec2_world.another_control_loop(ec2=provider)
    asked = len(aws.calls("DescribeSpotPriceHistory"))
    aws.fault("error", "DescribeSpotPriceHistory", code="RequestExpired", status=400, message="Too old", times=2)
    job = ec2_world.submit(resources={"provider": "ec2", "gpu": "A10G"})
    ec2_world.tick(1)
    ec2_world.tick(1)
    said = status(ec2_world, job)
    assert "ec2 does not answer" in said
    assert "The clock of the service's computer is 10 minutes behind AWS's: set it" in said
    until(lambda: ec2_world.tick(1) or aws.instances())
    assert len(aws.calls("DescribeSpotPriceHistory")) >= asked + 3


def status(world: World, job: UUID) -> str:
    with world.store.read() as db:
        return status_of(queries.load_job_rows(db, queries.load_jobs(db, [job]))[0]).text()


@pytest.mark.any_database
def test_a_job_gets_the_gpus_the_zone_and_the_disk_that_its_spec_asks_for(
    make_world: Callable[..., World], aws: FakeAws
):
    world = make_world("ec2")
    settings = aws.settings(ZONE, "us-east-1b", simulated=True, max_price="10.00")
    aws.control("prices", **{ZONE: {"g5.12xlarge": "1.00", "g4dn.xlarge": "0.1"}})
    world.control_loop = world.another_control_loop(ec2=aws.provider(settings=settings))
    asked = {"gpu": ["A100:8", "A10G:4"], "zones": "us-east-1b", "disk": {"size": "200GB", "throughput": 500}}
    job = world.submit(resources={"nodes": 1, **asked})
    world.tick(1)
    world.tick(1)
    (row,), (instance,) = world.machines(job), aws.instances()
    assert (row.type, row.market, row.zone) == ("g5.12xlarge", "on_demand", "us-east-1b"), "spot is in another zone"
    assert instance["InstanceType"] == row.type
    assert instance["Placement"]["AvailabilityZone"] == row.zone
    (volume,) = aws.ec2().describe_volumes()["Volumes"]
    assert (volume["Size"], volume["Encrypted"]) == (187, True)
    world.form(job)
    run = world.order(row.id).run
    assert (run.nproc_per_node, run.task.device) == (4, "cpu"), "a rank for each GPU; the fake has none"
    assert [extra["what"] for extra in row.billing["extras"]] == [
        "187 GiB of gp3 with 3000 IOPS and 500 MiB/s", "a public IPv4 address",
    ]  # fmt: skip


@pytest.mark.any_database
def test_a_job_waits_for_its_quota_with_a_sentence_and_no_launch_is_sent_until_it_is_raised(
    make_world: Callable[..., World], aws: FakeAws
):
    world = make_world("ec2")
    aws.control("prices", **{ZONE: {"g5.xlarge": "0.41"}})
    aws.control("quotas", **{REGION: {SPOT_QUOTA: 0}})
    provider = aws.provider(monotonic=lambda: world.clock.now / S)
    world.control_loop = world.another_control_loop(ec2=provider)
    job = world.submit(resources={"nodes": 1, "provider": "ec2", "spot": "only"})
    for _ in range(20):
        world.tick(10)
    waiting = world.job(job)
    assert (waiting.state, waiting.wait_reason, waiting.wait_detail["code"]) == ("queued", "quota", "quota_below_need")
    assert (world.machines(job), aws.calls("RunInstances")) == ([], [])
    aws.control("quotas", **{REGION: {SPOT_QUOTA: 4}})
    world.tick(300)
    assert len(aws.instances()) == 1
    other = world.submit(resources={"nodes": 1, "provider": "ec2", "spot": "only"})
    world.tick(1)
    assert world.job(other).wait_detail["code"] == "quota_in_use"
    assert len(aws.calls("RunInstances")) == 1
