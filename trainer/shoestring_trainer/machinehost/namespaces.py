# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of Linux without names: one is gone with the last process, socket and descriptor in it.

source  network_namespaces(7), setns(2)
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

CLONE_NEWNET = 0x40000000
OWN = "/proc/thread-self/ns/net"
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
