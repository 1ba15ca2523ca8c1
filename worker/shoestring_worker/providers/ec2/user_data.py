# SPDX-License-Identifier: Apache-2.0
"""The user data of a machine: a Python script and its arguments. cloud-init runs it as root, once, when it boots."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

from shoestring_core.wheelhouse import MIN_DRIVERS
from shoestring_core.wire import BootData

MIN_DRIVER = MIN_DRIVERS["13"]
"""For the environment that an image has."""

SOURCE = "user_data_script.py"
_SCRIPT = Path(__file__).with_name(SOURCE).read_text(encoding="utf-8")


def render(boot: BootData, python: str, wheelhouse: str = "") -> str:
    """The only secret in it is the boot token, good for one machine.

    python      of the environment on the image
    wheelhouse  name of the one whose environment is installed in its place
    """
    arguments = {
        "boot": boot.model_dump(mode="json"), "python": python, "min_driver": MIN_DRIVER, "wheelhouse": wheelhouse
    }  # fmt: skip
    # compressed, because EC2 takes 16 KB
    script = base64.b85encode(zlib.compress(_SCRIPT.encode(), 9)).decode()
    return f"""#!/usr/bin/env python3
# {SOURCE}, compressed, and its arguments
import base64, zlib
exec(zlib.decompress(base64.b85decode("{script}")))
main(**json.loads({json.dumps(arguments, sort_keys=True)!r}))
"""
