# SPDX-License-Identifier: Apache-2.0
"""A simulated provider without processes, with its own clock: for tests and simulations.

Its machines are known to one process alone. Its journal of launches and ends is independent evidence that tests compare
with our rows.
"""

from __future__ import annotations

import builtins
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import DEPLOYMENT_TAG, MachineRef, ProviderMachine
from shoestring_core.decide.refusals import RefusalKind
from shoestring_core.decide.requirements import Requirements
from shoestring_core.launch_request import LaunchRequest

from shoestring_worker.providers.base import LaunchRefused, ManagedProvider, OutcomeUnknown
from shoestring_worker.settings import WorkerSettings

REGION = "sim"
TYPE = "sim"

Fault = RefusalKind | Literal["lost_request", "lost_reply"]
"""A launch is refused; its request never arrives; or the machine is launched and the answer is lost."""


def open_provider(name: str, settings: WorkerSettings) -> ManagedProvider:
    return ManagedProvider(SimulatedProvider(lambda: time.time_ns() // 1000, name=name), settings.timeouts)


@dataclass(frozen=True)
class JournalEntry:
    """A launch or the end of a machine, at a time in µs."""

    at: int
    event: Literal["launch", "end"]
    machine: str
    token: str
    tags: dict[str, str]
    price: str


@dataclass
class SimulatedProvider:
    """Machines that exist only in memory.

    clock   µs; moves only when its owner moves it
    slots   machines that may run at once
    fault   returns the fault of each launch, by token
    silent  while true, no call is answered
    hidden  µs for which a new machine is not listed
    """

    clock: Callable[[], int]
    slots: int = 4
    price: str = "0.158"
    on_demand_price: str = "0.526"
    fault: Callable[[str], Fault | None] = lambda _: None
    silent: bool = False
    hidden: int = 0
    name: str = "sim"
    journal: builtins.list[JournalEntry] = field(default_factory=list)
    _machines: dict[str, ProviderMachine] = field(default_factory=dict)
    _requests: dict[str, LaunchRequest] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """The launch calls of a tick run concurrently, and so do several control loops."""

    def offers(self, requirements: Collection[Requirements]) -> builtins.list[Offer]:  # noqa: ARG002 - has only these
        self._check_available()
        prices: dict[Literal["spot", "on_demand"], str] = {"spot": self.price, "on_demand": self.on_demand_price}
        return [
            Offer(self.name, REGION, "", TYPE, market, price, self.on_demand_price, self.slots, "sim", True)
            for market, price in prices.items()
        ]

    def launch(self, request: LaunchRequest) -> ProviderMachine:
        with self._lock:
            self._check_available()
            fault = self.fault(request.token)
            if fault == "lost_request":
                raise OutcomeUnknown("the request was lost")
            known = self._machines.get(request.token)
            if known is None:
                if isinstance(fault, RefusalKind):
                    raise LaunchRefused(fault, f"{fault} fault")
                if len(self.alive()) >= self.slots:
                    raise LaunchRefused(RefusalKind.CAPACITY, "no slot is free")
                known = self._create(request)
            elif self._requests[request.token] != request:
                raise OutcomeUnknown("this token launched a machine with another request")
            if fault == "lost_reply":
                raise OutcomeUnknown("the reply was lost")
            return known

    def list(self, deployment: str) -> builtins.list[ProviderMachine]:
        self._check_available()
        now = self.clock()
        with self._lock:
            own = [one for one in self._machines.values() if one.tags.get(DEPLOYMENT_TAG) == deployment]
            return [machine for machine in own if machine.launched_at + self.hidden <= now]

    def terminate(self, ref: MachineRef) -> None:
        self._check_available()
        self.end(ref.id, "requested")

    def end(self, machine_id: str, cause: Literal["requested", "preempted", "exited", "crashed"]) -> None:
        """Terminate the machine now."""
        with self._lock:
            for token, machine in self._machines.items():
                if machine.id == machine_id and machine.state != "ended":
                    self._machines[token] = replace(machine, state="ended", ended_at=self.clock(), end_cause=cause)
                    self._record("end", machine)

    def alive(self) -> builtins.list[ProviderMachine]:
        with self._lock:
            return [machine for machine in self._machines.values() if machine.state != "ended"]

    def _create(self, request: LaunchRequest) -> ProviderMachine:
        machine = ProviderMachine(
            self.name,
            request.region,
            f"sim-{len(self._machines)}",
            request.token,
            request.tags,
            "running",
            self.clock(),
        )
        self._machines[request.token], self._requests[request.token] = machine, request
        self._record("launch", machine)
        return machine

    def _record(self, event: Literal["launch", "end"], machine: ProviderMachine) -> None:
        price = self._requests[machine.token].price
        self.journal.append(JournalEntry(self.clock(), event, machine.id, machine.token, machine.tags, price))

    def _check_available(self) -> None:
        if self.silent:
            raise OutcomeUnknown("the provider does not answer")
