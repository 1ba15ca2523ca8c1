# SPDX-License-Identifier: Apache-2.0
"""The agent's side of a rank server. Imports no torch, starts no thread, and blocks nowhere but in `wait`."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoestring_trainer import processes
from shoestring_trainer.rank_server.protocol import ISOLATED, READY_ID, RankServerReply, StartRank

READ_BYTES = 1 << 16
LOG_TAIL = 2_000


class RankProcess:
    """A requested rank. `error`: why it could not be started."""

    def __init__(self, server: RankServerClient) -> None:
        self._server = server
        self.process: processes.Process | None = None
        self.returncode: int | None = None
        self.error = ""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the rank runs, or waits for the server to start it."""
        self._server.poll()
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        """Wait for the exit code. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"the rank has not ended within {timeout_s} s")
            self._server.poll(left_s)
        return code


class RankServerClient:
    """A process that has imported the training loop, and starts ranks at once.

    `environment` is the server's own: the rank environment before any generation. What the server prints goes to `log`.
    It imports `modules` too. `isolation` is put before its command (see `Isolation.wrap`). `group`: the one that it and
    its ranks are in, without any other; `user`: whose they are; None: this process's.
    All calls come from the thread that called `start`: when it ends, so does the server.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        log: Path,
        modules: Sequence[str] = (),
        isolation: Sequence[str] = (),
        group: int | None = None,
        user: int | None = None,
    ) -> None:
        self._owner: dict[str, Any] = {"user": user} | ({} if group is None else {"group": group, "extra_groups": []})
        self._environment, self._log, self._modules, self._isolation = environment, log, modules, isolation
        self._server: subprocess.Popen[bytes] | None = None
        self._process: processes.Process | None = None
        self._ids = itertools.count(READY_ID + 1)
        self._ranks: dict[int, RankProcess] = {}
        self._unsent = self._unread = b""
        self.ready = False
        """It has imported the training loop."""

    @property
    def process(self) -> processes.Process | None:
        """The server, while it lives; isolated, not before it is ready."""
        return self._process if self._isolation else self.launcher

    @property
    def launcher(self) -> processes.Process | None:
        """The process that was started, while it lives: the server, or its parent, which isolates it."""
        if self._server is None or self._server.poll() is not None:
            return None
        return processes.identify(self._server.pid)

    def start(self) -> None:
        """Start the server unless it runs; returns at once. Raises OSError."""
        self.poll()
        if self._server is not None:
            return
        parent = ISOLATED if self._isolation else str(os.getpid())
        server = [sys.executable, "-P", "-m", "shoestring_trainer.rank_server", parent, *self._modules]
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                [*self._isolation, *server],
                env=dict(self._environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                **self._owner,
            )
        assert self._server.stdin
        assert self._server.stdout
        for pipe in (self._server.stdin, self._server.stdout):
            os.set_blocking(pipe.fileno(), False)

    def start_rank(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
    ) -> RankProcess:
        """Ask for a rank; it starts as soon as the server is ready. Starts the server again if it died."""
        self.start()
        request = StartRank(next(self._ids), list(arguments), dict(environment), str(folder), str(log))
        rank = self._ranks[request.id] = RankProcess(self)
        self._unsent += request.line()
        self.poll()
        return rank

    def has_unstarted_ranks(self) -> bool:
        """Whether it may start a rank at any moment, because it was asked for one while it was importing."""
        self.poll()
        return any(rank.process is None for rank in self._ranks.values())

    def poll(self, timeout_s: float = 0.0) -> None:
        """Send and receive what is possible now; with a timeout, wait for the next reply at most so long."""
        if self._server is None:
            return
        assert self._server.stdin
        assert self._server.stdout
        if self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._server.stdin.fileno(), self._unsent) :]
            except BlockingIOError:
                pass  # the pipe is full while the server imports
            except BrokenPipeError:
                self._unsent = b""
        pipe = self._server.stdout.fileno()
        while select.select([pipe], [], [], timeout_s)[0]:
            received = os.read(pipe, READ_BYTES)
            if not received:
                return self._forget_server()
            *lines, self._unread = (self._unread + received).split(b"\n")
            for line in lines:
                try:
                    self._take(RankServerReply.parse(line))
                except (ValueError, TypeError, KeyError):  # a rank that writes to its server's pipe
                    return self._server.kill()
            timeout_s = 0.0

    def close(self, within_s: float = 5.0) -> None:
        """End the server and its ranks."""
        if self._server is None:
            return
        assert self._server.stdin
        self._server.stdin.close()
        try:
            self._server.wait(within_s)
        except subprocess.TimeoutExpired:
            self._server.kill()
        self._forget_server()

    def _take(self, reply: RankServerReply) -> None:
        assert self._server
        if reply.id == READY_ID:
            self.ready = True
            if self._isolation:
                inside = reply.pid != self._server.pid
                self._process = processes.find_child(self._server.pid) if inside else self.launcher
            return
        rank = self._ranks[reply.id]
        if reply.pid is not None:
            rank.process = self._find_rank(reply.pid)  # None: it has ended already, and the next reply says how
        if reply.exit_code is not None:
            rank.returncode, rank.error = reply.exit_code, reply.error
            del self._ranks[reply.id]

    def _find_rank(self, pid: int) -> processes.Process | None:
        """The rank with this pid, which isolated servers count by themselves."""
        if self._isolation:
            return processes.find_child(self._process.pid, pid) if self._process else None
        try:
            return processes.identify(pid)
        except ProcessLookupError:
            return None

    def _forget_server(self) -> None:
        """The server has ended, and its ranks with it."""
        assert self._server
        code = self._server.wait()
        for pipe in (self._server.stdin, self._server.stdout):
            if pipe:
                pipe.close()
        self._server = self._process = None
        self.ready = False
        self._unsent = self._unread = b""
        for rank in self._ranks.values():
            rank.returncode = -signal.SIGKILL if rank.process else code or 1
            rank.error = f"the rank server ended with exit code {code}\n{self._log_tail()}"
        self._ranks.clear()

    def _log_tail(self) -> str:
        try:
            with self._log.open("rb") as log:
                log.seek(-min(LOG_TAIL, self._log.stat().st_size), os.SEEK_END)
                return log.read(LOG_TAIL).decode(errors="replace").strip()
        except OSError:
            return ""
