# SPDX-License-Identifier: Apache-2.0
"""Security groups as packet filter: the rules of nftables for the machines of a bridge. Pure functions.

What comes in needs a rule of one of the machine's groups; what goes out, and the answers to it, need none.

source  docs.aws.amazon.com/vpc/latest/userguide/security-group-rules.html
        docs.aws.amazon.com/AWSEC2/latest/UserGuide/security-group-connection-tracking.html
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Self

from shoestring_trainer.machinehost.errors import require

GROUP_PATTERN = re.compile(r"sg-[A-Za-z0-9-]{1,64}")
PROTOCOLS = ("-1", "tcp", "udp", "icmp")
WITH_PORTS = ("tcp", "udp")


@dataclass(frozen=True)
class InboundRule:
    """What may come in. `protocol`: -1 for all; `source`: a group, or a block of addresses such as 0.0.0.0/0."""

    protocol: str
    source: str
    first_port: int = 0
    last_port: int = 65535

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Raises RequestRejected: what it holds becomes a rule of the kernel's."""
        names = {"protocol", "source", "first_port", "last_port"}
        require(isinstance(value, dict) and set(value) <= names, f"a rule has the fields {sorted(names)}")
        rule = cls(**{"protocol": "", "source": "", **value})
        require(rule.protocol in PROTOCOLS, f"a rule's protocol is one of {', '.join(PROTOCOLS)}")
        ports = (rule.first_port, rule.last_port)
        are_ports = all(type(port) is int and 0 <= port <= 65535 for port in ports) and ports[0] <= ports[1]
        require(are_ports, "a rule's first_port and last_port are 0 to 65535")
        source = str(rule.source)
        is_source = GROUP_PATTERN.fullmatch(source) or _is_block(source)
        require(is_source, "a rule's source is a group, or addresses such as 0.0.0.0/0")
        return replace(rule, source=source)


@dataclass(frozen=True)
class Interface:
    """Of a machine. `port`: its end at the bridge; `addresses`: private, then public ones."""

    port: str
    addresses: tuple[str, ...]
    groups: tuple[str, ...] = ()
    inbound: tuple[InboundRule, ...] = ()

    @classmethod
    def parse(cls, stored: dict[str, Any]) -> Self:
        """From a journal."""
        inbound = tuple(InboundRule(**rule) for rule in stored["inbound"])
        return cls(stored["port"], tuple(stored["addresses"]), tuple(stored["groups"]), inbound)

    def with_address(self, address: str) -> Self:
        """With this public address in place of another."""
        return replace(self, addresses=(self.addresses[0], address))


def filter_rules(interfaces: Collection[Interface]) -> str:
    """What replaces the rules of the bridge's namespace, for `nft -f`.

    A machine sends from its own addresses alone. The bridge forwards nothing from port to port but through `forward`.
    """
    own = [f'"{each.port}" . {address}' for each in interfaces for address in each.addresses]
    elements = f"elements = {{ {', '.join(own)} }}" if own else ""
    accepted = [rule for each in interfaces for rule in _accept(each, interfaces)]
    return f"""table bridge sources
delete table bridge sources
table bridge sources {{
  set own {{
    typeof iifname . ip saddr
    {elements}
  }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy drop;
    ether type ip iifname . ip saddr @own accept
    ether type arp iifname . arp saddr ip @own accept
  }}
}}
table inet groups
delete table inet groups
table inet groups {{
  chain input {{
    type filter hook input priority 0; policy drop;
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    oifname != "{BRIDGE}" accept
    {f"{chr(10)}    ".join(accepted)}
  }}
}}
"""


BRIDGE = "machines"


def _accept(interface: Interface, interfaces: Collection[Interface]) -> list[str]:
    rules = []
    for rule in interface.inbound:
        members = [each.addresses[0] for each in interfaces if rule.source in each.groups]
        if sources := [rule.source] if _is_block(rule.source) else members:
            ports = f"{rule.protocol} dport {rule.first_port}-{rule.last_port} "
            protocol = ports if rule.protocol in WITH_PORTS else "meta l4proto icmp " if rule.protocol == "icmp" else ""
            to = f"ip daddr {{ {', '.join(interface.addresses)} }} "
            rules.append(f"{to}ip saddr {{ {', '.join(sources)} }} {protocol}accept")
    return rules


def _is_block(source: str) -> bool:
    try:
        ipaddress.IPv4Network(source)
    except ValueError:
        return False
    return True
