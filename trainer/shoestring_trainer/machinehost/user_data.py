# SPDX-License-Identifier: Apache-2.0
"""User data that is a script: executed when the machine boots, as by cloud-init. Only powering off ends the machine.

The machine's folder `bin` comes first in its PATH. It holds `poweroff` and `shutdown`, which end this machine and not
the computer, and the commands that its image has by the launch request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from shoestring_trainer.machinehost.machine_folder import USER_DATA_FILE, write_text

POWEROFF_FILE = "poweroff"
COMMANDS = "bin"
_POWER_OFF = f'#!/bin/sh\n: > "$SHOESTRING_MACHINE_DIR/{POWEROFF_FILE}"\n'


def write_script(folder: Path, script: str, commands: Mapping[str, str]) -> None:
    """Write the user data into a machine's folder, with the commands that it finds first."""
    write_text(folder / USER_DATA_FILE, script, 0o700)
    (folder / COMMANDS).mkdir()
    for name, content in {**commands, "poweroff": _POWER_OFF, "shutdown": _POWER_OFF}.items():
        write_text(folder / COMMANDS / name, content, 0o700)


def is_script(folder: Path) -> bool:
    return (folder / COMMANDS).is_dir()


def script_environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.pathsep.join((str(folder / COMMANDS), os.environ.get("PATH", os.defpath)))}


def has_powered_off(folder: Path) -> bool:
    return (folder / POWEROFF_FILE).exists()
