# SPDX-License-Identifier: Apache-2.0
"""A job that nobody has a machine for: which condition nobody meets, and the nearest that somebody does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from shoestring_core import catalog, spec
from shoestring_core.decide.billing import BillingRules
from shoestring_core.decide.offers import Hardware, Offer
from shoestring_core.decide.placement import Placement, rank_offers, require_machines
from shoestring_core.decide.requirements import Requirements
from shoestring_core.errors import InvalidSpec, Problem

from tests.core.decide.test_disks import DISK

LOCAL = Offer("local", "local", "", "local.cpu", "spot", "0.158", "0.526", 4, "test", True, Hardware(2, 4096))
EC2 = [
    replace(offer, disk=DISK)
    for offer in catalog.price_list_of("ec2").offers({"us-east-1": ["us-east-1a", "us-east-1b"]}, 4, BillingRules())
    if float(offer.on_demand_price) <= 2
]
ALL = [LOCAL, *EC2]


def placement(offers: list[Offer], **resources: Any) -> Placement:
    parsed = spec.parse({"recipe": "digits/quickstart", "resources": resources})
    return rank_offers(offers, Requirements.of(parsed.resources))


def problem(offers: list[Offer], **resources: Any) -> Problem:
    with pytest.raises(InvalidSpec) as refused:
        require_machines(placement(offers, **resources))
    (only,) = refused.value.problems
    return only


@pytest.mark.parametrize(
    ("resources", "type_"),
    [
        ({}, "local.cpu"),
        ({"gpu": "any"}, "g4dn.xlarge"),
        ({"gpu": "A10G"}, "g5.xlarge"),
        ({"gpu": "24GB.."}, "g6.xlarge"),
        ({"gpu": ["H100", "L40S:1"]}, "g6e.xlarge"),
        ({"gpu": "A10G", "zones": "us-east-1b"}, "g5.xlarge"),
        ({"instance": "g6.2xlarge", "spot": "never"}, "g6.2xlarge"),
        ({"regions": ["eu-west-1", "us-east-1"]}, "g4dn.xlarge"),
        ({"disk": {"size": "1TB"}}, "g4dn.xlarge"),
        ({"procs": 2}, "local.cpu"),
    ],
)
def test_a_job_gets_the_cheapest_machine_that_has_all_it_requires(resources: dict[str, Any], type_: str):
    found = placement(ALL, **resources)
    require_machines(found)
    assert found.best is not None
    assert found.best.type == type_


REFUSED = {
    "unknown type": ({"instance": "g5.xlage"}, "/resources/instance", "g5.xlarge", "Did you mean g5.xlarge?"),
    "type that is left out": (
        {"instance": "p3.2xlarge"}, "/resources/instance", None,
        "p3.2xlarge is left out. Its GPU has compute capability 7.0; the pinned PyTorch needs 7.5 or higher.",
    ),
    "GPU that no region has": (
        {"gpu": "A100:8"}, "/resources/gpu", None,
        "which the settings of this service leave out: by its price, region or zone. The nearest is g6e.xlarge of ec2",
    ),
    "number of GPUs that no machine has": (
        {"gpu": "A100:3"}, "/resources/gpu", None,
        "No machine is offered with `gpu: A100:3`. The nearest is g6e.xlarge",
    ),
    "more processes than GPUs": (
        {"gpu": "any", "procs": 4}, "/resources/procs", None,
        "ec2 has g4dn.12xlarge (4 × T4 with 16 GB) for $3.912 per hour on demand, which the settings of this service",
    ),
    "misspelt GPU": ({"gpu": "A10"}, "/resources/gpu", "A10G", "No GPU called A10 is known. Did you mean A10G?"),
    "GPU that nobody has heard of": (
        {"gpu": "MI300X"}, "/resources/gpu", None,
        "No GPU called MI300X is known; there are A100, A10G, B200, H100, H200, L4, L40S, T4.",
    ),
    "GPU that is too old": (
        {"gpu": "v100"}, "/resources/gpu", None,
        "v100 is left out. Its GPU has compute capability 7.0; the pinned PyTorch needs 7.5 or higher.",
    ),
    "region without offers": (
        {"regions": "eu-west-1"}, "/resources/regions", None,
        "ec2 has machines in eu-west-1, but this service isn't set up for it, or can't read its prices.",
    ),
    "misspelt region": ({"regions": "us-est-1"}, "/resources/regions", "us-east-1", "Did you mean us-east-1?"),
    "misspelt zone": ({"zones": ["us-east-1x"]}, "/resources/zones", "us-east-1b", "Did you mean us-east-1b?"),
    "disk that is too large": (
        {"gpu": "any", "disk": {"size": "20TB"}}, "/resources/disk", None,
        "No machine is offered with `disk: 18,627 GiB`. Disks of ec2 (gp3) have at most 16,384 GiB",
    ),
    "conditions that are met apart, but not together": (
        {"gpu": "A10G", "instance": "g6.xlarge"}, "/resources/instance", None,
        "Machines are offered with `instance: g6.xlarge`, or with `gpu: A10G`, but none with all of it. The nearest is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_nobody_has_is_refused_with_what_to_do(case: str):
    resources, pointer, suggestion, sentence = REFUSED[case]
    found = problem(ALL, **resources)
    assert (found.pointer, found.code, found.suggestion) == (pointer, "no-such-machine", suggestion)
    assert sentence in found.message


def test_a_service_that_rents_no_gpus_says_who_has_them():
    found = problem([LOCAL], gpu="A10G")
    assert found.message == (
        "No machine is offered with `gpu: A10G`. ec2 has g5.xlarge (1 × A10G with 24 GB) for $1.006 per hour on "
        "demand, but no worker of this service serves ec2. The nearest is local.cpu of local (no GPU, spot, $0.158 per "
        "hour): change resources.gpu to get it."
    )
    assert "have no disk that a job could choose" in problem([LOCAL], disk={"size": "10GB"}).message


@pytest.mark.parametrize("offers", [[], [LOCAL]])
@pytest.mark.parametrize(
    ("resources", "pointer", "sentence"),
    [
        ({"gpu": "A10Q"}, "/resources/gpu", "No GPU called A10Q is known. Did you mean A10G?"),
        ({"gpu": ["A10Q:4", "H1OO"]}, "/resources/gpu", "No GPU called A10Q is known. Did you mean A10G?"),
        ({"instance": "g5.xlage"}, "/resources/instance", "Did you mean g5.xlarge?"),
        (
            {"provider": "ec2", "gpu": "MI300X"},
            "/resources/gpu",
            "No GPU called MI300X is known; there are A100, A10G,",
        ),
        ({"provider": "ec2", "gpu": "V100"}, "/resources/gpu", "V100 is left out. Its GPU has compute capability 7.0"),
        ({"provider": "ec2", "instance": "p3.2xlarge"}, "/resources/instance", "p3.2xlarge is left out. Its GPU has"),
    ],
)
def test_a_name_that_nobody_has_is_refused_before_its_provider_has_said_what_there_is(
    offers: list[Offer], resources: dict[str, Any], pointer: str, sentence: str
):
    found = problem(offers, **resources)
    assert (found.pointer, found.code) == (pointer, "no-such-machine")
    assert sentence in found.message


def test_a_job_waits_for_what_may_change_by_itself():
    for offers, resources in (
        ([], {"gpu": "A10G"}),  # nobody has said yet what there is
        ([], {"gpu": "24GB.."}),
        ([], {"gpu": ["A10Q", "A10G"]}),
        ([], {"gpu": "MI300X"}),  # a provider without a built-in list may have it
        ([], {"provider": "other", "instance": "big.gpu"}),
        ([LOCAL], {"provider": "ec2", "gpu": "A10G"}),
        ([replace(LOCAL, market="on_demand")], {"spot": "only"}),
        ([one for one in EC2 if one.market == "on_demand"], {"gpu": "A10G", "spot": "only"}),
    ):
        found = placement(offers, **resources)
        require_machines(found)
        assert found.best is None
        assert found.no_offer.text()


def test_a_job_waits_for_a_provider_that_has_not_said_yet_what_it_offers_unless_nobody_has_its_machines():
    require_machines(placement([LOCAL], gpu="A10G"), {"ec2"})
    for resources, unanswered in (({"gpu": "A10Q"}, {"ec2"}), ({"gpu": "A10G"}, set()),
                                  ({"gpu": "A10G", "provider": "local"}, {"ec2"})):  # fmt: skip
        with pytest.raises(InvalidSpec):
            require_machines(placement([LOCAL], **resources), unanswered)


def test_an_offer_that_misses_least_is_the_nearest():
    near = placement(ALL, gpu="A10G", zones="us-east-1a", spot="only", disk={"size": "20TB"}).no_offer.nearest
    assert near is not None
    assert (near.type, near.place, near.missed) == ("g5.xlarge", "us-east-1a", ("disk",))
    near = placement([LOCAL, EC2[0]], gpu="H100", regions="us-east-1").no_offer.nearest
    assert near is not None
    assert (near.provider, near.missed) == ("ec2", ("gpu",))
