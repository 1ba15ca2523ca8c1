# SPDX-License-Identifier: Apache-2.0
"""The environments that users have, in groups of a few that touch different things; `make test` has them all at once.

    python -m tests.soak.environments --case nobody+locale+timezone --seed 1
    python -m tests.soak.environments --case locale --seed 1                    one by itself

Ends with an error if `up`, a job, `ls`, `watch` or `artifacts get` does not work in one.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.e2e.environments import ENVIRONMENTS, GROUPS, combined, prove

SEEDS = 1
CASES = ["+".join(group) for group in GROUPS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=[*CASES, *ENVIRONMENTS], required=True)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shoestring-environment-"))
    print(f"case {options.case}, in {folder}", flush=True)
    prove(combined(options.case.split("+")), folder)
    shutil.rmtree(folder)  # a broken run's is left to look at
    return 0


if __name__ == "__main__":
    sys.exit(main())
