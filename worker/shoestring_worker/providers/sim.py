# SPDX-License-Identifier: Apache-2.0
"""A provider without processes, on a clock of its own: for tests and simulations.

It keeps a journal of what it did, which is the witness against our own rows: what was ever bought, and for how long.
"""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from shoestring_core.decide.offers import Offer
from shoestring_core.decide.reconcile import ProviderMachine

from shoestring_worker.providers.base import Intent, Refused, Unknown

Fault = Literal["refuse", "lost_request", "lost_reply"]
"""What may befall a launch: a definite no; the request never arrives; the machine is made and the answer is lost."""


@dataclass(frozen=True)
class Entry:
    """A line of the journal: at (µs), launch or end, which machine, and what it was bought as."""

    at: int
    event: Literal["launch", "end"]
    machine: str
    token: str
    tags: dict[str, str]
    price: str


@dataclass
class SimCloud:
    """Machines that exist only here.

    clock   µs; moves only when its owner says so
    slots   machines that may live at once
    fault   asked at each launch, by token
    silent  while true no call is answered
    hidden  µs for which a fresh machine is not listed
    """

    clock: Callable[[], int]
    slots: int = 4
    price: str = "0.158"
    on_demand_price: str = "0.526"
    fault: Callable[[str], Fault | None] = lambda _: None
    silent: bool = False
    hidden: int = 0
    name: str = "local"
    journal: builtins.list[Entry] = field(default_factory=list)
    _machines: dict[str, ProviderMachine] = field(default_factory=dict)
    _bought: dict[str, Intent] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """The launch calls of a tick run concurrently, and so do several control loops."""

    def offers(self) -> builtins.list[Offer]:
        return [
            Offer(self.name, "local", "", "sim", "spot", self.price, self.on_demand_price, self.slots, "sim", True),
            Offer(
                self.name,
                "local",
                "",
                "sim",
                "on_demand",
                self.on_demand_price,
                self.on_demand_price,
                self.slots,
                "sim",
                True,
            ),
        ]

    def launch(self, intent: Intent) -> ProviderMachine:
        with self._lock:
            self._answer()
            fault = self.fault(intent.token)
            if fault == "lost_request":
                raise Unknown("the request was lost")
            known = self._machines.get(intent.token)
            if known is None:
                if fault == "refuse" or len(self.alive()) >= self.slots:
                    raise Refused("capacity", "no machine is free")
                known = self._buy(intent)
            elif self._bought[intent.token] != intent:
                raise Unknown("this token bought a machine with another request")
            if fault == "lost_reply":
                raise Unknown("the reply was lost")
            return known

    def list(self) -> builtins.list[ProviderMachine]:
        self._answer()
        now = self.clock()
        with self._lock:
            return [one for one in self._machines.values() if one.launched_at + self.hidden <= now]

    def terminate(self, machine: str) -> None:
        self._answer()
        self.end(machine, "requested")

    def end(self, machine: str, cause: Literal["requested", "reclaimed", "exited", "crashed"]) -> None:
        """Terminate the machine now."""
        with self._lock:
            for token, one in self._machines.items():
                if one.id == machine and one.state != "ended":
                    self._machines[token] = replace(one, state="ended", ended_at=self.clock(), end_cause=cause)
                    self._note("end", one)

    def alive(self) -> builtins.list[ProviderMachine]:
        with self._lock:
            return [one for one in self._machines.values() if one.state != "ended"]

    def _buy(self, intent: Intent) -> ProviderMachine:
        one = ProviderMachine(
            self.name, intent.region, f"sim-{len(self._machines)}", intent.token, intent.tags, "running", self.clock()
        )
        self._machines[intent.token], self._bought[intent.token] = one, intent
        self._note("launch", one)
        return one

    def _note(self, event: Literal["launch", "end"], one: ProviderMachine) -> None:
        price = self._bought[one.token].price
        self.journal.append(Entry(self.clock(), event, one.id, one.token, one.tags, price))

    def _answer(self) -> None:
        if self.silent:
            raise Unknown("the provider does not answer")
