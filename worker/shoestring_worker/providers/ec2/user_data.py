# SPDX-License-Identifier: Apache-2.0
"""The user data of a machine: a Python script and its arguments. cloud-init runs it as root, once, when it boots."""

from __future__ import annotations

import json
from pathlib import Path

from shoestring_core.wire import BootData

MIN_DRIVER = 580
"""For CUDA 13: docs.nvidia.com/cuda/cuda-toolkit-release-notes, "CUDA Toolkit and Corresponding Driver Versions"."""

_SCRIPT = Path(__file__).with_name("user_data_script.py").read_text(encoding="utf-8")


def render(boot: BootData, python: str) -> str:
    """`python`: of the environment on the image. The only secret in it is the boot token, good for one machine."""
    arguments = {"boot": boot.model_dump(mode="json"), "python": python, "min_driver": MIN_DRIVER}
    return f"#!/usr/bin/env python3\n{_SCRIPT}\n\nmain(**json.loads({json.dumps(arguments, sort_keys=True)!r}))\n"
