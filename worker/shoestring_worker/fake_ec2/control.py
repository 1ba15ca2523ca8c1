# SPDX-License-Identifier: Apache-2.0
"""Requests below /_fake/, which steer the fake and tell what was asked of it.

POST /_fake/faults       {"action": "RunInstances", "kind": "lost_reply", …}   the fields of faults.Fault
POST /_fake/limits       {"RunInstances": {"size": 5, "per_s": 2}, …}          {}: no limits
POST /_fake/listing-lag  {"listings": 3}                               without those launched from now on; 0: all
POST /_fake/prices       {"us-east-1a": {"g5.xlarge": "0.41"}, …}              spot prices from now on; {}: none
POST /_fake/on-demand    {"eu-west-1": {"g5.xlarge": "1.123"}, …}      on-demand prices of other regions; {}: none
POST /_fake/past-prices  {"at": 1800000000, "prices": {…}}                     that held since then (s UTC)
POST /_fake/quotas       {"us-east-1": {"All G and VT Spot Instance Requests": 8}, …}  vCPUs; {}: none
POST /_fake/end          {"region": …, "instance": …, "code": …, "message": …, "life": [launch, end]}  (s UTC)
POST /_fake/interrupt    {"instance": …, "notice_s": 120}              with a notice in its metadata
POST /_fake/rebalance    {"instance": …}                               a recommendation in its metadata
POST /_fake/reset
GET  /_fake/left         what has not ended, of all regions
GET  /_fake/calls        every call so far, with its parameters
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shoestring_worker.fake_ec2.faults import Fault
from shoestring_worker.fake_ec2.server import FakeEc2, StartResponse, WrongKey, WsgiApp
from shoestring_worker.fake_ec2.throttling import Limit
from shoestring_worker.fake_ec2.wire import Environ

PREFIX = "/_fake/"


class EndRequest(BaseModel):
    """`code` and `message` of the state reason: docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html"""

    model_config = ConfigDict(extra="forbid")

    region: str
    instance: str
    code: str = "Server.SpotInstanceTermination"
    message: str = ""
    life: tuple[int, int] | None = None


class MachineRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    instance: str
    notice_s: Annotated[float, Field(ge=0, le=3_600)] = 120.0


class PastPrices(BaseModel):
    model_config = ConfigDict(extra="forbid")

    at: int
    prices: dict[str, dict[str, str]]


class LagRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    listings: int


def with_control(fake: FakeEc2) -> WsgiApp:
    """The application that serves these requests as well."""

    def serve(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if not path.startswith(PREFIX):
            return fake(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        try:
            fake.require_key(environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer "))
            status, answer = "200 OK", _control(fake, f"{environ['REQUEST_METHOD']} {path}", body)
        except WrongKey:
            status, answer = "401 UNAUTHORIZED", {"error": "send Authorization: Bearer with the fake's access_key_id"}
        except (ValidationError, KeyError) as error:
            status, answer = "400 BAD REQUEST", {"error": str(error)}
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    return serve


def _control(fake: FakeEc2, request: str, body: bytes) -> Any:
    """Raises ValidationError for a wrong body, KeyError for an unknown request."""
    match request.partition(PREFIX)[::2]:
        case "POST ", "faults":
            fake.faults.add(Fault.model_validate_json(body))
        case "POST ", "limits":
            fake.throttle.set(_LIMITS.validate_json(body))
        case "POST ", "listing-lag":
            fake.listings.set(LagRequest.model_validate_json(body).listings)
        case "POST ", "prices":
            fake.spot_market.set(_PRICES.validate_json(body))
        case "POST ", "on-demand":
            fake.on_demand_market.set(_PRICES.validate_json(body))
        case "POST ", "past-prices":
            past = PastPrices.model_validate_json(body)
            fake.spot_market.set(past.prices, datetime.fromtimestamp(past.at, UTC))
        case "POST ", "quotas":
            fake.quotas.set(_QUOTAS.validate_json(body))
        case "POST ", "end":
            end = EndRequest.model_validate_json(body)
            life = end.life and (datetime.fromtimestamp(end.life[0], UTC), datetime.fromtimestamp(end.life[1], UTC))
            fake.end_instance(end.region, end.instance, end.code, end.message, life)
        case "POST ", "interrupt":
            interruption = MachineRequest.model_validate_json(body)
            fake.require_machines().interrupt(interruption.instance, interruption.notice_s)
        case "POST ", "rebalance":
            fake.require_machines().recommend_rebalance(MachineRequest.model_validate_json(body).instance)
        case "POST ", "reset":
            fake.reset()
        case "GET ", "left":
            return fake.left()
        case "GET ", "calls":
            return [asdict(call) for call in tuple(fake.calls)]  # others arrive meanwhile
        case _:
            raise KeyError(request)
    return {}


_LIMITS = TypeAdapter(dict[str, Limit])
_QUOTAS = TypeAdapter(dict[str, dict[str, float]])
_PRICES = TypeAdapter(dict[str, dict[str, str]])
