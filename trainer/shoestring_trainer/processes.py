# SPDX-License-Identifier: Apache-2.0
"""Processes named by (boot, pid, start time), and how to be sure that all of a machine's are gone. Linux only."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
EMPTY_SCANS, SETTLE_S = 2, 0.05
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Process:
    """A pid may be reused; with its start time (clock ticks since boot) and the boot it names one process for ever."""

    pid: int
    start: int
    boot: str

    def is_alive(self) -> bool:
        """True while the process runs. A zombie has ended: it only waits to be read by its parent."""
        return self.boot == boot_id() and _running(self.pid) == self

    def send_signal(self, number: signal.Signals) -> bool:
        """Signal exactly this process, never a later one with its pid; False if it has ended."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive():  # the handle is held first, so the pid can't change hands after this look
                return False
            signal.pidfd_send_signal(handle, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)


def current_process() -> Process:
    return identify(os.getpid())


def identify(pid: int) -> Process:
    """Name a process that is known to exist, such as an unreaped child. Raises ProcessLookupError."""
    stat = _stat(pid)
    if stat is None:
        raise ProcessLookupError(pid)
    return Process(pid, stat.start, boot_id())


@functools.cache
def boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def with_environment(marks: dict[str, str]) -> set[Process]:
    """Living processes that were started with all of these environment variables, whatever their parent or session."""
    wanted = {f"{name}={value}".encode() for name, value in marks.items()}
    return {process for pid in _pids() if wanted <= _environment(pid) and (process := _running(pid))}


def descendants(ancestor: int) -> set[Process]:
    """Living children, grandchildren and so on. A child subreaper keeps those whose parents have died."""
    stats = {pid: stat for pid in _pids() if (stat := _stat(pid))}
    family = {ancestor}
    while grown := {pid for pid, stat in stats.items() if stat.ppid in family} - family:
        family |= grown
    return {process for pid in family - {ancestor} if (process := _running(pid))}


def kill_all(
    find: Callable[[], set[Process]], *, within_s: float, no_children: Callable[[], bool] = lambda: True
) -> bool:
    """SIGKILL what `find` finds until nothing is left; False if something still lives after `within_s`.

    One scan of the process table proves little: a process in the middle of exec shows no environment, and one that
    forks and exits during the scan is missed with its child. So it takes two empty scans, and `no_children`, which a
    subreaper can ask the kernel.
    """
    deadline = time.monotonic() + within_s
    empty_scans = 0
    while True:
        found = find()
        for each in found:
            each.send_signal(signal.SIGKILL)
        empty_scans = empty_scans + 1 if no_children() and not found else 0
        if empty_scans == EMPTY_SCANS:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005 if found else SETTLE_S)


def become_subreaper() -> None:
    """This process's orphaned descendants become its children, so that none slips away by forking twice."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """The name of this process in `ps` and `top`, at most 15 bytes of it."""
    _prctl(PR_SET_NAME, ctypes.create_string_buffer(name.encode()))


def die_with_parent(parent: int) -> None:
    """For a fresh child to call: it is SIGKILLed when the thread that made it dies, or died before this call."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@dataclass(frozen=True)
class _Stat:
    state: str
    ppid: int
    start: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the command's name may hold spaces and parentheses
    return _Stat(state=fields[0], ppid=int(fields[1]), start=int(fields[19]))


def _running(pid: int) -> Process | None:
    stat = _stat(pid)
    return Process(pid, stat.start, boot_id()) if stat and stat.state not in "ZX" else None


def _environment(pid: int) -> set[bytes]:
    try:
        return set((PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def _pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def _prctl(option: int, value: int | ctypes.Array[ctypes.c_char]) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
