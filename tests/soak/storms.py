# SPDX-License-Identifier: Apache-2.0
"""Storms over the simulated cloud, as in `make test`, on each database and with any number of seeds.

python -m tests.soak.storms --case sqlite --seed N
"""

from __future__ import annotations

import sys

from tests.soak.suite import main

CASES = {name: ["tests/worker/test_chaos.py", "--db", name] for name in ("sqlite", "postgresql")}

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", CASES))
