# SPDX-License-Identifier: Apache-2.0
"""What `make test` does once or on one database, here with many examples and on both.

    python -m tests.soak.suite --case CASE --seed N

A case is a part of the suite: the storms over the simulated cloud on both databases (`storms`), the tests that are
marked `any_database` on PostgreSQL (`postgresql`, one seed), the tests of the specification, of sizing and of documents
with two thousand examples each (`examples`). The seed draws the storms and the examples.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = {
    "storms": ["tests/worker/test_chaos.py", "--db", "both"],
    "postgresql": ["-m", "any_database", "--db", "postgresql", "-n", "2"],
    "examples": ["tests/core/spec", "tests/core/decide", "tests/core/test_document.py"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    options = parser.parse_args()
    print(f"case {options.case}, seed {options.seed}", flush=True)
    seeds = ["--seed", str(options.seed), "--hypothesis-seed", str(options.seed)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *seeds, *CASES[options.case]]
    command += ["--hypothesis-profile", "soak"] if options.case == "examples" else []
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
