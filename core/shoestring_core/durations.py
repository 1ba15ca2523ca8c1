# SPDX-License-Identifier: Apache-2.0
"""Durations as people write and read them: 90s, 5m, 2h10m, 1d."""

from __future__ import annotations

import re

_SECONDS_PER_UNIT = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_UNITS = re.compile("".join(rf"(?:({_NUMBER}){unit})?" for unit in _SECONDS_PER_UNIT))


def parse_duration(text: str) -> float:
    """The seconds of a duration such as 1h30m, or of a plain number. Raises ValueError for anything else."""
    if re.fullmatch(_NUMBER, text):
        return float(text)
    parts = _UNITS.fullmatch(text)
    if not text or parts is None:
        raise ValueError(f"{text!r} is not a duration such as 90s, 5m, 2h or 1d")
    return sum(float(part or 0) * unit for part, unit in zip(parts.groups(), _SECONDS_PER_UNIT.values(), strict=True))


def format_duration(seconds: float) -> str:
    """At most two units: 8.4s, 42s, 2m10s, 1h05m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes and rest else f"{minutes}m" if minutes else f"{rest}s"
