# SPDX-License-Identifier: Apache-2.0
"""The clock of commands that wait for AWS: tests give them one on which time goes by faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
