# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoestring_core.decide.class_list import MAX_LINES, parse_class_list


def test_a_list_as_spreadsheets_write_it() -> None:
    text = '\ufeffName;Limit;role\r\nAda Lovelace;12.50;lead\r\n\r\n"Ben ""B""";;\r\n'
    members, problems = parse_class_list(text)
    assert problems == []
    assert [(one.line, one.name, one.role, one.limit_micro) for one in members] == [
        (2, "Ada Lovelace", "lead", 12_500_000),
        (4, 'Ben "B"', "member", None),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["line 1: class_list_columns"]),
        ("ada\nben\n", ["line 1: class_list_columns"]),
        ("name,email\nada,a@b\n", ["line 1: class_list_columns"]),
        ("name,name\nada,ada\n", ["line 1: class_list_columns"]),
        ("name\n\n\n", ["line 1: class_list_empty"]),
        ("name,role\nada\nben,lead,x\n", ["line 2: class_list_cells", "line 3: class_list_cells"]),
        ("name,role\nada,boss\n,member\n", ["line 2: role_odd", "line 3: name_odd"]),
        ("name\nada\nben\nada\n", ["line 4: class_list_name_repeated"]),
        ("name\na\x00b\n", ["line 2: name_odd"]),
        (f"name\n{'a' * 101}\n", ["line 2: name_odd"]),
        ("name,limit\na,-1\nb,nan\nc,1e400\nd,1.0000001\ne,one\n", [f"line {line}: limit_odd" for line in range(2, 7)]),
        ('name\n"ada\n', ["line 2: class_list_not_csv"]),
        ("name\n" + "".join(f"m{n}\n" for n in range(MAX_LINES + 1)), [f"line {MAX_LINES + 2}: class_list_too_long"]),
    ],
)
def test_every_odd_line_is_named(text: str, expected: list[str]) -> None:
    _, problems = parse_class_list(text)
    assert [f"{problem.pointer}: {problem.code}" for problem in problems] == expected


@given(st.text(max_size=200))
def test_whatever_a_list_is_it_is_parsed_or_refused(text: str) -> None:
    members, problems = parse_class_list(f"name,role,limit\n{text}")
    assert members or problems
    assert len({member.name for member in members}) == len(members) or problems
