# SPDX-License-Identifier: Apache-2.0
"""The networks of a host's machines: one bridge for all that have a network of their own, made for the first."""

from __future__ import annotations

from collections.abc import Iterable

from shoestring_core.machine_network import NetworkStatus

from shoestring_trainer.machinehost.errors import RequestRejected
from shoestring_trainer.machinehost.machine import Machine
from shoestring_trainer.machinehost.network import Bridge, WantedNetwork, choose_interface, find_network_status
from shoestring_trainer.machinehost.security_groups import Interface


class Networks:
    def __init__(self) -> None:
        self.bridge: Bridge | None = None

    def choose_interface(self, wanted: WantedNetwork | None, number: int) -> Interface | None:
        """Of the machine with this number; None: this computer's network. Raises RequestRejected."""
        if wanted is None:
            return None
        if (status := self.status()).problem:
            raise RequestRejected(409, "no-network", status.refusal())
        self.bridge = self.bridge or Bridge.make()
        return choose_interface(number, wanted)

    def status(self) -> NetworkStatus:
        """Tried, unless there is one already."""
        return NetworkStatus() if self.bridge else find_network_status()

    def follow(self, machines: Iterable[Machine]) -> None:
        """Filter for these machines, at a bridge that is there from the first of them on. Raises OSError."""
        alive = [each for each in machines if each.record.ended_at is None and each.record.interface]
        if not alive:
            return
        self.bridge = self.bridge or self._find_bridge(alive) or Bridge.make()
        self.bridge.apply_filter([each.record.interface for each in alive if each.record.interface])

    def _find_bridge(self, machines: list[Machine]) -> Bridge | None:
        """That of a machine which an earlier host launched."""
        held = (
            Bridge.held_by(machine.record.init, machine.record.bridge)
            for machine in machines
            if machine.record.init and machine.record.bridge is not None
        )
        return next(filter(None, held), None)
