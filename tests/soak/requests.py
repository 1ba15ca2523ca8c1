# SPDX-License-Identifier: Apache-2.0
"""Generated requests, 1,000 a seed, whose answers must be as the OpenAPI document says.

python -m tests.soak.requests --case document --seed N
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.soak.suite import main

SEEDS = 10
REQUESTS = 1_000
DOCUMENT = Path(__file__).parents[2] / "web" / "openapi.json"
CASES = {"document": ["tests/api/test_openapi.py", "-k", "described"]}

if __name__ == "__main__":
    operations = sum(map(len, json.loads(DOCUMENT.read_text())["paths"].values()))
    os.environ["SHOESTRING_FUZZ_EXAMPLES"] = str(-(-REQUESTS // operations))
    sys.exit(main(__doc__ or "", CASES))
