# SPDX-License-Identifier: Apache-2.0
"""Opaque cursors: positions in a list that clients send back to read on."""

from __future__ import annotations

import base64
import binascii

from shoestring_core.errors import InvalidRequest


def encode_cursor(position: bytes) -> str:
    return base64.urlsafe_b64encode(position).decode().rstrip("=")


def decode_cursor(cursor: str) -> bytes:
    """Raises InvalidCursor for what is no base64."""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidCursor from None


class InvalidCursor(InvalidRequest):
    """This service never issued the cursor."""

    def __init__(self) -> None:
        super().__init__("This cursor was not issued by this service.", hint="Start again without a cursor.")
