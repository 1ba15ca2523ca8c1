# SPDX-License-Identifier: Apache-2.0
"""Text becomes exactly the values that were written, or is refused."""

from __future__ import annotations

import json
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core import document
from shoestring_core.errors import InvalidSpec


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3", 3),
        ("-7", -7),
        ("3.00", Decimal("3.00")),
        ("5e-4", Decimal("0.0005")),
        (".5", Decimal("0.5")),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("yes", "yes"),
        ("on", "on"),
        ("NO", "NO"),
        ("007", "007"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-12-01", "2026-12-01"),
        ("1..4", "1..4"),
        ("'3'", "3"),
        ('"true"', "true"),
    ],
)
def test_a_word_means_what_it_looks_like(written, value):
    tree, problems = document.read(f"on: {written}")
    assert (tree, problems) == ({"on": value}, [])
    assert type(tree["on"]) is type(value)


def test_a_decimal_keeps_its_zeros_in_yaml_and_in_json():
    for text in ("cost: 3.00", '{"cost": 3.00}', "{cost: 3.00}"):
        assert str(document.read(text)[0]["cost"]) == "3.00"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcé_/~ ", max_size=9), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcé_/~ ", max_size=9), JSON_VALUES, max_size=4))
def test_json_is_read_as_json(tree):
    assert document.read(json.dumps(tree)) == (tree, [])
    assert document.read(json.dumps(tree, ensure_ascii=False, indent="\t").encode()) == (tree, [])


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (BOMB, "alias"),
        ("a: &a {b: *a}", "alias"),
        ("a: &x {b: 1}\nc: {<<: *x}", "alias"),
        ("a: !!python/object/apply:os.system [ls]", "tag"),
        ("a: !include /etc/passwd", "tag"),
        ("[" * 50_000, "too-deep"),
        ("{a: " * 5_000, "too-deep"),
        ('{"a":' * 40_000, "too-deep"),
        ("- " * 5_000, "too-deep"),
        ('{"a":' * 13 + "1" + "}" * 13, "too-deep"),
        ("a: " + "x" * 300_000, "too-large"),
        ("a: [" + "1," * 5_000 + "]", "too-large"),
        (b"\xff\xfe\x00", "bad-encoding"),
        (b"name: \xc3\x28", "bad-encoding"),
        ("name: \ud800", "bad-encoding"),
        ("name: a\0b", "bad-encoding"),
        ("", "empty"),
        ("  \n\t\n", "empty"),
        ("# only words", "empty"),
        ("a: 1\n---\nb: 2", "syntax"),
        ("a: [1, 2", "syntax"),
        ("a: b: c", "syntax"),
        ("\tname: x", "syntax"),
        ('{"a": 1,}', "syntax"),
        ('{"a": 1} x', "syntax"),
        ("? [a]\n: b", "syntax"),
        ("a: \x07", "syntax"),
        ("%YAML 9.9\n---\na: 1", "syntax"),
    ],
)
def test_what_is_no_honest_document_is_refused(text, code):
    with pytest.raises(InvalidSpec) as refused:
        document.read(text)
    (problem,) = refused.value.problems
    assert problem.code == code
    assert len(problem.message) < 300


@pytest.mark.parametrize("text", ["a: {b: 1, b: 2}", '{"a": {"b": 1, "b": 2}}'])
def test_a_repeated_key_is_reported(text):
    assert [problem.code for problem in document.read(text)[1]] == ["duplicate-key"]


@pytest.mark.parametrize(
    "number",
    [
        ".nan",
        "nan",
        "NaN",
        ".inf",
        "-.inf",
        "Infinity",
        "1e999",
        "1e-999",
        "9" * 31,
        "9" * 5_000,
        "1e" + "9" * 200,
        "1e0000099",
    ],
)
def test_absurd_numbers_are_reported_where_they_stand(number):
    tree, problems = document.read(f"limits: {{cost: {number}}}")
    assert tree == {"limits": {"cost": None}}
    assert [(problem.pointer, problem.code) for problem in problems] == [("/limits/cost", "invalid-number")]


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1e400}', '{"a": "\\u0000"}', '{"a": "\\ud800"}']
)
def test_json_with_values_that_no_field_can_hold_is_reported(text):
    assert [problem.pointer for problem in document.read(text)[1]] == ["/a"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**40, Decimal("NaN"), Decimal("1e99"), object(), b"x", "a\0b"])
def test_a_tree_is_held_to_the_same_rules(value):
    tree, problems = document.read({"a": [value]})
    assert tree == {"a": [None]}
    assert [problem.pointer for problem in problems] == ["/a/0"]


def test_a_tree_that_contains_itself_is_refused():
    tree: dict = {}
    tree["a"] = tree
    with pytest.raises(InvalidSpec, match="nested"):
        document.read(tree)


def test_pointers_escape_slashes_and_tildes():
    assert document.read("{a/b: {c~d: .nan}}")[1][0].pointer == "/a~1b/c~0d"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("recipe: digits/quickstart\nparams:\n\tepochs: 3\n", "Line 3 is indented with a tab"),
        ("params:\n  \tepochs: 3\n\tlr: 1\n", "is indented with a tab"),
        ("recipe: digits/quickstart\n".encode("utf-16"), "UTF-16, as PowerShell's"),
        (b"name: x\nrecipe: caf\xe9\n", "Line 2 isn't valid UTF-8"),
        ("name: x\nrecipe: a\0b\n", "Line 2 contains a NUL character"),
        ("name: &a x\nrecipe: *a\n", "The alias 'a' in line 2"),
        ("name: x\nrecipe: !!str 3\n", "in line 2 is not supported"),
        ("name: x\n[a]: b\n", "A key in line 2 is a list"),
    ],
)
def test_what_no_document_may_contain_is_named_with_its_line(source: str | bytes, words: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        document.read(source)
    assert words in refused.value.problems[0].message
