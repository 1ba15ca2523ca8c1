# SPDX-License-Identifier: Apache-2.0
"""What `make test` does on one database or with a few examples, on the other and with many.

    python -m tests.soak.suite --case CASE --seed N

A case is a part of the suite: the tests that are marked `any_database` or `one_case_on_postgresql`, on PostgreSQL
(`postgresql`), the budget's on SQLite (`money`), those that draw specs, plans and documents, with two thousand
examples each (`examples`), or axe on all pages in all widths and themes (`looks`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SEEDS = 1
ROOT = Path(__file__).parents[2]
CASES = {
    "postgresql": ["-m", "any_database or one_case_on_postgresql", "--db", "postgresql", "-n", "2"],
    "money": ["tests/e2e/test_money.py", "--db", "sqlite"],
    "examples": [
        "tests/core/spec", "tests/core/decide", "tests/core/test_document.py", "--hypothesis-profile", "soak",
    ],
    "looks": ["tests/web", "-k", "accessibility or page_states or people", "--every-look", "--db", "sqlite"],
}  # fmt: skip


def main(about: str, cases: Mapping[str, list[str]]) -> int:
    """Run the part of the suite that --case names; pytest's exit code."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--case", choices=cases, required=True)
    options = parser.parse_args()
    print(f"case {options.case}, seed {options.seed}", flush=True)
    seeds = ["--seed", str(options.seed), "--hypothesis-seed", str(options.seed)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *seeds, *cases[options.case]]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", CASES))
