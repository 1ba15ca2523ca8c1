# SPDX-License-Identifier: Apache-2.0
"""Process 1 of a machine with namespaces of its own: starts the machine's command, and waits for all that it leaves.

    python -m shoestring_trainer.machinehost.first_process COMMAND …

It runs until it is killed, and the kernel then kills whatever else runs in the machine: a machine goes on when its
script has ended. SIGTERM is passed on to the command.

source  pid_namespaces(7), mount_namespaces(7)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from shoestring_trainer.machinehost.namespaces import use_own_mounts


def main() -> NoReturn:
    use_own_mounts()
    command = subprocess.Popen(["/bin/sh", "-c", 'exec "$@"', "sh", *sys.argv[1:]], start_new_session=True)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if command.returncode is None:
            os.kill(command.pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            signal.pause()
        else:
            if pid == command.pid:
                command.returncode = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
