# SPDX-License-Identifier: Apache-2.0
"""A class list: CSV with a line for each new member, which is taken as a whole or not at all."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import cast

from shoestring_core import money
from shoestring_core.decide.access import ROLES, Role
from shoestring_core.errors import Problem
from shoestring_core.names import MAX_NAME, is_name, one_spelling
from shoestring_core.wording import Reason, sentence
from shoestring_core.wording import people as wording

MAX_LINES = 1_000
COLUMNS = ("name", "role", "limit")


@dataclass(frozen=True)
class NewMember:
    """`line`: in the list, from 1. `limit_micro`: what they may spend; None: no limit of their own."""

    line: int
    name: str
    role: Role
    limit_micro: int | None


def parse_class_list(text: str) -> tuple[list[NewMember], list[Problem]]:
    """The members that a list names, and everything that is wrong with it.

    The first line names the columns: `name`, and if wanted `role` (member) and `limit` in dollars. Commas or semicolons
    separate them, as spreadsheets write them.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff")), delimiter=_delimiter(text), strict=True)
    members: list[NewMember] = []
    problems: list[Problem] = []
    names: dict[str, int] = {}
    try:
        columns = [cell.strip().lower() for cell in next(reader, [])]
        if "name" not in columns or set(columns) - set(COLUMNS) or len(set(columns)) < len(columns):
            return [], [_problem(1, wording.OddColumns(", ".join(columns)[:100]))]
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(names) >= MAX_LINES:
                return [], [_problem(reader.line_num, wording.TooManyLines(MAX_LINES))]
            if len(cells) != len(columns):
                problems.append(_problem(reader.line_num, wording.OddCells(len(cells), len(columns))))
                continue
            line, odd = _parse_line(reader.line_num, dict(zip(columns, map(str.strip, cells), strict=True)))
            if not odd and (first := names.setdefault(line.name, line.line)) != line.line:
                odd = [_problem(line.line, wording.NameRepeated(line.name, first))]
            problems += odd
            members.append(line)
    except csv.Error as broken:
        problems.append(_problem(reader.line_num, wording.NotCsv(str(broken))))
    if not members and not problems:
        problems = [_problem(1, wording.EmptyList())]
    return members, problems


def taken_name(member: NewMember) -> Problem:
    return _problem(member.line, wording.NameTaken(member.name))


def _parse_line(number: int, cells: dict[str, str]) -> tuple[NewMember, list[Problem]]:
    name, role, limit = one_spelling(cells["name"]), cells.get("role", "").lower() or "member", cells.get("limit", "")
    problems = []
    if not is_name(name):
        problems.append(_problem(number, wording.OddName(MAX_NAME)))
    if role not in ROLES:
        problems.append(_problem(number, wording.OddRole(role[:50], ", ".join(ROLES))))
    limit_micro = None
    if limit:
        try:
            limit_micro = money.from_decimal(limit[:100])
        except ValueError as wrong:
            problems.append(_problem(number, wording.OddLimit(str(wrong))))
    return NewMember(number, name, cast("Role", role), limit_micro), problems


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return ";" if ";" in first and "," not in first else ","


def _problem(line: int, reason: Reason) -> Problem:
    return Problem(f"line {line}", sentence(reason), reason.code)
