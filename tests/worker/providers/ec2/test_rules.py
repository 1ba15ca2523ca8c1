# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the EC2 provider: error codes, states, request limits, settings, offers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError
from shoestring_core.decide.placement import rank_offers
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.decide.timeouts import S
from shoestring_worker.providers.ec2.errors import MEANINGS, meaning_of
from shoestring_worker.providers.ec2.instances import STATES, read_instance
from shoestring_worker.providers.ec2.offers import make_offers, merge, price_changes, read_spot_prices
from shoestring_worker.providers.ec2.rate_limits import LIMITS, RateLimits
from shoestring_worker.providers.ec2.settings import Ec2Region, Ec2Settings, read_settings
from shoestring_worker.providers.registry import open_providers
from shoestring_worker.settings import WorkerSettings

SUBNETS = {"us-east-1a": "subnet-0a0a0a0a", "us-east-1b": "subnet-0b0b0b0b"}
REGION = {"image": "ami-00000000000000001", "subnets": SUBNETS}

# Error codes


def test_every_error_code_names_the_page_that_describes_it():
    assert all(meaning.page.startswith("docs.aws.amazon.com/") for meaning in MEANINGS.values())


@pytest.mark.parametrize(
    ("code", "status", "refusal"),
    [
        ("InsufficientInstanceCapacity", 500, RefusalKind.CAPACITY),
        ("Unsupported", 400, RefusalKind.CAPACITY),
        ("SpotMaxPriceTooLow", 400, RefusalKind.PRICE),
        ("VcpuLimitExceeded", 400, RefusalKind.QUOTA),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", 403, RefusalKind.ACCOUNT),
        ("InvalidAMIID.Unavailable", 400, RefusalKind.IMAGE),
        ("InvalidGroup.NotFound", 400, RefusalKind.INVALID),
        ("IdempotentParameterMismatch", 400, None),
        ("IdempotentInstanceTerminated", 400, None),
        ("RequestLimitExceeded", 503, None),
        ("Throttling", 400, None),
        ("ThrottlingException", 400, None),
        ("ExpiredTokenException", 400, None),
        ("AccessDeniedException", 400, RefusalKind.ACCOUNT),
        ("AuthFailure", 401, RefusalKind.REGION),
        ("PendingVerification", 400, RefusalKind.REGION),
        ("ExpiredToken", 400, None),
        ("NeverHeardOf", 500, None),
        ("NeverHeardOf", 0, None),
    ],
)
def test_an_error_code_means_a_refusal_only_where_nothing_can_have_been_launched(code, status, refusal):
    assert meaning_of(code, status).refusal == refusal


# States


def instance(state: str, reason: str = "", transition: str = "") -> dict[str, Any]:
    return {
        "InstanceId": "i-1",
        "ClientToken": "t",
        "State": {"Name": state},
        "StateReason": {"Code": reason},
        "StateTransitionReason": transition,
        "LaunchTime": datetime(2026, 11, 27, 12, tzinfo=UTC),
        "Tags": [{"Key": "shoestring", "Value": "us"}],
    }


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("pending", "pending"),
        ("running", "running"),
        ("shutting-down", "stopping"),
        ("stopping", "stopping"),
        ("stopped", "stopping"),
        ("terminated", "ended"),
    ],
)
def test_a_machine_has_ended_only_once_ec2_calls_it_terminated(state, expected):
    machine = read_instance("ec2", "us-east-1", instance(state, "Client.UserInitiatedShutdown"))
    assert machine.state == expected
    assert (machine.end_cause is not None) == (expected in ("stopping", "ended"))
    assert set(STATES) >= {state}


@pytest.mark.parametrize(
    ("transition", "seconds"),
    [
        ("User initiated (2026-11-27 12:00:05 GMT)", 5),
        ("Service initiated (2026-11-27 12:01:00 GMT)", 60),
        ("User initiated (2026-11-27 12:00:05 UTC)", 5),
        ("User initiated", None),
        ("", None),
    ],
)
def test_the_end_of_a_machine_is_read_in_ec2_s_words_and_otherwise_not_known(transition, seconds):
    machine = read_instance("ec2", "us-east-1", instance("terminated", "Client.UserInitiatedShutdown", transition))
    assert machine.ended_at == (None if seconds is None else machine.launched_at + seconds * S)


def test_an_instance_without_state_reason_tags_and_token_can_be_read():
    bare = {key: value for key, value in instance("running").items() if key in ("InstanceId", "State", "LaunchTime")}
    machine = read_instance("ec2", "us-east-1", bare)
    assert (machine.token, machine.tags) == ("", {})


# Request limits


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_calls_wait_for_their_token_and_never_exceed_the_limit():
    time = Time()
    bucket = RateLimits(lambda: time.now, time.sleep).bucket("us-east-1", "RunInstances")
    sent = []
    for _ in range(500):
        assert bucket.take(patience_s=60)
        sent.append(time.now)
    limit = LIMITS["RunInstances"]
    for number, at in enumerate(sent):
        assert number + 1 <= limit.size + at * limit.per_s + 1e-6
    assert sent[-1] == pytest.approx((500 - limit.size) / limit.per_s)


def test_a_call_that_would_wait_too_long_takes_no_token():
    time = Time()
    bucket = RateLimits(lambda: time.now, time.sleep).bucket("us-east-1", "RunInstances")
    assert all(bucket.take(0) for _ in range(5))
    assert not any(bucket.take(0.4) for _ in range(100))
    assert bucket.take(0.5)
    assert time.now == 0.5


def test_terminations_do_not_wait_for_launches_nor_regions_for_each_other():
    time = Time()
    limits = RateLimits(lambda: time.now, time.sleep)
    assert not all(limits.bucket("us-east-1", "RunInstances").take(0) for _ in range(10))
    assert limits.bucket("us-east-1", "TerminateInstances").take(0)
    assert limits.bucket("eu-west-1", "RunInstances").take(0)


def test_after_a_throttled_call_the_next_one_waits():
    time = Time()
    bucket = RateLimits(lambda: time.now, time.sleep).bucket("us-east-1", "RunInstances")
    bucket.empty()
    assert not bucket.take(0.4)
    assert bucket.take(0.5)


# Settings


def worker_settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> WorkerSettings:
    defaults = {
        "DATABASE_URL": "sqlite://", "OBJECT_STORE": "/nowhere", "MACHINEHOST_FILE": "/nowhere",
        "AGENT_URL": "https://shoestring.example",
    }  # fmt: skip
    for name, value in (defaults | variables).items():
        monkeypatch.setenv(f"SHOESTRING_{name}", value)
    return WorkerSettings()


def test_ec2_is_off_unless_it_is_named_and_then_needs_its_regions(monkeypatch: pytest.MonkeyPatch):
    assert list(open_providers(worker_settings(monkeypatch))) == ["local"]
    settings = worker_settings(monkeypatch, PROVIDERS="local,ec2")
    with pytest.raises(ValueError, match=r"^SHOESTRING_EC2_REGIONS is not set\.$"):
        open_providers(settings)
    monkeypatch.setenv("SHOESTRING_EC2_REGIONS", "{us-east-1: {image: ami-1}}")  # what a shell makes of JSON
    with pytest.raises(ValueError, match=r"SHOESTRING_EC2_REGIONS is not JSON, .* in single quotes"):
        open_providers(settings)
    monkeypatch.setenv("SHOESTRING_EC2_REGIONS", json.dumps({"us-east-1": REGION}))
    managed = open_providers(settings)
    assert managed["ec2"].timeouts.consistency_window == 300 * S
    assert managed["ec2"].timeouts.machine_lease == settings.timeouts.machine_lease
    assert managed["local"].timeouts == settings.timeouts


@pytest.mark.parametrize(
    ("agent_url", "endpoint", "allowed"),
    [
        ("http://shoestring.example", "", False),
        ("http://127.0.0.1:8000", "http://127.0.0.1:5000", True),
        ("http://127.0.0.1:8000", "http://localhost:5000", True),
        ("http://127.0.0.1:8000", "http://192.0.2.1:5000", False),
        ("https://shoestring.example", "", True),
    ],
)
def test_machines_on_ec2_reach_the_service_over_https(monkeypatch, agent_url, endpoint, allowed):
    monkeypatch.setenv("SHOESTRING_EC2_REGIONS", json.dumps({"us-east-1": REGION}))
    if endpoint:
        monkeypatch.setenv("SHOESTRING_EC2_ENDPOINT_URL", endpoint)
    settings = worker_settings(monkeypatch, PROVIDERS="ec2", AGENT_URL=agent_url)
    if allowed:
        assert list(open_providers(settings)) == ["ec2"]
    else:
        with pytest.raises(ValueError, match=r"AGENT_URL is http://.*; machines on EC2 need an https:// URL"):
            open_providers(settings)


@pytest.mark.parametrize("zone", ["us-east-1-bos-1a", "us-east-1-wl1-bos-wlz-1", "us-east-1", "us-west-2a"])
def test_only_availability_zones_of_the_region_can_be_configured(zone):
    with pytest.raises(ValueError, match="is not an Availability Zone of us-east-1"):
        Ec2Settings(regions={"us-east-1": Ec2Region(image=REGION["image"], subnets={zone: "subnet-0a0a0a0a"})})


@pytest.mark.parametrize("region", ["us_east_1", "us east-1", "us-east", "US-EAST-1", "-1"])
def test_a_name_that_no_region_can_have_is_refused_as_a_setting(region):
    subnets = {f"{region}a": "subnet-0a0a0a0a"}
    with pytest.raises(ValidationError, match="regions"):
        Ec2Settings(regions={region: Ec2Region(image=REGION["image"], subnets=subnets)})


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ("cost-centre", "is not key=value"),
        ("=4711", "is not key=value"),
        ("a=1,a=2", "a is there twice"),
        ("shoestring=x", "is set by Shoestring"),
        ("Job=x", "is set by Shoestring"),
        ("aws:cloudformation:stack-name=x", "is set by Shoestring or AWS"),
        (f"k={'x' * 257}", "is nothing that AWS takes"),
        ("k=a*b", "is nothing that AWS takes"),
        (",".join(f"k{n}=" for n in range(41)), "at most 40"),
    ],
)
def test_tags_that_aws_or_we_would_not_take_are_refused_as_a_setting(
    monkeypatch: pytest.MonkeyPatch, tags: str, problem: str
):
    monkeypatch.setenv("SHOESTRING_EC2_REGIONS", json.dumps({"us-east-1": REGION}))
    monkeypatch.setenv("SHOESTRING_EC2_TAGS", tags)
    with pytest.raises(ValueError, match=problem):
        read_settings()


def test_tags_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHOESTRING_EC2_REGIONS", json.dumps({"us-east-1": REGION}))
    assert read_settings().tags == {}
    monkeypatch.setenv("SHOESTRING_EC2_TAGS", "cost-centre=4711, url=https://a.example/x=y,empty=")
    assert read_settings().tags == {"cost-centre": "4711", "url": "https://a.example/x=y", "empty": ""}


# Offers


def configured(**regions: dict[str, str]) -> Ec2Settings:
    return Ec2Settings(
        regions={name.replace("_", "-"): Ec2Region(image=REGION["image"], subnets=of) for name, of in regions.items()}
    )


def test_each_type_is_offered_in_each_configured_zone_spot_never_above_on_demand():
    offers = make_offers("ec2", configured(us_east_1=SUBNETS))
    assert {offer.zone for offer in offers} == set(SUBNETS)
    for offer in offers:
        assert (offer.provider, offer.region, offer.simulated, offer.slots) == ("ec2", "us-east-1", False, 4)
        assert offer.billing.minimum == 60 * S
        assert 0 < Decimal(offer.price) <= Decimal(offer.on_demand_price) <= 2
        assert (offer.price == offer.on_demand_price) == (offer.market == "on_demand")
        assert offer.hardware is not None
        assert offer.hardware.gpus >= 1
    cheapest = rank_offers(offers, Requirements()).ranked[0]
    assert (cheapest.type, cheapest.market, cheapest.price) == ("g4dn.xlarge", "spot", "0.1894")
    assert (cheapest.interruption, cheapest.hardware.gpu, cheapest.hardware.gpu_memory_mib) == ("15-20%", "T4", 16384)


def test_what_costs_more_than_the_settings_allow_is_not_offered():
    settings = configured(us_east_1=SUBNETS)
    for most, dearest in (("0.60", "0.526"), ("2.00", "1.861"), ("9999", "113.9328")):
        offers = make_offers("ec2", settings.model_copy(update={"max_price": most}))
        assert max(Decimal(offer.on_demand_price) for offer in offers) == Decimal(dearest)


def test_nothing_is_offered_where_its_price_is_not_known():
    assert make_offers("ec2", configured(eu_west_1={"eu-west-1a": "subnet-0a0a0a0a"})) == []


def test_spot_prices_are_kept_by_time_and_cut_to_a_machine_s_life():
    def price(hour: int, amount: str) -> dict[str, Any]:
        time = datetime(2026, 11, 27, hour, tzinfo=UTC)
        return {"AvailabilityZone": "a", "InstanceType": "t", "SpotPrice": amount, "Timestamp": time}

    changes = read_spot_prices([price(3, "0.30"), price(2, "0.2"), price(1, "0.1")])
    hours = [datetime(2026, 11, 27, hour, tzinfo=UTC).timestamp() * S for hour in (1, 2, 3)]
    assert changes == {("a", "t"): ((hours[0], "0.1"), (hours[1], "0.2"), (hours[2], "0.3"))}
    assert merge(read_spot_prices([price(1, "0.1")]), read_spot_prices([price(3, "0.3"), price(2, "0.2")])) == changes
    held = price_changes(changes, "a", "t", round(hours[1]) + 1, round(hours[2]))
    assert held == changes["a", "t"][1:2], "the one before, and those before its end"
