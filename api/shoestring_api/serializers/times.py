# SPDX-License-Identifier: Apache-2.0
"""Timestamps: integers in the database, datetimes in REST resources."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload


@overload
def to_datetime(at: int) -> datetime: ...
@overload
def to_datetime(at: int | None) -> datetime | None: ...
def to_datetime(at: int | None) -> datetime | None:
    """Convert microseconds since the epoch, UTC."""
    return None if at is None else datetime.fromtimestamp(at // 1_000_000, UTC).replace(microsecond=at % 1_000_000)
