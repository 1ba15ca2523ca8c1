# SPDX-License-Identifier: Apache-2.0
"""The layer in front of moto: every call to EC2 passes through its rules; everything else goes straight to moto."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from shoestring_worker.fake_ec2 import moto_backend
from shoestring_worker.fake_ec2.faults import Fault, FaultPlan
from shoestring_worker.fake_ec2.listings import ListingLag
from shoestring_worker.fake_ec2.spot_prices import SpotMarket
from shoestring_worker.fake_ec2.terminations import terminate
from shoestring_worker.fake_ec2.throttling import Throttle
from shoestring_worker.fake_ec2.tokens import LaunchTokens, instance_ids
from shoestring_worker.fake_ec2.wire import Answer, Call, Environ, error_answer, read_call

StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

REMEMBERED_CALLS = 10_000


class FakeEc2:
    """A WSGI application. `moto`: the one that it stands in front of."""

    def __init__(self, moto: WsgiApp) -> None:
        self._moto = moto
        self.calls: deque[Call] = deque(maxlen=REMEMBERED_CALLS)
        self.faults, self.throttle, self.tokens, self.listings = FaultPlan(), Throttle(), LaunchTokens(), ListingLag()
        self.spot_market = SpotMarket()
        self._one_at_a_time = threading.RLock()  # moto's memory isn't made for threads

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        call = read_call(environ)
        fault = self.faults.take(call)
        answer = None if fault and fault.kind == "lost_request" else self._answer(call, environ, fault)
        if fault and fault.kind == "delay":
            time.sleep(fault.seconds)
        if answer is None or (fault and fault.kind == "lost_reply"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response("200 OK", [])
            return [b""]
        start_response(answer.status, list(answer.headers))
        return [answer.body]

    def reset(self) -> None:
        """Forget every instance, fault and token."""
        with self._one_at_a_time:
            self.calls.clear()
            self.faults.clear()
            self.throttle.set({})
            self.tokens.clear()
            self.listings.clear()
            self.spot_market.set({})
            moto_backend.reset()

    def end_instance(self, region: str, instance: str, code: str, message: str) -> None:
        """End an instance as EC2 does by itself. Raises KeyError if there is none."""
        with self._one_at_a_time:
            moto_backend.end_instance(region, instance, code, message)

    def _answer(self, call: Call, environ: Environ, fault: Fault | None) -> Answer:
        with self._one_at_a_time:
            self.calls.append(call)
            if not self.throttle.allows(call):
                return error_answer(503, "RequestLimitExceeded", "Request limit exceeded.")
            if fault and fault.kind == "error":
                return error_answer(fault.status, fault.code, fault.message)
            if fault and fault.kind == "duplicate":
                self._apply(call, environ, fault)
            return self._apply(call, environ, fault)

    def _apply(self, call: Call, environ: Environ, fault: Fault | None) -> Answer:
        def run() -> Answer:
            return self._call_moto(environ)

        def has_ended(instance: str) -> bool:
            return moto_backend.has_ended(call.region, instance)

        match call.action:
            case "DescribeInstances":
                return self.listings.hide(run())
            case "DescribeSpotPriceHistory":
                return self.spot_market.describe(call)
            case "TerminateInstances":
                return terminate(call, run, has_ended)
            case "RunInstances":
                return self._note_launch(call, fault, self.tokens.launch(call, run, has_ended))
        return run()

    def _note_launch(self, call: Call, fault: Fault | None, answer: Answer) -> Answer:
        self.listings.note_launched(instance_ids(answer))
        if fault and fault.kind == "ends_pending":
            for instance in instance_ids(answer):
                moto_backend.end_instance(call.region, instance, fault.code, fault.message)
        return answer

    def _call_moto(self, environ: Environ) -> Answer:
        environ["wsgi.input"].seek(0)
        head: list[Any] = []
        body = b"".join(self._moto(dict(environ), lambda status, headers, *_: head.extend((status, headers))))
        return Answer(head[0], tuple(head[1]), body)
