# SPDX-License-Identifier: Apache-2.0
"""Networks of their own for machines: each in a network namespace, with an address on a bridge.

A further namespace has the bridge, the routes between the machines, and the packet filter. Nothing of this computer's
own network is changed. The host and the inits hold a descriptor of that namespace: it is gone with the last of them,
however they end, and a host that is started again finds it at the machines that run.

A machine reaches this computer, which is all that it has of an internet, at COMPUTER: see `internet.py`.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

from shoestring_core.machine_network import COMPUTER, NetworkStatus

from shoestring_trainer.machinehost.errors import require
from shoestring_trainer.machinehost.namespaces import make_namespace, run_inside
from shoestring_trainer.machinehost.security_groups import (
    BRIDGE,
    GROUP_PATTERN,
    InboundRule,
    Interface,
    filter_rules,
)
from shoestring_trainer.processes import Process

GATEWAY = "169.254.0.1"
BRIDGE_MAC = "02:00:00:00:00:01"
"""One that stays: without, it is that of a machine, and changes when this leaves, and the others don't learn of it."""
METADATA_ADDRESS = "169.254.169.254"
PREFIX, ADDRESSES = "10.83", 250 * 250
PUBLIC_ADDRESSES = "198.18.0.0/15"
"""Nobody's, for tests of networks: RFC 2544."""
TOOLS = {"ip": "apt install iproute2", "nft": "apt install nftables"}


@dataclass(frozen=True)
class WantedNetwork:
    """What a launch asks for: the groups that the machine is in, and what these let in."""

    groups: tuple[str, ...]
    inbound: tuple[InboundRule, ...]

    @classmethod
    def parse(cls, value: Any) -> Self | None:
        """None: this computer's network. Raises RequestRejected."""
        if value is None:
            return None
        require(isinstance(value, dict) and set(value) == {"groups", "inbound"}, "a network has groups and inbound")
        groups, inbound = value["groups"], value["inbound"]
        require(isinstance(groups, list) and isinstance(inbound, list), "groups and inbound of a network are lists")
        are_groups = all(isinstance(group, str) and GROUP_PATTERN.fullmatch(group) for group in groups)
        require(are_groups, "groups of a network have ids such as sg-0123")
        return cls(tuple(groups), tuple(map(InboundRule.parse, inbound)))


def choose_interface(number: int, wanted: WantedNetwork) -> Interface:
    """Of the machine with this number, counted from 0."""
    number %= ADDRESSES
    address = f"{PREFIX}.{number // 250}.{number % 250 + 1}"
    return Interface(f"machine{number}", (address,), wanted.groups, wanted.inbound)


def is_public(address: object) -> bool:
    try:
        return ipaddress.IPv4Address(address) in ipaddress.IPv4Network(PUBLIC_ADDRESSES)
    except ValueError:
        return False


def find_network_status() -> NetworkStatus:
    """Try it."""
    if os.geteuid() != 0:
        return NetworkStatus("only root can make them", "sudo -E, before the command that started this")
    for tool, remedy in TOOLS.items():
        if shutil.which(tool) is None:
            return NetworkStatus(f"there is no {tool}", remedy)
    try:
        Bridge.make().close()
    except OSError as error:
        return NetworkStatus(f"this system forbids it: {error}")
    return NetworkStatus()


class Bridge:
    """The namespace with the bridge. Raises OSError."""

    def __init__(self, namespace: int) -> None:
        self.namespace = namespace

    @classmethod
    def make(cls) -> Self:
        bridge = cls(make_namespace())
        run_inside(bridge.namespace, "ip", "-batch", "-", text=f"""link set lo up
            link add {BRIDGE} address {BRIDGE_MAC} type bridge
            addr add {GATEWAY}/32 dev {BRIDGE}
            link set {BRIDGE} up
        """)  # fmt: skip
        # as a router; hosts are told of no shorter way, which the bridge doesn't give
        run_inside(bridge.namespace, "sh", "-e", text="""cd /proc/sys/net
            echo 1 > ipv4/ip_forward
            for each in ipv4/conf/*/send_redirects; do echo 0 > $each; done
            for each in bridge/bridge-nf-call-*tables; do [ ! -e $each ] || echo 0 > $each; done
        """)  # fmt: skip
        bridge.apply_filter([])
        return bridge

    @classmethod
    def held_by(cls, init: Process, descriptor: int) -> Self | None:
        """That of a machine whose init runs."""
        try:
            held = os.open(f"/proc/{init.pid}/fd/{descriptor}", os.O_RDONLY)
        except OSError:
            return None
        if not init.is_alive():
            os.close(held)
            return None
        return cls(held)

    def apply_filter(self, interfaces: Collection[Interface]) -> None:
        """Replace the rules, in one step: connections go on."""
        run_inside(self.namespace, "nft", "-f", "-", text=filter_rules(interfaces))

    def attach(self, interface: Interface) -> int:
        """A new namespace, of a machine, with this interface. Until it has rules in the filter, nothing passes."""
        machine = make_namespace()
        address, port = interface.addresses[0], interface.port
        run_inside(machine, "ip", "-batch", "-", text=f"""link set lo up
            addr add {METADATA_ADDRESS}/32 dev lo
            link add eth0 type veth peer name {port} netns /proc/{os.getpid()}/fd/{self.namespace}
            addr add {address}/32 dev eth0
            link set eth0 up
            route add {GATEWAY}/32 dev eth0
            route add default via {GATEWAY}
        """)  # fmt: skip
        # isolated: from port to port there is no way but through the router, and so its filter
        run_inside(self.namespace, "ip", "-batch", "-", text=f"""link set {port} master {BRIDGE}
            link set {port} type bridge_slave isolated on
            link set {port} up
            route replace {address}/32 dev {BRIDGE}
        """)  # fmt: skip
        return machine

    def add_address(self, machine: int, address: str) -> None:
        """A public address for a machine whose namespace is `machine`. Another may have had it before."""
        run_inside(machine, "ip", "-batch", "-", text=f"addr replace {address}/32 dev eth0\n")
        run_inside(self.namespace, "ip", "-batch", "-", text=f"""route replace {address}/32 dev {BRIDGE}
            neigh flush to {address} dev {BRIDGE}
        """)  # fmt: skip

    def close(self) -> None:
        os.close(self.namespace)


def reach_computer(machine: int, relay_port: int) -> None:
    """Lead what the machine sends to COMPUTER to its relay. Raises OSError."""
    run_inside(machine, "nft", "-f", "-", text=f"""table ip computer {{
          chain output {{
            type nat hook output priority -100;
            ip daddr {COMPUTER} tcp dport 1-65535 redirect to :{relay_port}
          }}
        }}
    """)  # fmt: skip
