# SPDX-License-Identifier: Apache-2.0
"""The dead-man switch: a separate process that kills a machine's ranks when its funding ends or its agent dies.

It reads deadlines (CLOCK_BOOTTIME seconds, one a line, the last one counts) from stdin. At the deadline it kills the
ranks and the agent, even if they hang, and powers the machine off; if the agent dies before, it kills the ranks.
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

CLOCK_CHECK_INTERVAL_S = 5.0  # a machine that was suspended may resume after its deadline
KILL_TIMEOUT_S = 30.0


class DeadManSwitch:
    """Starts the switch and sends it deadlines. `variables` identify the ranks, by their environment."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._deadline: float | None = None
        self._process = self._start()

    def set_deadline(self, deadline: float) -> None:
        """Kill everything at this CLOCK_BOOTTIME, unless another deadline is set before."""
        if deadline == self._deadline:
            return
        self._deadline = deadline
        self._send_deadline()

    def restart_if_dead(self) -> None:
        """Restart the switch if it died."""
        if self._process.poll() is not None:
            self._process = self._start()
            self._send_deadline()

    def close(self) -> None:
        """For an agent that exits: return when the switch has killed the remaining ranks."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            pass

    def _start(self) -> subprocess.Popen[bytes]:
        variables = [f"{name}={value}" for name, value in self._variables.items()]
        command = [sys.executable, "-P", "-m", "shoestring_trainer.agent.deadman", str(os.getpid()), *variables]
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def _send_deadline(self) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{self._deadline!r}\n".encode())
            self._process.stdin.flush()
        except OSError:
            pass  # it died; `restart_if_dead` starts another


def main(arguments: list[str]) -> int:
    """Wait until the funding or the agent ends, then kill the ranks."""
    try:
        agent = processes.identify(int(arguments[0]))
    except ProcessLookupError:
        agent = None
    variables = dict(variable.split("=", 1) for variable in arguments[1:])
    expired = agent is not None and _wait_for_deadline()
    # No subreaper: the ranks are the agent's children, or init's.
    processes.kill_all(lambda: processes.find_by_environment(variables), timeout_s=KILL_TIMEOUT_S)
    if expired and agent:
        print("the machine's funding has ended: the ranks and the agent were killed", file=sys.stderr, flush=True)
        agent.send_signal(signal.SIGKILL)
        power_off(os.environ)
    return 0


def power_off(environment: Mapping[str, str]) -> None:
    """Run the power-off command if the user data sets one; without it a machine ends with its agent."""
    if command := environment.get("SHOESTRING_POWEROFF"):
        subprocess.run(["/bin/sh", "-c", command], check=False, timeout=60)


def _wait_for_deadline() -> bool:
    """True at the deadline, False if the agent has closed the pipe or died."""
    deadline, pending = float("inf"), b""
    while (left := deadline - time.clock_gettime(time.CLOCK_BOOTTIME)) > 0:
        readable, _, _ = select.select([0], [], [], min(left, CLOCK_CHECK_INTERVAL_S))
        if readable:
            received = os.read(0, 4096)
            if not received:
                return False
            *lines, pending = (pending + received).split(b"\n")
            deadline = float(lines[-1]) if lines else deadline
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
