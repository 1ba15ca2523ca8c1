# SPDX-License-Identifier: Apache-2.0
"""Processes identified by boot, pid and start time, and how to kill all of a set for certain. Linux only."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
NICENESS = 10
REQUIRED_EMPTY_SCANS, SCAN_INTERVAL_S = 2, 0.05
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 15, 36, 38
KEYCTL, KEYCTL_JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Process:
    """Identifies one process for good: a pid may be reused, but not with its start time (clock ticks since boot)."""

    pid: int
    start_time: int
    boot_id: str

    def is_alive(self) -> bool:
        """True while the process runs. A zombie has exited: its parent has yet to wait for it."""
        return self.boot_id == current_boot_id() and _running(self.pid) == self

    def send_signal(self, number: signal.Signals) -> bool:
        """Signal exactly this process, never a later one with its pid; False if it has exited."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive():  # checked with the handle open, so the pid can't be reused afterwards
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
    """The identity of an existing process, such as a child not yet waited for. Raises ProcessLookupError."""
    stat = _stat(pid)
    if stat is None:
        raise ProcessLookupError(pid)
    return Process(pid, stat.start_time, current_boot_id())


@functools.cache
def current_boot_id() -> str:
    """The kernel's random id of this boot."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def find_by_environment(variables: dict[str, str]) -> set[Process]:
    """Running processes that were started with all of these variables, whatever their parent or session."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    return {process for pid in _pids() if wanted <= _environment(pid) and (process := _running(pid))}


def descendants(ancestor: int) -> set[Process]:
    """Running children, grandchildren and so on. Of a child subreaper also those whose parents have died."""
    stats = {pid: stat for pid in _pids() if (stat := _stat(pid))}
    tree = {ancestor}
    while children := {pid for pid, stat in stats.items() if stat.ppid in tree} - tree:
        tree |= children
    return {process for pid in tree - {ancestor} if (process := _running(pid))}


def find_child(parent: int, pid: int | None = None) -> Process | None:
    """The running child of `parent` that has this pid in its own PID namespace; without one, any."""
    children = (child for child in _pids() if (stat := _stat(child)) and stat.ppid == parent)
    found = (_running(child) for child in children if pid is None or _innermost_pid(child) == pid)
    return next(filter(None, found), None)


def kill_all(
    find: Callable[[], set[Process]], *, timeout_s: float, no_children: Callable[[], bool] = lambda: True
) -> bool:
    """SIGKILL what `find` returns until nothing is left; False if something still runs after `timeout_s`.

    One scan of the process table is not enough: a process in the middle of exec shows no environment, and one that
    forks and exits during the scan is missed with its child. So two empty scans are required, and `no_children`, which
    a subreaper can ask the kernel.
    """
    deadline = time.monotonic() + timeout_s
    empty_scans = 0
    while True:
        found = find()
        for process in found:
            process.send_signal(signal.SIGKILL)
        empty_scans = empty_scans + 1 if no_children() and not found else 0
        if empty_scans == REQUIRED_EMPTY_SCANS:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005 if found else SCAN_INTERVAL_S)


def are_any_left(find: Callable[[], set[Process]]) -> bool:
    """Whether `find` returns any process in one of two scans: one that forks and exits in between is missed by one."""
    return any(find() for _ in range(REQUIRED_EMPTY_SCANS))


def become_subreaper() -> None:
    """Adopt this process's orphaned descendants, so that double forking does not hide them."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def forbid_new_privileges() -> None:
    """No program that this process or its descendants run gives them another user's rights, as `sudo` would."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def leave_session_keyring() -> None:
    """Join a new, empty session keyring of the kernel: the inherited one may hold its user's logins.

    User namespaces separate the other keyrings. Where there are no keyrings, this does nothing.
    """
    if number := KEYCTL.get(platform.machine()):
        _libc.syscall(number, KEYCTL_JOIN_SESSION_KEYRING, None)


def set_process_name(name: str) -> None:
    """Set the name of this process in `ps` and `top`; its first 15 bytes are shown."""
    _prctl(PR_SET_NAME, ctypes.create_string_buffer(name.encode()))


def yield_to_others() -> None:
    """Let everything else on this machine run before this process: its agent, and on the local cloud the service.

    Where Linux shares the processor among sessions first (sched_autogroup), niceness counts only within one, so the
    session of this process, which it must be the leader of, gets a lower share too.
    """
    os.nice(NICENESS)
    with suppress(OSError):  # the kernel has no such groups, or this process may not set its share
        (PROC / "self/autogroup").write_text(str(NICENESS))


def die_with_parent(parent: int) -> None:
    """For a new child to call: it is SIGKILLed when the thread that forked it dies, or has died before this call.

    The first process of a PID namespace sees no parent, dead or alive.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() not in (parent, 0):
        os._exit(1)


@dataclass(frozen=True)
class _Stat:
    state: str
    ppid: int
    start_time: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the command's name may hold spaces and parentheses
    return _Stat(state=fields[0], ppid=int(fields[1]), start_time=int(fields[19]))


def _innermost_pid(pid: int) -> int | None:
    try:
        status = (PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return None
    pids = next((line.split() for line in status.splitlines() if line.startswith("NSpid:")), None)
    return int(pids[-1]) if pids else pid


def _running(pid: int) -> Process | None:
    stat = _stat(pid)
    return Process(pid, stat.start_time, current_boot_id()) if stat and stat.state not in "ZX" else None


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
