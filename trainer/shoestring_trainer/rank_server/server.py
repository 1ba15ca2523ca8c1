# SPDX-License-Identifier: Apache-2.0
"""The rank server: imports the training loop once, then forks a process for each rank that it is asked for.

A fork shares the imported pages and starts in a hundredth of a second; a new interpreter needs two seconds of CPU. To
be as good as a new process, a fork must find nothing that it can't inherit: the server runs one thread, no operation
of PyTorch (OpenMP's threads don't survive a fork, and the first operation of a child would wait for them) and touches
no CUDA device (a CUDA context doesn't survive either).
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from shoestring_trainer import processes
from shoestring_trainer.rank_server.protocol import ISOLATED, READY_ID, RankServerReply, StartRank

READ_BYTES = 1 << 20
PRELOADED = (
    "shoestring_trainer.training.rank",
    "shoestring_trainer.training.loop",
)


def main(arguments: Sequence[str]) -> int:
    """Serve the process with the id `arguments[0]` until it closes the pipe or dies. Further arguments are modules to
    import too.
    """
    parent, *modules = arguments
    if parent == ISOLATED:
        processes.leave_session_keyring()
    else:
        processes.die_with_parent(int(parent))
        if Path(f"/proc/{parent}").stat().st_uid != os.getuid():  # which was given up, and stays so
            processes.forbid_new_privileges()
    processes.become_subreaper()  # what ranks leave behind stays below this process, where the agent looks for it
    requests, replies = _take_over_pipes()
    import_training(modules)
    RankServer(requests, replies).serve()
    return 0


def import_training(more: Sequence[str] = ()) -> None:
    """Import all that a rank needs before its first step.

    What that loads is never garbage, so the collector is off meanwhile and ignores it afterwards: searching it would
    take a fifth of the time, and would write to pages that the ranks share.
    """
    gc.disable()
    try:
        for module in (*PRELOADED, *more):
            importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


class RankServer:
    """Starts ranks and reports their ends. Single-threaded: it waits for requests and for SIGCHLD in one place."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = requests, replies
        self._unread = b""
        self._ids: dict[int, int] = {}  # by pid, of ranks that run
        self._child_ended, wake = os.pipe()
        for pipe_end in (self._child_ended, wake):
            os.set_blocking(pipe_end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Return when the client closes its pipe."""
        self._reply(RankServerReply(READY_ID, pid=os.getpid()))
        while True:
            readable, _, _ = select.select([self._requests, self._child_ended], [], [])
            if self._child_ended in readable:
                os.read(self._child_ended, READ_BYTES)
                self._reap()
            if self._requests in readable:
                received = os.read(self._requests, READ_BYTES)
                if not received:
                    return  # the kernel ends the ranks with their parent
                *lines, self._unread = (self._unread + received).split(b"\n")
                for line in lines:
                    self._start(StartRank.parse(line))

    def _start(self, request: StartRank) -> None:
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:  # a lock that another thread holds would stay locked in the child forever
            error = f"the rank server runs {threads} threads, and only a process with one can be forked safely"
            return self._reply(RankServerReply(request.id, exit_code=1, error=error))
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as failed:
            return self._reply(
                RankServerReply(request.id, exit_code=1, error=f"the rank can't be forked: {failed.strerror}")
            )
        if pid == 0:
            _run_rank(request, server)
        self._ids[pid] = request.id
        self._reply(RankServerReply(request.id, pid=pid))

    def _reap(self) -> None:
        """Read the exit status of every child that has ended: of ranks, and of what dead ranks have left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if id_ := self._ids.pop(pid, None):
                self._reply(RankServerReply(id_, exit_code=os.waitstatus_to_exitcode(status)))

    def _reply(self, reply: RankServerReply) -> None:
        os.write(self._replies, reply.line())


def _run_rank(request: StartRank, server: int) -> NoReturn:
    """Make this fork what `python -m shoestring_trainer train` would be, and train. Never returns to the server."""
    code = 1
    try:
        _enter_own_process(request)
        processes.die_with_parent(server)  # last: a change of user or group would undo it
        from shoestring_trainer.training import rank

        rank.main(request.arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - must not reach the server's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _enter_own_process(request: StartRank) -> None:
    """Give this fork a session, priority, signals, descriptors, environment, threads and random numbers of its own."""
    os.setsid()
    processes.yield_to_others()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

    log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:
        if descriptor > 2:
            _close(descriptor)

    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.argv = [sys.argv[0], "train", *request.arguments]
    processes.set_process_name(f"rank {request.environment.get('RANK', '0')}")

    import numpy
    import torch

    numpy.random.seed()  # else all ranks would draw what the server's import left
    if threads := request.environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # OpenMP read the variable when the server was started


def _take_over_pipes() -> tuple[int, int]:
    """Move the pipes away from stdin and stdout, where anything that is imported could write; returns them."""
    pipes = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return pipes


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        pass  # the one that listed the others
