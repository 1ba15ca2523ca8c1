# SPDX-License-Identifier: Apache-2.0
"""The dead-man switch: a process of its own that ends a machine's ranks when the money or the agent does.

It reads deadlines (CLOCK_BOOTTIME seconds, a line each, the last holds) from its stdin. At the deadline it kills the
ranks and the agent, however they hang, and powers the machine off; if the agent dies before, it kills the ranks.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from shoestring_trainer import processes

CLOCK_CHECK_S = 5.0  # a machine that slept may wake up past its deadline
KILL_S = 30.0


class DeadManSwitch:
    """The agent's end of the switch."""

    def __init__(self, marks: Mapping[str, str]) -> None:
        self._marks = marks
        self._deadline: float | None = None
        self._process = self._start()

    def set_deadline(self, deadline: float) -> None:
        """Everything ends at this moment of CLOCK_BOOTTIME, unless a later one is set before."""
        if deadline == self._deadline:
            return
        self._deadline = deadline
        self._send_deadline()

    def restart_if_dead(self) -> None:
        """Start the switch again if it died."""
        if self._process.poll() is not None:
            self._process = self._start()
            self._send_deadline()

    def close(self) -> None:
        """The agent leaves; returns when the switch has made sure that no rank is left."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            pass

    def _start(self) -> subprocess.Popen[bytes]:
        marks = [f"{name}={value}" for name, value in self._marks.items()]
        command = [sys.executable, "-m", "shoestring_trainer.agent.deadman", str(os.getpid()), *marks]
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def _send_deadline(self) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{self._deadline!r}\n".encode())
            self._process.stdin.flush()
        except OSError:
            pass  # it died; `check` starts another


def main(arguments: list[str]) -> int:
    """Wait for whichever ends first, the money or the agent."""
    try:
        agent = processes.identify(int(arguments[0]))
    except ProcessLookupError:
        agent = None
    marks = dict(mark.split("=", 1) for mark in arguments[1:])
    expired = agent is not None and _wait_for_deadline()
    # No subreaper: the ranks are the agent's children, or init's.
    processes.kill_all(lambda: processes.find_by_environment(marks), no_children=lambda: True, timeout_s=KILL_S)
    if expired and agent:
        print("the machine's funding has ended: the ranks and the agent were killed", file=sys.stderr, flush=True)
        agent.send_signal(signal.SIGKILL)
        power_off(os.environ)
    return 0


def power_off(environment: Mapping[str, str]) -> None:
    """Only by the command that real user data sets: without it a machine ends with its agent."""
    if command := environment.get("SHOESTRING_POWEROFF"):
        subprocess.run(["/bin/sh", "-c", command], check=False, timeout=60)


def _wait_for_deadline() -> bool:
    """True at the deadline, False when the agent has closed the pipe, by its end or its death."""
    deadline, pending = float("inf"), b""
    while (left := deadline - time.clock_gettime(time.CLOCK_BOOTTIME)) > 0:
        readable, _, _ = select.select([0], [], [], min(left, CLOCK_CHECK_S))
        if readable:
            received = os.read(0, 4096)
            if not received:
                return False
            *lines, pending = (pending + received).split(b"\n")
            deadline = float(lines[-1]) if lines else deadline
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
