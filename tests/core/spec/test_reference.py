# SPDX-License-Identifier: Apache-2.0
"""docs/spec.md matches the code."""

from __future__ import annotations

import re
from pathlib import Path

from shoestring_core import spec
from shoestring_core.spec.reference import page

PAGE = Path(__file__).parents[3] / "docs" / "spec.md"
REFRESH = "stale; refresh it: PYTHONPATH=core python -m shoestring_core.spec.reference > docs/spec.md"


def test_the_page_is_what_the_model_says():
    assert PAGE.read_text(encoding="utf-8") == page(), REFRESH


def test_the_example_on_the_page_is_a_valid_spec():
    (example,) = re.findall(r"```yaml\n(.*?)```", page(), re.DOTALL)
    assert spec.parse(example).limits.cost == 3_000_000
