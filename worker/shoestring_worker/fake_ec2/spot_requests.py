# SPDX-License-Identifier: Apache-2.0
"""Spot requests, of which moto makes none for RunInstances: one-time, open as long as their instance.

One that RequestSpotInstances makes stays open without an instance, until it is cancelled; cancelling ends no instance.

source  docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-request-status.html
        docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotInstanceRequests.html
        docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CancelSpotInstanceRequests.html
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape

from shoestring_worker.fake_ec2.wire import Answer, Call, error_answer, xml_answer

MARKET = "InstanceMarketOptions.MarketType"
KIND = "spot-instances-request"


@dataclass(frozen=True)
class SpotRequest:
    """`instance`: "": none yet."""

    id: str
    region: str
    instance: str
    tags: dict[str, str]


class SpotRequests:
    def __init__(self) -> None:
        self._requests: dict[str, SpotRequest] = {}
        """By instance, or by its own id if it has none."""
        self._cancelled: set[str] = set()

    def clear(self) -> None:
        self._requests.clear()
        self._cancelled.clear()

    def request(self, call: Call) -> Answer:
        """Make one that stays open."""
        request = SpotRequest(f"sir-{secrets.token_hex(4)}", call.region, "", tags_of(call, KIND))
        self._requests[request.id] = request
        body = f"<spotInstanceRequestSet>{_item(request, 'open')}</spotInstanceRequestSet>"
        return xml_answer("200 OK", f"<RequestSpotInstancesResponse>{body}</RequestSpotInstancesResponse>")

    def cancel(self, call: Call) -> Answer:
        ids = {value for name, value in call.parameters.items() if name.startswith("SpotInstanceRequestId.")}
        if unknown := ids - {one.id for one in self._requests.values() if one.region == call.region}:
            return error_answer(400, "InvalidSpotInstanceRequestID.NotFound", f"{min(unknown)} does not exist")
        self._cancelled |= ids
        items = "".join(
            f"<item><spotInstanceRequestId>{id_}</spotInstanceRequestId><state>cancelled</state></item>" for id_ in ids
        )
        body = f"<spotInstanceRequestSet>{items}</spotInstanceRequestSet>"
        return xml_answer("200 OK", f"<CancelSpotInstanceRequestsResponse>{body}</CancelSpotInstanceRequestsResponse>")

    def note_launched(self, call: Call, instances: Iterable[str]) -> dict[str, str]:
        """Make the requests of a launch, if it is one on the spot market; returns their ids by instance."""
        if call.parameters.get(MARKET) != "spot":
            return {}
        for instance in instances:
            if instance not in self._requests:
                request = SpotRequest(f"sir-{secrets.token_hex(4)}", call.region, instance, tags_of(call, KIND))
                self._requests[instance] = request
        return {instance: self._requests[instance].id for instance in instances}

    def open(self, has_ended: Callable[[str, str], bool | None]) -> list[str]:
        """Those whose instance has not ended. `has_ended`: by region and instance."""
        return [
            request.id
            for request in self._requests.values()
            if self._state(request, has_ended(request.region, request.instance)) in ("open", "active")
        ]

    def _state(self, request: SpotRequest, ended: bool | None) -> str:
        if request.id in self._cancelled:
            return "cancelled"
        if not request.instance:
            return "open"
        return "active" if ended is False else "closed"

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
            state = self._state(request, has_ended(request.instance))
            if request.region == call.region and (not states or state in states):
                items.append(_item(request, state))
        body = f"<spotInstanceRequestSet>{''.join(items)}</spotInstanceRequestSet>"
        return xml_answer(
            "200 OK", f"<DescribeSpotInstanceRequestsResponse>{body}</DescribeSpotInstanceRequestsResponse>"
        )


def tags_of(call: Call, kind: str) -> dict[str, str]:
    """Of one kind of what a call makes: TagSpecification.N.ResourceType and .Tag.M.Key and .Value."""
    prefixes = [
        name.removesuffix("ResourceType")
        for name, value in call.parameters.items()
        if name.endswith(".ResourceType") and value == kind
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
    instance = f"<instanceId>{request.instance}</instanceId>" if request.instance else ""
    return (
        f"<item><spotInstanceRequestId>{request.id}</spotInstanceRequestId>{instance}"
        f"<state>{state}</state><type>one-time</type><tagSet>{tags}</tagSet></item>"
    )
