# SPDX-License-Identifier: Apache-2.0
"""Each environment that users have by itself; `make test` has them all at once.

    python -m tests.soak.environments --case http-proxy --seed 1

Ends with an error if `up`, a job, `ls`, `watch` or `artifacts get` does not work in it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.e2e.environments import ENVIRONMENTS, prove

SEEDS = 1
CASES = list(ENVIRONMENTS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shoestring-environment-"))
    print(f"case {options.case}, in {folder}", flush=True)
    prove(ENVIRONMENTS[options.case], folder)
    shutil.rmtree(folder)  # a broken run's is left to look at
    return 0


if __name__ == "__main__":
    sys.exit(main())
