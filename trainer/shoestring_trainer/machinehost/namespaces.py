# SPDX-License-Identifier: Apache-2.0
"""Namespaces of Linux without names: one is gone with the last process, socket and descriptor in it.

source  namespaces(7), network_namespaces(7), pid_namespaces(7), setns(2), mount(2)
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x4000, 0x40000, 2, 4, 8
OWN = "/proc/thread-self/ns/net"
OWN_PIDS = "/proc/thread-self/ns/pid"
COMMAND_TIMEOUT_S = 20.0
_libc = ctypes.CDLL(None, use_errno=True)


def make_namespace() -> int:
    """A descriptor of a new one. Raises OSError without the right to make one."""
    with ThreadPoolExecutor(1) as thread:  # what unshare changes is the calling thread alone
        return thread.submit(_unshare).result()


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Meanwhile this thread makes its sockets and processes in the namespace. Raises OSError."""
    own = os.open(OWN, os.O_RDONLY)
    try:
        _check(_libc.setns(namespace, CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_libc.setns(own, CLONE_NEWNET))
    finally:
        os.close(own)


@contextmanager
def first_process_next() -> Iterator[None]:
    """The process that is started meanwhile is the first one of a new PID namespace. Threads can't be started.

    Raises OSError.
    """
    own = os.open(OWN_PIDS, os.O_RDONLY)
    try:
        _check(_libc.unshare(CLONE_NEWPID))
        try:
            yield
        finally:
            _check(_libc.setns(own, CLONE_NEWPID))
    finally:
        os.close(own)


def use_own_mounts() -> None:
    """From now on this process mounts for itself and its children alone; /proc has those processes. Raises OSError."""
    _check(_libc.unshare(CLONE_NEWNS))
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    _check(_libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None))


def run_inside(namespace: int, *command: str, text: str) -> None:
    """Run a command that reads `text`. Raises OSError with what it says if it fails."""
    with inside(namespace):
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{command[0]} has not ended within {COMMAND_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()[:500]}")


def _unshare() -> int:
    _check(_libc.unshare(CLONE_NEWNET))
    return os.open(OWN, os.O_RDONLY)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
