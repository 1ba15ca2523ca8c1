# SPDX-License-Identifier: Apache-2.0
"""What machines there are and what they cost, as the API lists them."""

from __future__ import annotations

from typing import Any

import pytest
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.timeouts import S
from shoestring_core.store.fleet.offers import save_offers
from shoestring_core.store.tables import MachineRow, ProviderRow
from sqlalchemy import update

from tests.api.deployment import Deployment

pytestmark = pytest.mark.any_database

SERVED = Offer(
    "ec2", "us-east-1", "us-east-1a", "g6.xlarge", "spot", "0.30", "0.8048", 4, "EC2", False,
    Hardware(4, 16384, "L4", 1, 24576), ">20%",
)  # fmt: skip


def offers(deployment: Deployment, **parameters: str) -> list[dict[str, Any]]:
    answer = deployment.member.get("/v1/offers", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()["offers"]


def test_offers_are_ranked_by_price_and_say_where_their_prices_come_from(deployment: Deployment) -> None:
    listed = offers(deployment)
    prices = [float(offer["price_per_hour"]["amount"]) for offer in listed]
    assert prices == sorted(prices)
    (served,) = (offer for offer in listed if offer["available"])
    assert (served["provider"], served["type"], served["price_source"]) == ("local", "local.cpu", "test")
    assert served["fetched_at"] is not None
    known = next(offer for offer in listed if not offer["available"])
    assert (known["type"], known["gpu"], known["gpus"], known["gpu_memory_mib"]) == ("g4dn.xlarge", "T4", 1, 16384)
    assert (known["fetched_at"], known["simulated"], known["zone"]) == (None, False, "")
    assert "2025-07" in known["price_source"]


@pytest.mark.parametrize(
    ("parameters", "gpus"), [({"gpu": "l4"}, {"L4"}), ({"gpu": "H100"}, {"H100"}), ({"gpu": "RTX"}, set())]
)
def test_offers_are_chosen_by_gpu(deployment: Deployment, parameters: dict[str, str], gpus: set[str]) -> None:
    assert {offer["gpu"] for offer in offers(deployment, **parameters)} == gpus


def test_offers_are_chosen_by_region(deployment: Deployment) -> None:
    assert {offer["provider"] for offer in offers(deployment, region="local")} == {"local"}
    assert {offer["region"] for offer in offers(deployment, region="us-east-1")} == {"us-east-1"}
    assert offers(deployment, region="eu-west-1") == []


def test_of_a_provider_that_is_served_only_what_it_offers_is_listed(deployment: Deployment) -> None:
    deployment.store.write(lambda db: save_offers(db, "ec2", [SERVED], deployment.state.timeouts))
    (listed,) = (offer for offer in offers(deployment) if offer["provider"] == "ec2")
    assert (listed["available"], listed["zone"], listed["price_per_hour"]["amount"]) == (True, "us-east-1a", "0.30")
    assert listed["interruption"] == ">20%"


def test_a_provider_that_workers_no_longer_serve_is_not_available(deployment: Deployment) -> None:
    deployment.store.write(lambda db: save_offers(db, "ec2", [SERVED], deployment.state.timeouts))
    long_ago = (
        update(ProviderRow).where(ProviderRow.name == "ec2").values(answered_at=ProviderRow.answered_at - 3_700 * S)
    )
    deployment.store.write(lambda db: db.sql.execute(long_ago))
    (listed,) = (offer for offer in offers(deployment) if offer["provider"] == "ec2")
    assert (listed["available"], listed["fetched_at"] is None) == (False, False)


def test_what_is_left_out_has_its_reason(deployment: Deployment) -> None:
    left_out = deployment.member.get("/v1/offers").json()["not_offered"]
    reasons = {kind: one["reason"]["code"] for one in left_out for kind in one["types"] + one["regions"]}
    assert (reasons["p3"], reasons["g5g"], reasons["g4ad"]) == ("gpu_too_old", "other_architecture", "other_gpu_maker")
    assert reasons["eu-west-1"] == "prices_unknown"


def test_offers_are_told_to_members_only(deployment: Deployment) -> None:
    assert deployment.nobody.get("/v1/offers").status_code == 401
    assert deployment.member.get("/v1/offers?gpus=1").status_code == 422


def test_the_cost_of_real_machines_says_that_its_prices_are_those_of_a_list(deployment: Deployment) -> None:
    job, _ = deployment.running()
    assert deployment.job(job).cost.price_basis == "simulated"
    deployment.store.write(lambda db: db.sql.execute(update(MachineRow).values(simulated=False)))
    assert deployment.job(job).cost.price_basis == "snapshot"
