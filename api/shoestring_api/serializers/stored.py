# SPDX-License-Identifier: Apache-2.0
"""Stored JSON values as resources show them. What is damaged is left out, so that no list is lost for one row."""

from __future__ import annotations

from typing import Any

from shoestring_core.wording import Reason, load
from shoestring_core.wording.units import Span


def read_reason(stored: object) -> Reason | None:
    match stored:
        case {"code": str(code), "facts": dict(facts)}:
            return load(code, facts)
    return None


def read_mapping(stored: object) -> dict[str, Any]:
    return stored if isinstance(stored, dict) else {}


def read_texts(stored: object) -> dict[str, str]:
    return {name: text for name, text in read_mapping(stored).items() if isinstance(text, str)}


def read_numbers(stored: object) -> dict[str, float]:
    """NaN and the infinities are stored as text."""
    found = {}
    for name, value in read_mapping(stored).items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            continue
    return found


def read_spans(stored: object) -> tuple[Span, ...]:
    spans = stored if isinstance(stored, list) else []
    return tuple((first, last) for first, last in filter(_is_span, spans))


def _is_span(stored: object) -> bool:
    return isinstance(stored, list) and len(stored) == 2 and all(isinstance(step, int) for step in stored)
