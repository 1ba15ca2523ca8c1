# SPDX-License-Identifier: Apache-2.0
"""Errors in a spec name the line: where in YAML or JSON text something is."""

from __future__ import annotations

import json

import pytest
from shoestring_core.document import json_pointer, locate

TEXT = """# a comment
recipe: digits/quickstart
resources:
  zones: [a,
    b]
  disk: {size: 1GB}
tags:
  - one
  - {a/b: 2}
env: &x {}
"""


@pytest.mark.parametrize(
    ("pointer", "place"),
    [
        ("", (2, 1)),
        ("/recipe", (2, 1)),
        ("/resources/zones", (4, 3)),
        ("/resources/zones/1", (5, 5)),
        ("/resources/disk/size", (6, 10)),
        ("/tags/1/a~1b", (9, 6)),
        ("/env", (10, 1)),
        ("/resources/gpu", (3, 1)),  # isn't there: what it would be in
        ("/limits/cost", (2, 1)),
    ],
)
def test_a_pointer_leads_to_its_line(pointer: str, place: tuple[int, int]) -> None:
    assert locate(TEXT, pointer) == place


def test_every_value_of_a_json_document_is_found_on_its_line() -> None:
    tree = {"recipe": "x", "a": {"b": [1, {"c/d": []}, "e"], "f": {}}, "g": [[2, [3]], None]}
    text = json.dumps(tree, indent=2)

    def pointers(value: object, at: str) -> list[tuple[str, object]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [(at, value)] + [one for key, item in items for one in pointers(item, json_pointer(at, key))]

    for pointer, value in pointers(tree, ""):
        found = locate(text, pointer)
        assert found is not None
        line = text.split("\n")[found[0] - 1][found[1] - 1 :]
        key = pointer.rpartition("/")[2].replace("~1", "/")
        assert line.startswith((f'"{key}"', json.dumps(value, indent=2).split("\n")[0])), pointer


@pytest.mark.parametrize(
    ("text", "place"),
    [("recipe: x\n  b: 1", (2, 4)), ('{"recipe": "x",\n "params": 1,}', (2, 14)), ("{\n" * 5000, (2, 1))],
)
def test_of_what_cant_be_read_the_line_is_where_reading_stops(text: str, place: tuple[int, int]) -> None:
    assert locate(text, "") == place
