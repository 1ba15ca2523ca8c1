# SPDX-License-Identifier: Apache-2.0
"""Lines with names of foreign files, which may hold any bytes, terminal control sequences among them."""

from __future__ import annotations

import io
import sys

from shoestring_core.terminal_text import printable


def escape_unencodable() -> None:
    """From now on show what the terminal or the log can't encode by its number, where printing it would fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line for people, without control sequences. It never fails for what is in the text."""
    encoding = sys.stdout.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), flush=True)
