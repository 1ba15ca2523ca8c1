# SPDX-License-Identifier: Apache-2.0
"""Tables in terminals of any width: amounts and ids stay whole, and what there is no room for goes."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from shoestring.cli import terminal

COLUMNS = ("JOB", "NAME", "STATUS", "STEPS", "COST", "DETAILS")
ROW = (
    "2df3277b",
    "digits-quickstart-of-a-long-name",
    "succeeded",
    "1,798/1,798",
    "$0.007154",
    "Finished: goal reached",
)


def printed(monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    """The table, without the sequences that style its head."""
    file = io.StringIO()
    monkeypatch.setattr(terminal, "out", terminal.Terminal(file=file, **options))
    terminal.print_table(COLUMNS, [ROW], "", wrap=("NAME", "DETAILS"), drop=("DETAILS", "STEPS"))
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())


@pytest.mark.parametrize(("width", "missing"), [(60, {"DETAILS", "STEPS"}), (80, {"DETAILS"}), (120, set())])
def test_a_narrow_terminal_shows_fewer_columns_and_no_split_amount(
    monkeypatch: pytest.MonkeyPatch, width: int, missing: set[str]
) -> None:
    text = printed(monkeypatch, width=width, force_terminal=True)
    for title, cell in zip(COLUMNS, ROW, strict=True):
        assert (title in text) == (title not in missing)
        if title not in ("NAME", "DETAILS", *missing):
            assert cell in text
    assert all(len(line) <= width for line in text.splitlines())


def test_a_pipe_gets_every_column_and_whole_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = printed(monkeypatch, width=40, force_terminal=False).splitlines()
    assert all(cell in row for cell in ROW)


def test_a_column_without_any_text_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(terminal, "out", terminal.Terminal(file=file))
    rows = [("a", "", ""), ("b", "", "1.0")]
    terminal.print_table(("NAME", "IMAGE", "DRIVER"), rows, "", drop=("IMAGE", "DRIVER"))
    assert [line.split() for line in file.getvalue().splitlines()] == [["NAME", "DRIVER"], ["a"], ["b", "1.0"]]


def test_prose_in_a_pipe_is_wrapped_as_nobody_reads_lines_of_500_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(terminal, "out", terminal.Terminal(file=file))
    row = ("lr", "Peak learning rate. " * 25)
    terminal.print_table(("PARAMETER", "DESCRIPTION"), [row], "", wrap=("DESCRIPTION",), prose=True)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= terminal.PROSE_WIDTH
    assert " ".join(" ".join(lines).split()).endswith(row[1].strip())
