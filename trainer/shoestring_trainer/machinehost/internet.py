# SPDX-License-Identifier: Apache-2.0
"""How machines with a network of their own reach this computer: at COMPUTER, on any port, by TCP.

The address is one of loopback, so a server of this computer that listens there can be reached by nobody else, and has
the same URL here and in the machines. A relay in each machine's init carries the connections.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import closing, suppress

from shoestring_core.machine_network import COMPUTER

SO_ORIGINAL_DST, SOCKADDR_IN = 80, struct.Struct("!2xH4s8x")
CONNECT_TIMEOUT_S = 10.0
BLOCK_BYTES = 1 << 16


def listen() -> socket.socket:
    """A relay's socket, in the namespace of the calling thread."""
    return socket.create_server(("127.0.0.1", 0), backlog=128)


def start_relay(listening: socket.socket) -> None:
    """Carry what is redirected to a relay's socket, from a thread, which connects in this process's namespace."""
    threading.Thread(target=lambda: asyncio.run(_serve(listening)), daemon=True).start()


async def _serve(listening: socket.socket) -> None:
    carrying: set[asyncio.Task[None]] = set()
    """Kept here: nothing else refers to a connection whose machine has said all that it had to."""

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_carry(reader, writer))
        carrying.add(task)
        task.add_done_callback(carrying.discard)

    async with await asyncio.start_server(accept, sock=listening, limit=BLOCK_BYTES) as server:
        await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Connect to where the machine meant to, and carry both directions to their ends."""
    with suppress(OSError, TimeoutError), closing(writer):
        host, port = original_destination(writer.get_extra_info("socket"))
        if host == COMPUTER:  # nowhere else: the relay's own port was addressed itself
            connecting = asyncio.open_connection(host, port, limit=BLOCK_BYTES)
            there_reader, there_writer = await asyncio.wait_for(connecting, CONNECT_TIMEOUT_S)
            with closing(there_writer):  # both at once where one breaks
                await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Raises OSError."""
    while block := await reader.read(BLOCK_BYTES):
        writer.write(block)
        await writer.drain()
    writer.write_eof()


def original_destination(connection: socket.socket) -> tuple[str, int]:
    """Address and port that were connected to, before the redirection. Raises OSError."""
    port, address = SOCKADDR_IN.unpack(connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, SOCKADDR_IN.size))
    return socket.inet_ntoa(address), port
