# SPDX-License-Identifier: Apache-2.0
"""Search for jobs: filters, pages and their cursors."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, String, case, cast, func, not_, or_, select, tuple_

from shoestring_core.errors import InvalidRequest
from shoestring_core.names import one_spelling
from shoestring_core.states import EndReason, JobState, JobStatus
from shoestring_core.store.cursors import InvalidCursor, decode_cursor, encode_cursor
from shoestring_core.store.tables import JobRow, UserRow
from shoestring_core.store.transactions import Read

MAX_CHARACTERS = 500
MAX_VALUES = 32
"""Each is compared with every job of the team."""


@dataclass(frozen=True)
class JobRowPage:
    jobs: list[JobRow]
    next_cursor: str | None


def search(db: Read, team: UUID, filter_text: str = "", cursor: str | None = None, limit: int = 50) -> JobRowPage:
    """The team's jobs, newest first. Raises InvalidRequest for an invalid filter or cursor.

    A filter is a list of conditions, all of which must hold: FIELD=VALUE, FIELD!=VALUE, or FIELD~PART (contains,
    ignoring case). Fields: id, status, state, end, name, recipe, user, tag.NAME. VALUE may be a list with commas;
    quotes protect spaces. A word by itself is a part of the name or of the id.

        digits status=queued,failed tag.team!=vision user=ann
    """
    query = select(JobRow).where(JobRow.team_id == team, *map(_condition, _conditions(filter_text)))
    if cursor is not None:
        query = query.where(tuple_(JobRow.created_at, JobRow.id) < tuple_(*_from_cursor(cursor)))
    rows = list(db.sql.scalars(query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)))
    return JobRowPage(rows[:limit], _to_cursor(rows[limit - 1]) if len(rows) > limit else None)


_FIELDS = ("id", "status", "state", "end", "name", "recipe", "user", "tag.NAME")
_VALUES: Mapping[str, type[StrEnum]] = {"status": JobStatus, "state": JobState, "end": EndReason}
_CONDITION = re.compile(r"(?P<field>[a-z]+|tag\.[^=!~]+)(?P<operator>=|!=|~)(?P<value>.*)", re.DOTALL)


def _conditions(text: str) -> list[str]:
    if len(text) > MAX_CHARACTERS or not text.isprintable():
        raise InvalidRequest(f"A filter must have at most {MAX_CHARACTERS} characters, all printable.")
    try:
        conditions = shlex.split(one_spelling(text))
    except ValueError:
        raise InvalidRequest("The filter has a quote that isn't closed.") from None
    if sum(1 + condition.count(",") for condition in conditions) > MAX_VALUES:
        raise InvalidRequest(f"A filter may compare with at most {MAX_VALUES} values.")
    return conditions


def _condition(text: str) -> ColumnElement[bool]:
    parts = _CONDITION.fullmatch(text)
    if parts is None and text and not set(text) & set("=!~"):
        return or_(_contains("name", text), _contains("id", text))
    if parts is None:
        raise InvalidRequest(
            f"{text!r} is not a valid condition.",
            hint=f"Write FIELD=VALUE, FIELD!=VALUE or FIELD~PART; fields: {', '.join(_FIELDS)}.",
        )
    column = _column(parts["field"])
    if parts["operator"] == "~":
        return _contains(parts["field"], parts["value"])
    values = _values(parts["field"], parts["value"])
    matches_any = or_(*(_equals(parts["field"], column, value) for value in values))
    return matches_any if parts["operator"] == "=" else or_(column.is_(None), not_(matches_any))


def _contains(field: str, part: str) -> ColumnElement[bool]:
    return _column(field).icontains(part.replace("-", "") if field == "id" else part, autoescape=True)


def _column(field: str) -> ColumnElement[Any]:
    if field.startswith("tag."):
        tag: ColumnElement[Any] = JobRow.spec[("tags", field.removeprefix("tag."))].as_string()
        return tag
    columns: dict[str, ColumnElement[Any]] = {
        "id": func.replace(cast(JobRow.id, String), "-", ""),
        "status": _status(),
        "state": JobRow.state.expression,
        "end": JobRow.end_reason.expression,
        "name": JobRow.name.expression,
        "recipe": JobRow.spec["recipe"].as_string(),
        "user": select(UserRow.name).where(UserRow.id == JobRow.user_id).scalar_subquery(),
    }
    if field not in columns:
        near = difflib.get_close_matches(field, list(columns), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Fields: {', '.join(_FIELDS)}."
        raise InvalidRequest(f"Jobs can't be filtered by {field!r}.", hint=hint)
    return columns[field]


def _status() -> ColumnElement[Any]:
    ended = [(JobRow.end_reason == reason, str(reason.status)) for reason in EndReason]
    return case(*ended, else_=JobRow.state)


def _values(field: str, text: str) -> list[str]:
    values = text.split(",")
    known = [*map(str, _VALUES.get(field, ()))]
    for value in values:
        if known and value not in known:
            other = next((name for name, values in _VALUES.items() if value in list(values)), None)
            hint = f"Did you mean {other}={value}?" if other else f"Values: {', '.join(known)}."
            raise InvalidRequest(f"{value!r} is not a value of {field}.", hint=hint)
    return values


def _equals(field: str, column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    """A recipe without a version matches all its versions."""
    if field == "id":
        return column == value.replace("-", "").lower()
    if field == "recipe" and "@" not in value:
        return or_(column == value, column.startswith(f"{value}@", autoescape=True))
    return column == value


def _to_cursor(job: JobRow) -> str:
    return encode_cursor(job.created_at.to_bytes(8, "big") + job.id.bytes)


def _from_cursor(cursor: str) -> tuple[int, UUID]:
    raw = decode_cursor(cursor)
    if len(raw) != 24:
        raise InvalidCursor
    return int.from_bytes(raw[:8], "big", signed=True), UUID(bytes=raw[8:])
