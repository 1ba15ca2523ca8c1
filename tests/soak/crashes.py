# SPDX-License-Identifier: Apache-2.0
"""Each failpoint of the worker, with each thing that can go wrong at it, on the virtual clock.

python -m tests.soak.crashes --case first --seed N
"""

from __future__ import annotations

import sys

from tests.soak.suite import main

SEEDS = 1
EACH_ALONE = ["-n", "2", "--dist", "load"]
"""Not all of the file in one process."""
CASES = {
    "first": ["tests/worker/every_crash.py", "-k", "a_fault_changes", *EACH_ALONE],
    "later": ["tests/worker/every_crash.py", "-k", "a_later_fault", *EACH_ALONE],
}

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", CASES))
