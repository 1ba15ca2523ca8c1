# SPDX-License-Identifier: Apache-2.0
"""What becomes of security groups: rules for the kernel, or a refusal."""

from __future__ import annotations

import pytest
from shoestring_trainer.machinehost.errors import RequestRejected
from shoestring_trainer.machinehost.network import ADDRESSES, WantedNetwork, choose_interface
from shoestring_trainer.machinehost.security_groups import InboundRule, filter_rules

AMONG = InboundRule("-1", "sg-1")
WEB = InboundRule("tcp", "0.0.0.0/0", 8443, 8443)


def accepted(*machines: WantedNetwork) -> list[str]:
    """The rules that let something in from other machines."""
    rules = filter_rules([choose_interface(number, machine) for number, machine in enumerate(machines)])
    return [line.strip() for line in rules.splitlines() if line.strip().startswith("ip daddr")]


def test_members_of_a_group_are_let_in_where_a_rule_names_the_group():
    members, others = WantedNetwork(("sg-1",), (AMONG,)), WantedNetwork(("sg-2",), ())
    assert accepted(members, others, members) == [
        "ip daddr { 10.83.0.1 } ip saddr { 10.83.0.1, 10.83.0.3 } accept",
        "ip daddr { 10.83.0.3 } ip saddr { 10.83.0.1, 10.83.0.3 } accept",
    ]


def test_a_rule_for_a_port_and_a_block_of_addresses():
    rule = "ip daddr { 10.83.0.1 } ip saddr { 0.0.0.0/0 } tcp dport 8443-8443 accept"
    assert accepted(WantedNetwork(("sg-1",), (WEB,))) == [rule]
    ping = InboundRule("icmp", "10.0.0.0/8")
    assert accepted(WantedNetwork((), (ping,)))[0].endswith("ip saddr { 10.0.0.0/8 } meta l4proto icmp accept")


def test_a_rule_for_a_group_without_machines_lets_nobody_in():
    assert accepted(WantedNetwork(("sg-2",), (AMONG,))) == []


def test_addresses_and_ports_of_a_bridge_are_told_apart():
    interfaces = [choose_interface(number, WantedNetwork((), ())) for number in range(1_000)]
    assert len({each.addresses for each in interfaces}) == len({each.port for each in interfaces}) == 1_000
    assert len(choose_interface(ADDRESSES - 1, WantedNetwork((), ())).port) <= 15, "as long as Linux lets it be"


RULE = {"protocol": "tcp", "source": "sg-1", "first_port": 1, "last_port": 2}


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ([], "groups and inbound"),
        ({"groups": [], "inbound": [], "vpc": "x"}, "groups and inbound"),
        ({"groups": ["x y"], "inbound": []}, "ids such as sg-0123"),
        ({"groups": "sg-1", "inbound": []}, "lists"),
        *(
            ({"groups": [], "inbound": [RULE | changed]}, told)
            for changed, told in (
                ({"source": "sg-1 } accept; }"}, "source is a group"),
                ({"source": "::/0"}, "source is a group"),
                ({"protocol": "gre"}, "protocol is one of"),
                ({"protocol": ["tcp"]}, "protocol is one of"),
                ({"first_port": "1; accept"}, "0 to 65535"),
                ({"first_port": 3}, "0 to 65535"),
                ({"last_port": 65536}, "0 to 65535"),
                ({"last_port": True}, "0 to 65535"),
                ({"port": 1}, "has the fields"),
            )
        ),
        ({"groups": [], "inbound": ["tcp"]}, "has the fields"),
    ],
)
def test_what_is_no_network_is_refused_before_the_kernel_sees_it(network: object, told: str):
    with pytest.raises(RequestRejected, match=told):
        WantedNetwork.parse(network)
