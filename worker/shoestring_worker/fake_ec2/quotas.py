# SPDX-License-Identifier: Apache-2.0
"""Quotas of instances, of which moto has none: in vCPUs, by region, market and family. Off until they are set.

source  docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html
        docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html (VcpuLimitExceeded,
        MaxSpotInstanceCountExceeded)
        docs.aws.amazon.com/servicequotas/2019-06-24/apireference/API_ListServiceQuotas.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoestring_worker.fake_ec2.moto_backend import MotoInstance, vcpus_of
from shoestring_worker.fake_ec2.spot_requests import MARKET
from shoestring_worker.fake_ec2.wire import Answer, Call, error_answer, json_answer

PAGE_SIZE = 2
"""Service Quotas may return fewer than it was asked for, and so does this: a client that stops early misses some."""

SPOT = {
    "g": "All G and VT Spot Instance Requests",
    "p4": "All P4, P3 and P2 Spot Instance Requests",
    "p3": "All P4, P3 and P2 Spot Instance Requests",
    "p5": "All P5 Spot Instance Requests",
    "t": "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests",
}
ON_DEMAND = {
    "g": "Running On-Demand G and VT instances",
    "p": "Running On-Demand P instances",
    "t": "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances",
}
"""Names by how a type begins."""


class Quotas:
    def __init__(self) -> None:
        self._vcpus: dict[str, dict[str, float]] = {}

    def set(self, vcpus: Mapping[str, Mapping[str, float]]) -> None:
        """By region and name; what isn't in it is unlimited."""
        self._vcpus = {region: dict(quotas) for region, quotas in vcpus.items()}

    def describe(self, call: Call) -> Answer:
        """The quotas that are set in the region, page by page."""
        quotas = sorted(self._vcpus.get(call.region, {}).items())
        begin = int(call.parameters.get("NextToken", 0))
        end = begin + PAGE_SIZE
        page = [{"ServiceCode": "ec2", "QuotaName": name, "Value": vcpus} for name, vcpus in quotas[begin:end]]
        return json_answer({"Quotas": page} | ({"NextToken": str(end)} if end < len(quotas) else {}))

    def refuse(self, call: Call, alive: Iterable[tuple[str, MotoInstance]]) -> Answer | None:
        """EC2's answer to a launch that exceeds a quota; None: it doesn't. `alive`: instances, with their regions."""
        spot = call.parameters.get(MARKET) == "spot"
        names = SPOT if spot else ON_DEMAND
        type_ = call.parameters.get("InstanceType", "")
        quota = _name(names, type_)
        if quota is None or (limit := self._vcpus.get(call.region, {}).get(quota)) is None:
            return None
        running = [
            one.type
            for region, one in alive
            if region == call.region and one.spot == spot and _name(names, one.type) == quota
        ]
        launched = [type_] * int(call.parameters.get("MinCount", 1))
        if sum(map(vcpus_of, running + launched)) <= limit:
            return None
        if spot:
            return error_answer(400, "MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
        return error_answer(
            400, "VcpuLimitExceeded",
            f"You have requested more vCPU capacity than your current vCPU limit of {limit:.0f} allows for the "
            "instance bucket that the specified instance type belongs to.",
        )  # fmt: skip


def _name(names: Mapping[str, str], type_: str) -> str | None:
    return next((name for begin, name in names.items() if type_.startswith(begin)), None)
