# SPDX-License-Identifier: Apache-2.0
"""Faults on demand: each is planned for an action and happens to the next calls of it that match."""

from __future__ import annotations

import threading
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from shoestring_worker.fake_ec2.wire import Call


class Fault(BaseModel):
    """What happens to a call.

    error         it is answered with `code` and `status`, and nothing else happens
    lost_request  the connection breaks before the call takes effect
    lost_reply    the connection breaks after it took effect
    garbled       a page comes in place of the answer after it took effect, as from a proxy
    duplicate     it arrives twice; the second answer is sent
    delay         it is answered `seconds` late
    ends_pending  the instance that it launches ends at once, with the state reason `code`
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: str
    kind: Literal["error", "lost_request", "lost_reply", "garbled", "duplicate", "delay", "ends_pending"]
    times: Annotated[int, Field(ge=1)] = 1
    region: str | None = None
    parameters: dict[str, str] = {}
    """Only calls with these parameters, such as {"InstanceType": "g5.xlarge"}."""
    code: str = "InternalError"
    status: Annotated[int, Field(ge=400, le=599)] = 500
    message: str = "planned"
    seconds: Annotated[float, Field(ge=0, le=60)] = 0

    def concerns(self, call: Call) -> bool:
        return (
            call.action == self.action
            and self.region in (None, call.region)
            and all(call.parameters.get(name) == value for name, value in self.parameters.items())
        )


class FaultPlan:
    """The faults to come, in the order in which they were planned."""

    def __init__(self) -> None:
        self._planned: list[tuple[Fault, int]] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._planned.append((fault, fault.times))

    def clear(self) -> None:
        with self._lock:
            self._planned.clear()

    def take(self, call: Call) -> Fault | None:
        """The fault that happens to this call; it is used up."""
        with self._lock:
            for place, (fault, left) in enumerate(self._planned):
                if fault.concerns(call):
                    self._planned[place : place + 1] = [(fault, left - 1)] if left > 1 else []
                    return fault
        return None
