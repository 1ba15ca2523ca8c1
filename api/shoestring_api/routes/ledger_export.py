# SPDX-License-Identifier: Apache-2.0
"""The ledger as a file: every change of a limit and every line of a bill that concerns the team."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from typing import Literal, TypeVar
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from shoestring_core.store.db import Store
from shoestring_core.store.ledger.export import LedgerLine, cost_lines, limit_lines
from shoestring_core.store.transactions import Read
from shoestring_core.terminal_text import printable

from shoestring_api.dependencies import Caller, StateDep
from shoestring_api.serializers.times import to_datetime

P = TypeVar("P")

router = APIRouter(prefix="/v1/ledger", tags=["budgets"])

COLUMNS = [field.name for field in fields(LedgerLine)]
TEXTS = frozenset({"account", "line", "actor", "reason"})
"""Columns that hold what people wrote."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A cell that begins so may be computed by a spreadsheet."""


@router.get(
    "", response_class=StreamingResponse, responses={200: {"content": {"text/csv": {}, "application/json": {}}}}
)
def export_ledger(state: StateDep, caller: Caller, format: Literal["csv", "json"] = "csv") -> StreamingResponse:
    """Return every line of the team's ledger: changes of limits, then costs in order. Amounts are dollars.

    In CSV, text has no control characters, and what a spreadsheet would compute begins with an apostrophe. Limits of
    the organization are included.
    """
    pages = _pages(state.store, caller.team)
    blocks, media_type = (_csv(pages), "text/csv") if format == "csv" else (_json(pages), "application/json")
    headers = {"Content-Disposition": f'attachment; filename="ledger.{format}"'}
    return StreamingResponse(blocks, media_type=media_type, headers=headers)


def _pages(store: Store, team: UUID) -> Iterator[list[dict[str, str]]]:
    yield from _pages_of(store, team, limit_lines)
    yield from _pages_of(store, team, cost_lines)


def _pages_of(
    store: Store, team: UUID, read: Callable[[Read, UUID, P | None], tuple[list[LedgerLine], P | None]]
) -> Iterator[list[dict[str, str]]]:
    position: P | None = None
    while True:
        with store.read() as db:
            lines, position = read(db, team, position)
        yield [asdict(line) | {"at": to_datetime(line.at).isoformat()} for line in lines]
        if position is None:
            return


def _csv(pages: Iterator[list[dict[str, str]]]) -> Iterator[str]:
    yield ",".join(COLUMNS) + "\r\n"
    for page in pages:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writerows({name: _cell(name, value) for name, value in line.items()} for line in page)
        yield text.getvalue()


def _cell(name: str, value: str) -> str:
    if name not in TEXTS:
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _json(pages: Iterator[list[dict[str, str]]]) -> Iterator[str]:
    separator = "[\n"
    for page in pages:
        for line in page:
            yield separator + json.dumps(line)
            separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"
