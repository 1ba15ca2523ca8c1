# SPDX-License-Identifier: Apache-2.0
"""Spot requests, of which moto makes none for RunInstances: one-time, open as long as their instance.

source  docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-request-status.html
        docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotInstanceRequests.html
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

from shoestring_worker.fake_ec2.wire import Answer, Call, error_answer, xml_answer

MARKET = "InstanceMarketOptions.MarketType"


@dataclass(frozen=True)
class SpotRequest:
    id: str
    region: str
    instance: str
    tags: dict[str, str]


class SpotRequests:
    def __init__(self) -> None:
        self._requests: dict[str, SpotRequest] = {}

    def clear(self) -> None:
        self._requests.clear()

    def note_launched(self, call: Call, instances: Iterable[str]) -> dict[str, str]:
        """Make the requests of a launch, if it is one on the spot market; returns their ids by instance."""
        if call.parameters.get(MARKET) != "spot":
            return {}
        for instance in instances:
            if instance not in self._requests:
                request = SpotRequest(f"sir-{secrets.token_hex(4)}", call.region, instance, _tags(call))
                self._requests[instance] = request
        return {instance: self._requests[instance].id for instance in instances}

    def open(self, has_ended: Callable[[str, str], bool | None]) -> list[str]:
        """Those whose instance has not ended. `has_ended`: by region and instance."""
        requests = self._requests.values()
        return [request.id for request in requests if has_ended(request.region, request.instance) is False]

    def describe(self, call: Call, has_ended: Callable[[str], bool | None]) -> Answer:
        """The region's requests, all of them or those in some states."""
        states: set[str] = set()
        for name, value in call.parameters.items():
            if name.startswith("Filter.1.Value."):
                states.add(value)
            elif name.startswith(("Filter.", "SpotInstanceRequestId.")) and (name, value) != ("Filter.1.Name", "state"):
                return error_answer(400, "InvalidParameterValue", "the fake filters spot requests by state alone")
        items = []
        for request in self._requests.values():
            state = "active" if has_ended(request.instance) is False else "closed"
            if request.region == call.region and (not states or state in states):
                items.append(_item(request, state))
        body = f"<spotInstanceRequestSet>{''.join(items)}</spotInstanceRequestSet>"
        return xml_answer(
            "200 OK", f"<DescribeSpotInstanceRequestsResponse>{body}</DescribeSpotInstanceRequestsResponse>"
        )


def _tags(call: Call) -> dict[str, str]:
    """Of the request: TagSpecification.N.ResourceType and .Tag.M.Key and .Value."""
    prefixes = [
        name.removesuffix("ResourceType")
        for name, value in call.parameters.items()
        if name.endswith(".ResourceType") and value == "spot-instances-request"
    ]
    return {
        value: call.parameters[f"{name.removesuffix('Key')}Value"]
        for name, value in call.parameters.items()
        if name.endswith(".Key") and any(name.startswith(prefix) for prefix in prefixes)
    }


def _item(request: SpotRequest, state: str) -> str:
    tags = "".join(
        f"<item><key>{escape(key)}</key><value>{escape(value)}</value></item>" for key, value in request.tags.items()
    )
    return (
        f"<item><spotInstanceRequestId>{request.id}</spotInstanceRequestId><instanceId>{request.instance}</instanceId>"
        f"<state>{state}</state><type>one-time</type><tagSet>{tags}</tagSet></item>"
    )
