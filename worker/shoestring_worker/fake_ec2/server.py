# SPDX-License-Identifier: Apache-2.0
"""The layer in front of moto: every call to EC2 and S3 passes through its rules, the others go straight to moto."""

from __future__ import annotations

import hmac
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any

from shoestring_worker.fake_ec2 import moto_backend, parameters, regions, s3
from shoestring_worker.fake_ec2.faults import Fault, FaultPlan
from shoestring_worker.fake_ec2.listings import ListingLag
from shoestring_worker.fake_ec2.machines import Machines
from shoestring_worker.fake_ec2.placement_groups import PlacementGroups
from shoestring_worker.fake_ec2.price_list import OnDemandMarket
from shoestring_worker.fake_ec2.quotas import Quotas
from shoestring_worker.fake_ec2.role_keys import RoleKeys
from shoestring_worker.fake_ec2.spot_prices import SpotMarket
from shoestring_worker.fake_ec2.spot_requests import MARKET, SpotRequests, tags_of
from shoestring_worker.fake_ec2.terminations import terminate
from shoestring_worker.fake_ec2.throttling import Throttle
from shoestring_worker.fake_ec2.tokens import LaunchTokens, instance_ids
from shoestring_worker.fake_ec2.wire import (
    Answer,
    Call,
    Environ,
    access_key_id,
    error_answer,
    json_error_answer,
    read_call,
    service,
)
from shoestring_worker.providers.base import OutcomeUnknown

StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

REMEMBERED_CALLS = 10_000

END_REASONS = {
    "preempted": ("Server.SpotInstanceTermination", "Spot instance termination"),
    "requested": ("Client.UserInitiatedShutdown", "User initiated shutdown"),
    "exited": ("Client.InstanceInitiatedShutdown", "Instance initiated shutdown"),
    "crashed": ("Server.InternalError", "Internal error on launch"),
}
"""By the end cause of a machine: docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html"""


A_PAGE = Answer("200 OK", (("Content-Type", "text/html"),), b"<!doctype html><title>Welcome</title>")


class WrongKey(Exception):
    """A request without the access key that the fake was started with."""


class FakeEc2:
    """A WSGI application.

    moto        the one that it stands in front of
    machines    run the instances; None: these are entries in a table
    access_key  required of every request: launching an instance executes its user data
    roles       the keys of instances' roles, with which they may read what is in S3
    """

    def __init__(
        self,
        moto: WsgiApp,
        machines: Machines | None = None,
        access_key: str | None = None,
        roles: RoleKeys | None = None,
    ) -> None:
        self._moto, self._machines, self._access_key, self._roles = moto, machines, access_key, roles
        self.calls: deque[Call] = deque(maxlen=REMEMBERED_CALLS)
        self.faults, self.throttle, self.tokens, self.listings = FaultPlan(), Throttle(), LaunchTokens(), ListingLag()
        self.spot_market, self.spot_requests, self.quotas = SpotMarket(), SpotRequests(), Quotas()
        self.on_demand_market, self.placement_groups = OnDemandMarket(), PlacementGroups()
        self._one_at_a_time = threading.RLock()  # moto's memory isn't made for threads

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if refused := self._refuse_key(environ):
            start_response(refused.status, list(refused.headers))
            return [refused.body]
        call = s3.read_call(environ) if service(environ) == "s3" else read_call(environ)
        fault = self.faults.take(call)
        answer = None if fault and fault.kind == "lost_request" else self._answer(call, environ, fault)
        if fault and fault.kind == "delay":
            time.sleep(fault.seconds)
        if answer is None or (fault and fault.kind == "lost_reply"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response("200 OK", [])
            return [b""]
        if fault and fault.kind == "garbled":
            answer = A_PAGE
        start_response(answer.status, list(answer.headers))
        return [answer.body]

    def reset(self) -> None:
        """Forget every instance, fault and token."""
        with self._one_at_a_time:
            self.calls.clear()
            self.faults.clear()
            self.throttle.set({})
            self.tokens.clear()
            self.listings.set(0)
            self.spot_requests.clear()
            self.placement_groups.clear()
            self.spot_market.set({})
            self.quotas.set({})
            self.on_demand_market.set({})
            moto_backend.reset()

    def end_instance(
        self, region: str, instance: str, code: str, message: str, life: tuple[datetime, datetime] | None = None
    ) -> None:
        """End an instance as EC2 does by itself. `life`: its launch and its end. Raises KeyError if there is none."""
        with self._one_at_a_time:
            moto_backend.end_instance(region, instance, code, message, life and life[1])
            if life:
                moto_backend.set_launch_time(region, instance, life[0])

    def left(self) -> dict[str, list[str]]:
        """The ids of what has not ended, in all regions."""
        with self._one_at_a_time:
            self._follow_machines()
            return {
                "instances": [instance.id for _, instance in moto_backend.alive()],
                "volumes": moto_backend.volumes(),
                "spot_requests": self.spot_requests.open(moto_backend.has_ended),
            }

    def _refuse_key(self, environ: Environ) -> Answer | None:
        """The answer to a request that its key doesn't allow. Without a signature nothing in S3 can be read."""
        key, unsigned_read = access_key_id(environ), environ["REQUEST_METHOD"] in ("GET", "HEAD")
        try:
            self.require_key(key)
        except WrongKey:
            on_s3 = service(environ) == "s3" or (not key and unsigned_read)
            with self._one_at_a_time:
                if on_s3 and self._roles and self._roles.allows(key, s3.read_call(environ)):
                    return None
            if on_s3:
                return s3.error_answer(403, "AccessDenied", "Access Denied")
            return error_answer(401, "AuthFailure", "Only its own access key may use this fake.")
        return None

    def require_key(self, key: str) -> None:
        """Raises WrongKey."""
        if self._access_key is not None and not hmac.compare_digest(key.encode(), self._access_key.encode()):
            raise WrongKey

    def require_machines(self) -> Machines:
        """Raises KeyError if instances don't run."""
        if self._machines is None:
            raise KeyError("this fake was started without --machinehost: its instances don't run")
        return self._machines

    def _answer(self, call: Call, environ: Environ, fault: Fault | None) -> Answer:
        on_s3 = service(environ) == "s3"
        with self._one_at_a_time:
            self.calls.append(call)
            if not self.throttle.allows(call):
                return error_answer(503, "RequestLimitExceeded", "Request limit exceeded.")
            if fault and fault.kind == "error":
                in_json = "HTTP_X_AMZ_TARGET" in environ
                error = s3.error_answer if on_s3 else json_error_answer if in_json else error_answer
                return error(fault.status, fault.code, fault.message)
            if on_s3:
                return s3.answer(environ, self._call_moto)
            try:
                self._follow_machines()
            except OutcomeUnknown as unknown:
                return error_answer(503, "Unavailable", str(unknown))
            if fault and fault.kind == "duplicate":
                self._apply(call, environ, fault)
            return self._apply(call, environ, fault)

    def _apply(self, call: Call, environ: Environ, fault: Fault | None) -> Answer:
        def run() -> Answer:
            return self._call_moto(environ)

        def has_ended(instance: str) -> bool | None:
            return moto_backend.has_ended(call.region, instance)

        match call.action:
            case "DescribeInstances":
                return self.listings.hide(run())
            case "DescribeSpotPriceHistory":
                return self.spot_market.describe(call)
            case "TerminateInstances":
                answer = terminate(call, run, has_ended, partial(self._stop, call.region) if self._machines else None)
                moto_backend.release_addresses_of_ended(call.region)
                return answer
            case "AttachVolume" | "DeleteVolume":
                return self._follow_volume(call, run())
            case "AllocateAddress" if self._machines and self._machines.have_networks():
                moto_backend.use_test_addresses()
            case "AssociateAddress":
                return self._follow_address(call, run())
            case "DescribeRegions":
                return regions.describe()
            case "RequestSpotInstances":
                return self.spot_requests.request(call)
            case "CancelSpotInstanceRequests":
                return self.spot_requests.cancel(call)
            case "DescribeSpotInstanceRequests":
                return self.spot_requests.describe(call, has_ended)
            case "CreatePlacementGroup":
                return self.placement_groups.create(call)
            case "DeletePlacementGroup":
                return self.placement_groups.delete(call, has_ended)
            case "DescribePlacementGroups":
                return self.placement_groups.describe(call)
            case "ListServiceQuotas":
                return self.quotas.describe(call)
            case "GetProducts":
                return self.on_demand_market.describe(call)
            case "GetParameter":
                return parameters.describe(call) or run()
            case "RunInstances":
                answer = self.tokens.launch(call, lambda: self._launch(call, run), has_ended)
                return self._note_launch(call, fault, answer)
        return run()

    def _launch(self, call: Call, run: Callable[[], Answer]) -> Answer:
        has_ended = partial(moto_backend.has_ended, call.region)
        if (profile := _profile_of(call)) and (refused := _refuse_profile(profile)):
            return refused
        refused = self.placement_groups.refuse(call, has_ended) or self.quotas.refuse(call, moto_backend.alive())
        return refused or self._boot(call, run())

    def _boot(self, call: Call, answer: Answer) -> Answer:
        """The answer to a launch, once its instances boot; without room for one, there are none."""
        if self._machines is None or not answer.is_success:
            return answer
        market = "spot" if call.parameters.get(MARKET) == "spot" else "on_demand"
        for id_ in instance_ids(answer):
            instance = moto_backend.find_instance(call.region, id_)
            role = moto_backend.role_of_profile(_profile_of(call)) or ""
            user_data = call.parameters.get("UserData", "")
            if instance is not None:
                address = self._machines.launch(instance, user_data, market, role)
                if address is None:
                    moto_backend.forget(call.region, id_)
                    return error_answer(500, "InsufficientInstanceCapacity", "The machine host has no slot free.")
                moto_backend.set_private_address(call.region, id_, address)
            moto_backend.set_state(call.region, id_, "pending")
        return answer

    def _follow_volume(self, call: Call, answer: Answer) -> Answer:
        """An instance that runs finds a volume that was attached to it; one that was deleted is gone."""
        if self._machines is not None and answer.is_success:
            if call.action == "DeleteVolume":
                self._machines.delete_volume(call.parameters["VolumeId"])
            else:
                self._machines.attach(call.parameters["InstanceId"], call.parameters["VolumeId"])
        return answer

    def _follow_address(self, call: Call, answer: Answer) -> Answer:
        """An instance with a network of its own is reached at the elastic address that it was given."""
        if answer.is_success and self._machines and self._machines.have_networks():
            address = moto_backend.elastic_address(call.region, call.parameters["AllocationId"])
            self._machines.set_public_address(call.parameters["InstanceId"], address)
        return answer

    def _stop(self, region: str, instance: str) -> None:
        self.require_machines().stop(instance)
        moto_backend.set_state(region, instance, "shutting-down")

    def _follow_machines(self) -> None:
        """Give each instance the state of its machine. Raises OutcomeUnknown."""
        if self._machines is None or not (alive := moto_backend.alive()):
            return
        states = self._machines.states()
        for region, instance in alive:
            now = states.get(instance.id)
            if now is None:
                continue
            if now.state == "terminated":
                moto_backend.end_instance(region, instance.id, *END_REASONS[now.end_cause or "crashed"], now.ended_at)
            elif instance.state != "shutting-down":
                moto_backend.set_state(region, instance.id, now.state)

    def _note_launch(self, call: Call, fault: Fault | None, answer: Answer) -> Answer:
        self.listings.note_launched(instance_ids(answer))
        self.placement_groups.note_launched(call, instance_ids(answer))
        for instance in instance_ids(answer):
            moto_backend.tag_interfaces(call.region, instance, tags_of(call, "network-interface"))
        for instance, request in self.spot_requests.note_launched(call, instance_ids(answer)).items():
            moto_backend.set_spot_request(call.region, instance, request)
        if fault and fault.kind == "ends_pending":
            for instance in instance_ids(answer):
                moto_backend.end_instance(call.region, instance, fault.code, fault.message)
        return answer

    def _call_moto(self, environ: Environ) -> Answer:
        environ["wsgi.input"].seek(0)
        head: list[Any] = []
        body = b"".join(self._moto(dict(environ), lambda status, headers, *_: head.extend((status, headers))))
        return Answer(head[0], tuple(head[1]), body)


def _profile_of(call: Call) -> str:
    """Name or ARN; "": none."""
    return call.parameters.get("IamInstanceProfile.Name") or call.parameters.get("IamInstanceProfile.Arn", "")


def _refuse_profile(profile: str) -> Answer | None:
    """docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html"""
    role, field = moto_backend.role_of_profile(profile), "arn" if profile.startswith("arn:") else "name"
    if role is None:
        named = f"Value ({profile}) for parameter iamInstanceProfile.{field} is invalid."
        return error_answer(400, "InvalidParameterValue", f"{named} Invalid IAM Instance Profile {field}")
    if not role:
        message = f'IAM Instance Profile "{profile}" has no associated IAM Roles'
        return error_answer(400, "InvalidParameterValue", message)
    return None
