# SPDX-License-Identifier: Apache-2.0
"""Names that people choose: of jobs, teams, users and keys."""

from __future__ import annotations

import unicodedata

MAX_NAME = 100


def one_spelling(text: str) -> str:
    """The text in Unicode's NFC: keyboards and systems spell é as one character or as two, and both mean one name."""
    return unicodedata.normalize("NFC", text)


def is_name(text: str) -> bool:
    """Whether a team, a person or a key may be called so."""
    return bool(text.strip()) and text == text.strip() and len(text) <= MAX_NAME and text.isprintable()
