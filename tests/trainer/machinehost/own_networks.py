# SPDX-License-Identifier: Apache-2.0
"""Machines with networks of their own for tests, looked at from within."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from shoestring_trainer.machinehost.namespaces import inside
from shoestring_trainer.machinehost.network import find_network_status

from tests import servers

STATUS = find_network_status()
needs_networks = pytest.mark.skipif(bool(STATUS.problem), reason=STATUS.refusal())
WAIT = "#!/bin/sh\nwhile [ ! -e off ]; do sleep 0.05; done; poweroff\n"


@contextmanager
def within(machine: dict[str, Any]) -> Iterator[None]:
    """Sockets are made in the machine's network meanwhile."""
    network = os.open(f"/proc/{machine['agent_pid']}/ns/net", os.O_RDONLY)
    try:
        with inside(network):
            yield
    finally:
        os.close(network)


def sockets_at(machine: dict[str, Any], port: int) -> tuple[socket.socket, socket.socket]:
    """One that listens for TCP and one for UDP, for all addresses of the machine."""
    with within(machine):
        listening = socket.create_server(("", port))
        datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.bind(("", port))
    for each in (listening, datagrams):
        each.settimeout(servers.PATIENCE_S)
    return listening, datagrams


def knock(machine: dict[str, Any], address: str, port: int, content: bytes, source: str = "") -> list[socket.socket]:
    """Send from the machine by TCP and UDP without waiting for what becomes of it. Keep what is returned."""
    with within(machine):
        stream, datagrams = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    stream.setblocking(False)
    for each in (stream, datagrams):
        each.bind((source, 0))
    stream.connect_ex((address, port))
    datagrams.sendto(content, (address, port))
    return [stream, datagrams]


def namespaces_in_use() -> set[str]:
    """The network namespaces of all processes."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(str(link.readlink()))
        except OSError:  # the process has ended
            continue
    return found
