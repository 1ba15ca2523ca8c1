# SPDX-License-Identifier: Apache-2.0
"""NaN and ±Infinity in JSON, which has no literals for them: they are strings, as pydantic's `ser_json_inf_nan` writes
and JavaScript's `Number` reads them."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import WithJsonSchema

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


AnyFloat = Annotated[
    float, WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "enum": list(_NOT_FINITE)}]})
]
"""A float that may be NaN or infinite, described as it is sent."""


def encode_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def decode_float(value: object) -> float:
    """The number that `encode_float` made this of. Raises ValueError for what is no number."""
    if isinstance(value, str) and value in _NOT_FINITE:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{str(value)[:50]!r} is not a number")
    return float(value)
