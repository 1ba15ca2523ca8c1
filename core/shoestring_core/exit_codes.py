# SPDX-License-Identifier: Apache-2.0
"""Exit codes of the command line; scripts may rely on them."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    AUTH = 3
    BUDGET = 4
    NOT_FOUND = 5
    NO_CAPACITY = 6
    NETWORK = 7
    DETACHED = 130
