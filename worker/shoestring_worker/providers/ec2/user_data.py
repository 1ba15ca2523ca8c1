# SPDX-License-Identifier: Apache-2.0
"""The user data of a machine: Python and its arguments. cloud-init runs it as root, once, when the machine boots."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoestring_core.wheelhouse import MIN_DRIVERS
from shoestring_core.wire import BootData

MAX_BYTES = 16_384
"""docs.aws.amazon.com/AWSEC2/latest/UserGuide/user-data.html"""
MIN_DRIVER = MIN_DRIVERS["13"]
"""For the environment that an image has."""

WHEELS, MACHINE = "boot_wheels", "user_data_script"


def read_source(module: str) -> str:
    """Of a module in this package."""
    return Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")


SOURCES = {module: read_source(module) for module in (WHEELS, MACHINE)}


def render(boot: BootData, python: str, wheelhouse: str = "") -> str:
    """Of a job's machine. The only secret in it is the boot token, good for one machine.

    python      of the environment on the image
    wheelhouse  name of the one whose environment is installed in its place
    """
    arguments = {
        "boot": boot.model_dump(mode="json"), "python": python, "min_driver": MIN_DRIVER, "wheelhouse": wheelhouse
    }  # fmt: skip
    return pack(SOURCES, arguments)


def pack(sources: Mapping[str, str], arguments: Mapping[str, Any]) -> str:
    """A script that runs `main` of the last module with these arguments.

    sources  by name of the module in this package, each before those that import it
    """
    named = {f"{__package__}.{module}": source for module, source in sources.items()}
    packed = base64.b85encode(zlib.compress(json.dumps(named).encode(), 9)).decode()  # because EC2 takes 16 KB
    return f"""#!/usr/bin/env python3
# {" and ".join(f"{module}.py" for module in sources)}, compressed, and the arguments of `main`
import base64, json, sys, types, zlib
for name, source in json.loads(zlib.decompress(base64.b85decode("{packed}"))).items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
module.main(**json.loads({json.dumps(arguments, sort_keys=True)!r}))
"""
