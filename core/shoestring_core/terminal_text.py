# SPDX-License-Identifier: Apache-2.0
"""Text that users or their programs wrote, as a terminal may be given it."""

from __future__ import annotations

import re

_COLORS = r"\x1b\[[0-9;:]*m"
_SEQUENCES = "|".join(
    (
        r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]",  # CSI: moves the cursor, clears the screen
        r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?",  # OSC, DCS …: title, links
        r"\x1b[ -/]*[0-~]",  # other escape sequences
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f]",  # single control characters, except tab and newline
        r"[\u202a-\u202e\u2066-\u2069]",  # bidirectional overrides, which show text in another order
    )
)
_WITHOUT_COLORS = re.compile(_SEQUENCES)
_COLORS_OR_OTHERS = re.compile(f"({_COLORS})|{_SEQUENCES}")


def printable(text: str, *, colors: bool = False) -> str:
    """Return the text without terminal control sequences; with `colors` it keeps its own, and they end with it."""
    if not colors:
        return _WITHOUT_COLORS.sub("", text)
    kept = _COLORS_OR_OTHERS.sub(lambda match: match[1] or "", text)
    return f"{kept}\x1b[0m" if "\x1b" in kept else kept
